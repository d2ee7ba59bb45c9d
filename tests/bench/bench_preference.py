"""Preference training on real pairs, and its memory at a large vocabulary: python -m tests.bench.bench_preference [pairs.json]

A model is fine-tuned on the chosen answers. Each preference trainer then makes one epoch from that export, and rewards and
accuracy on held-out pairs are printed before and after. Then the peak of live tensor bytes of two steps of DPO at a
vocabulary of 151,936, with chunks and with full logits. The file is in LLaMA-Factory's layout (`conversations`, `chosen`,
`rejected`).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from arctic_hydra.trainer.preference.dpo import DPOTrainer
from tests.bench.bench_memory import peak_bytes
from tests.command import ROOT, metrics, only_run, run
from tests.ranks import run_ranks
from tests.trainer.loop import make_trainer, pairs, tiny_factory

PAIRS = ROOT.parent / "shared" / "data" / "dpo" / "dpo_en_demo.json"
HELD_OUT = 60
MODEL = "model.hidden_size=128 model.intermediate_size=352 model.num_hidden_layers=4"
COMMON = (
    f"{MODEL} model.max_position_embeddings=1024 tracking=[] log.report=false data.max_length=1024 "
    "data.overlong=keep_start data.num_proc=1 "
    "trainer.gradient_accumulation_steps=4"
)
TRAINERS = {
    "dpo": "trainer=dpo",
    "dpo, ipo": "trainer=dpo trainer.loss_type=ipo",
    "dpo + 0.1 sft": "trainer=dpo trainer.loss_type=[sigmoid,sft] trainer.loss_weights=[1,0.1]",
    "simpo": "trainer=simpo",
    "orpo": "trainer=orpo",
    "cpo": "trainer=cpo",
    "kto": "trainer=kto",
}
SHOWN = ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")
VOCABULARY = 151_936


def write_rows(source: Path, folder: Path) -> None:
    """Write pairs to train on and to hold out, and the conversations with the chosen answers."""
    roles = {"system": "system", "human": "user", "gpt": "assistant"}
    rows = []
    for row in json.loads(source.read_text(encoding="utf-8")):
        prompt = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
        sides = {side: [{"role": "assistant", "content": row[side]["value"]}] for side in ("chosen", "rejected")}
        if sides["chosen"] != sides["rejected"]:
            rows.append({"prompt": prompt, **sides})
    chats = [{"messages": row["prompt"] + row["chosen"]} for row in rows[HELD_OUT:]]
    for name, part in (("held", rows[:HELD_OUT]), ("pairs", rows[HELD_OUT:]), ("chats", chats)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")


def margins(source: Path, folder: Path) -> None:
    """Print held-out figures before and after one epoch of each trainer."""
    write_rows(source, folder)
    run(
        f"{COMMON} name=sft data=json data.sources.json.path=chats.jsonl trainer.epochs=6 optimizer.lr=2e-3",
        folder,
        timeout=7200,
    )
    export = only_run(folder, "sft") / "export"
    print(f"{'held-out pairs':<16} {'':6} " + " ".join(f"{name:>18}" for name in SHOWN))
    for label, arguments in TRAINERS.items():
        name = label.translate(str.maketrans("", "", " ,.+"))
        kind = "unpaired" if "kto" in arguments else "preference"
        files = (
            f"data.sources.{kind}.path=pairs.jsonl data/eval_sources=[{kind}] data.eval_sources.{kind}.path=held.jsonl"
        )
        command = f"{COMMON} name={name} {arguments} {files} init_from={export} optimizer.lr=2e-4 trainer.epochs=1 checkpoint=[]"
        run(command, folder, timeout=7200)
        rows = [row for row in metrics(only_run(folder, name)) if "eval/loss" in row]
        for when, row in (("before", rows[0]), ("after", rows[-1])):
            values = (row.get(f"eval/{figure}") for figure in SHOWN)
            shown = " ".join(f"{'-' if value is None else format(value, '.4f'):>18}" for value in values)
            print(f"{label:<16} {when:<6} {shown}", flush=True)


def _peak(folder: Path, head_loss: str) -> int:
    data = pairs([(64, 64)] * 8)
    model = tiny_factory(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=1)
    with peak_bytes() as peak:
        trainer = make_trainer(
            data, folder, trainer_class=DPOTrainer, model=model, micro_batch_size=4, head_loss=head_loss
        )
        trainer.train()
    return peak.bytes


def memory(folder: Path) -> None:
    """Print the peaks of DPO with chunks and with full logits."""
    found = {kind: run_ranks(1, _peak, folder / kind, kind)[0] for kind in ("chunked", "full")}
    for kind, size in found.items():
        print(f"DPO, vocabulary {VOCABULARY:,}, 512 answer tokens, {kind:<8} peak {size / 2**20:8.0f} MiB")
    print(
        f"full logits need {found['full'] / found['chunked']:.2f} times as much, of which weights, copy and optimizer are part"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        memory(Path(work))
        margins(Path(sys.argv[1]) if sys.argv[1:] else PAIRS, Path(work))
