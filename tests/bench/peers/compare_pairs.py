"""Preference training and distillation beside TRL's trainers: first equal losses and figures step by step, then seconds per step.

`nox -s peers` makes the environment of TRL and runs this. Each training is a process of its own, in fp32 on the CPU, from
the same weights, on the same rows, with the same template, AdamW, rate and clipping. To compare losses, a step is all
rows, so that their order does not matter. To compare times, the rounds are interleaved.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from arctic_hydra.data.load.mismatched import draw_partners
from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory
from tests.bench.peers.compare import HERE, ROOT

PAIRS = ROOT.parent / "shared" / "data" / "dpo" / "dpo_en_demo.json"
MAX_LENGTH = 512
LOSSES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "sigmoid": ("dpo", {}, []),
    "sigmoid_norm": ("dpo", {"loss_type": ["sigmoid_norm"]}, ["trainer.loss_type=sigmoid_norm"]),
    "ipo": ("dpo", {"loss_type": ["ipo"]}, ["trainer.loss_type=ipo"]),
    "hinge": ("dpo", {"loss_type": ["hinge"]}, ["trainer.loss_type=hinge"]),
    "robust": (
        "dpo",
        {"loss_type": ["robust"], "label_smoothing": 0.1},
        ["trainer.loss_type=robust", "trainer.label_smoothing=0.1"],
    ),
    "exo_pair": (
        "dpo",
        {"loss_type": ["exo_pair"], "label_smoothing": 0.1},
        ["trainer.loss_type=exo_pair", "trainer.label_smoothing=0.1"],
    ),
    "apo_zero": ("dpo", {"loss_type": ["apo_zero"]}, ["trainer.loss_type=apo_zero"]),
    "apo_down": ("dpo", {"loss_type": ["apo_down"]}, ["trainer.loss_type=apo_down"]),
    "ld_alpha": ("dpo", {"ld_alpha": 0.5}, ["trainer.ld_alpha=0.5"]),
    "simpo": ("simpo", {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0}, []),
    "cpo": ("cpo", {"loss_type": "sigmoid", "cpo_alpha": 0.0}, ["trainer.alpha=0"]),
    "cDPO": ("dpo", {"label_smoothing": 0.1}, ["trainer.label_smoothing=0.1"]),
    "sft term": (
        "dpo",
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
        ["trainer.loss_type=[sigmoid,sft]", "trainer.loss_weights=[1,0.5]"],
    ),
    "orpo": ("orpo", {}, []),
    "cpo with its term": ("cpo", {"loss_type": "sigmoid", "cpo_alpha": 1.0}, ["trainer.alpha=1"]),
    "kto": ("kto", {}, []),
    "kto, accumulated": ("kto", {}, []),
    "reward": ("reward", {"center_rewards_coefficient": 0.1}, ["trainer.center_rewards_coefficient=0.1"]),
    "distill, forward": ("distill", {"beta": 0.0, "lmbda": 0.0}, ["trainer.beta=0"]),
    "distill, JSD": ("distill", {"beta": 0.3, "lmbda": 0.0}, ["trainer.beta=0.3"]),
    "distill, reverse": ("distill", {"beta": 1.0, "lmbda": 0.0}, ["trainer.beta=1"]),
}
"""Per row: the trainer, TRL's options, and ours. Those of distillation are for GKDTrainer without answers of its own."""
WHOLE_STEPS = ("kto", "reward")
"""Rows whose steps are not divided, because TRL takes a KL term, a least and a greatest score of each micro-batch."""
DIFFERENT = {
    "cDPO": "TRL's sigmoid ignores label_smoothing",
    "sft term": "TRL takes the mean of the micro-batches' means, not the mean over the tokens of the step",
    "orpo": "TRL's cross-entropy covers the prompt too, the paper's only the answer",
    "cpo with its term": "TRL takes the mean of the micro-batches' means, not the mean over the tokens of the step",
    "kto, accumulated": "TRL's KL term is that of a micro-batch, from answers that are rotated within it, and not that of the step",
}
"""Rows in which TRL does something else, and what; their figures are compared before the first update only."""
FIGURES = ("rewards/", "logps/", "kl", "accuracy", "margin", "min_reward", "mean_reward", "max_reward")
"""Figures that are compared if both have them; logits are not, since TRL's are means over tokens or with padding."""
MEANS = {"simpo": "logps/", "orpo": "logps/"}
"""Rows and figures of which TRL logs means over tokens, and arctic_hydra sums."""


class PairsBench:
    """The folder of one comparison: a model, pairs, and the interpreter of the peer."""

    def __init__(self, folder: Path, trl: str, pairs: Path) -> None:
        self.folder, self.trl = folder, trl
        self.tokenizer = BundledTokenizerFactory().create_tokenizer()
        self._write_model()
        rows = []
        for row in json.loads(pairs.read_text(encoding="utf-8")):
            roles = {"system": "system", "human": "user", "gpt": "assistant"}
            prompt = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
            sides = {side: [{"role": "assistant", "content": row[side]["value"]}] for side in ("chosen", "rejected")}
            lengths = [len(self._tokens(prompt + side)) for side in sides.values()]
            if max(lengths) <= MAX_LENGTH and row["chosen"] != row["rejected"]:
                rows.append({"prompt": prompt, **sides})
        self.rows: list[dict[str, Any]] = sorted(rows, key=lambda row: len(json.dumps(row)))
        print(f"{len(rows)} pairs of at most {MAX_LENGTH} tokens a side")

    def _tokens(self, messages: list[dict[str, str]]) -> list[int]:
        return list(self.tokenizer.apply_chat_template(messages, return_dict=False))

    def _write_model(self) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

        # TRL's CPOTrainer and ORPOTrainer put the bos token before what the template renders, so there is none.
        self.tokenizer.bos_token = None
        # TRL trains on all that follows the prompt, so the template must end with the stop token.
        newline = "{% endgeneration %}{{ '\\n' }}"
        assert newline in self.tokenizer.chat_template
        self.tokenizer.chat_template = self.tokenizer.chat_template.replace(
            newline, "{% endgeneration %}{% if not loop.last %}{{ '\\n' }}{% endif %}"
        )
        torch.manual_seed(0)
        size = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
        ids = {
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
            "num_labels": 1,
        }
        config = LlamaConfig(vocab_size=len(self.tokenizer), num_key_value_heads=2, **size, **ids)
        models = {
            "model": LlamaForCausalLM(config),
            "classifier": LlamaForSequenceClassification(copy.deepcopy(config)),
            "teacher": LlamaForCausalLM(
                LlamaConfig(**config.to_dict() | {"initializer_range": 0.2, "hidden_size": 64})
            ),
        }
        for name, model in models.items():
            model.save_pretrained(self.folder / name)
            self.tokenizer.save_pretrained(self.folder / name)

    def _rows(self, trainer: str, count: int, for_trl: bool = False) -> Path:
        """Write what the trainer learns from `count` pairs: the pairs, one answer of each, or chats of chosen answers."""
        rows = self.rows
        if trainer == "kto":
            labels = [index % 2 == 0 for index in range(count)]
            rows = [
                {"prompt": row["prompt"], "completion": row["chosen" if label else "rejected"], "label": label}
                for row, label in zip(rows, labels, strict=False)
            ]
            if for_trl:  # which rotates answers, so that each row gets that of the row before
                partners, order = draw_partners(np.zeros(count), np.arange(count)), [0]
                while len(order) < count:
                    order.insert(0, int(partners[order[0]]))
                rows = [rows[place] for place in order]
        elif trainer == "distill":  # TRL trains on the last answer only
            alone = [row for row in rows if all(turn["role"] != "assistant" for turn in row["prompt"])]
            rows = [{"messages": row["prompt"] + row["chosen"]} for row in alone]
        path = self.folder / f"{trainer}-{count}{'-trl' * for_trl}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]), encoding="utf-8")
        return path

    def theirs(
        self, trainer: str, options: dict[str, Any], pairs: int, steps: int, batch: int | None = None
    ) -> dict[str, Any]:
        """Train with TRL in steps of `PAIRS_PER_STEP` of `pairs`: losses, rewards and seconds of each step."""
        batch = batch or BATCH
        settings = {
            "trainer": trainer,
            "model": str(self.folder / ("classifier" if trainer == "reward" else "model")),
            "teacher": str(self.folder / "teacher") if trainer == "distill" else None,
            "rows": str(self._rows(trainer, pairs, for_trl=True)),
            "work": str(self.folder / "trl"),
            "batch": batch,
            "accumulation": PAIRS_PER_STEP // batch,
            "steps": steps,
            "lr": 1e-3,
            "max_length": MAX_LENGTH,
            "options": options,
        }
        path = self.folder / "settings.json"
        path.write_text(json.dumps(settings))
        return dict(json.loads(self._run([self.trl, str(HERE / "trl_pairs.py"), str(path)], "")[-1]))

    def ours(self, trainer: str, overrides: list[str], pairs: int, layout: list[str]) -> dict[str, Any]:
        """Train with arctic_hydra: losses, rewards and seconds of each step."""
        model = self.folder / ("classifier" if trainer == "reward" else "model")
        source = {"kto": "unpaired", "distill": "json"}.get(trainer, "preference")
        teacher = [f"trainer.teacher_path={self.folder / 'teacher'}"] if trainer == "distill" else []
        command = [
            *(sys.executable, "-m", "arctic_hydra", f"trainer={trainer}", *overrides, *layout, *teacher),
            *("model=hf", f"model.name_or_path={model}", "model.dtype=fp32"),
            *(f"data={source}", f"data.sources.{source}.path={self._rows(trainer, pairs)}"),
            *(f"data.max_length={MAX_LENGTH}", "data.num_proc=1"),
            *("scheduler=constant", "scheduler.warmup_steps=0", "optimizer.lr=1e-3", "optimizer.weight_decay=0"),
            *("optimizer.betas=[0.9,0.999]", "tracking=[]", "checkpoint=[]"),
            *("log.report=false", "fresh=true", f"output_root={self.folder / 'ours'}"),
        ]
        self._run(command, str(ROOT))
        [metrics] = (self.folder / "ours").glob("*/*/metrics.jsonl")
        steps = [json.loads(line) for line in metrics.read_text().splitlines()]
        metrics.unlink()
        return {"steps": steps, "seconds": [step["step_seconds"] for step in steps]}

    def _run(self, command: list[str], pythonpath: str) -> list[str]:
        environment = {
            **os.environ,
            "HF_HOME": str(self.folder / "hf"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": pythonpath,
        }
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-4000:]}")
        return done.stdout.splitlines()

    def compare(self, names: list[str]) -> None:
        """Compare losses and figures of each row over `STEPS` steps; raises SystemExit if one differs without a reason."""
        failed = []
        for name in names:
            trainer, options, overrides = LOSSES[name]
            batch = PAIRS_PER_STEP if name in WHOLE_STEPS else BATCH
            theirs = self.theirs(trainer, options, PAIRS_PER_STEP, STEPS, batch)
            layout = ["data.packing=false", f"trainer.micro_batch_size={batch}", f"trainer.epochs={STEPS}"]
            layout.append(f"trainer.gradient_accumulation_steps={PAIRS_PER_STEP // batch}")
            ours = self.ours(trainer, overrides, PAIRS_PER_STEP, layout)
            mine, other = ([step["loss"] for step in found["steps"]] for found in (ours, theirs))
            worst = max(abs(a - b) / max(abs(b), 1e-8) for a, b in zip(mine, other, strict=True))
            shown = " ".join(f"{value:.6f}" for value in mine), " ".join(f"{value:.6f}" for value in other)
            reason = DIFFERENT.get(name, "")
            print(f"{name:<18} arctic_hydra {shown[0]}\n{'':<18} TRL          {shown[1]}", flush=True)
            print(f"{'':<18} largest relative difference {worst:.1e}{': ' + reason if reason else ''}", flush=True)
            compared = [(a, b) for a, b in zip(ours["steps"], theirs["steps"], strict=True)][: 1 if reason else None]
            figures = self.figures(name, compared)
            print(
                f"{'':<18} largest difference of {', '.join(f'{key} {value:.1e}' for key, value in figures.items()) or 'no figure'}",
                flush=True,
            )
            if (worst < TOLERANCE) == bool(reason) or any(value > TOLERANCE for value in figures.values()):
                failed.append(name)
        if failed:
            raise SystemExit(f"differ without a reason, or agree in spite of one: {', '.join(failed)}")

    @staticmethod
    def figures(name: str, steps: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, float]:
        """Return how far apart each figure that both log is, relative where it is above 1."""
        shared = [key for key in steps[0][0] if key.startswith(FIGURES) and key in steps[0][1]]
        return {
            key: max(abs(mine[key] - other[key]) / max(abs(other[key]), 1.0) for mine, other in steps)
            for key in shared
            if not key.startswith(MEANS.get(name, "no figure"))
        }

    def time(self, pairs: int, rounds: int) -> None:
        """Print seconds per pair of one epoch of DPO: TRL's, ours in the same padded batches, and ours packed."""
        accumulation = PAIRS_PER_STEP // BATCH
        padded = ["data.packing=false", f"trainer.micro_batch_size={BATCH}", "trainer.epochs=1"]
        seen: dict[str, list[float]] = {"TRL": [], "arctic_hydra, padded": [], "arctic_hydra, packed": []}
        for _ in range(rounds):
            theirs = self.theirs("dpo", {}, pairs, pairs // PAIRS_PER_STEP)
            seen["TRL"].append(sum(theirs["seconds"]) / pairs)
            tokens = theirs["steps"][-1]["num_tokens"]
            step = [f"trainer.gradient_accumulation_steps={accumulation}"]
            for name, layout in (
                ("arctic_hydra, padded", [*padded, *step]),
                ("arctic_hydra, packed", ["trainer.micro_batch_size=4", "trainer.epochs=1", *step]),
            ):
                ours = self.ours("dpo", [], pairs, layout)
                if tokens != (own := ours["steps"][-1]["tokens"]):
                    raise SystemExit(f"unequal work: TRL trained on {tokens:,} tokens, {name} on {own:,}")
                seen[name].append(sum(ours["seconds"]) / pairs)
        theirs_s = statistics.median(seen["TRL"])
        for name, values in seen.items():
            middle = statistics.median(values)
            print(
                f"{name:<22} {1e3 * middle:7.1f} ms per pair ({1e3 * min(values):.1f} to {1e3 * max(values):.1f}), "
                f"{theirs_s / middle:.2f}x as fast as TRL (load {os.getloadavg()[0]:.1f})",
                flush=True,
            )


BATCH = 4
PAIRS_PER_STEP = 8
STEPS = 3
TOLERANCE = 1e-4
"""Relative, for losses after steps at a rate of 1e-3, with which differences of the rounding grow."""


def main() -> None:
    """Compare, then time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl", required=True, help="interpreter of an environment with TRL")
    parser.add_argument("--pairs", type=Path, default=PAIRS)
    parser.add_argument("--losses", nargs="*", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--timed-pairs", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = PairsBench(Path(folder), options.trl, options.pairs)
        bench.compare(options.losses)
        if options.rounds:
            bench.time(options.timed_pairs, options.rounds)


if __name__ == "__main__":
    main()
