"""Distillation against fine-tuning alone, at equal steps: held-out cross-entropy of students of one size.

    python -m tests.bench.bench_distill [folder of train_sft.jsonl and test_sft.jsonl] [steps of the teacher] [steps of a student]

A teacher is fine-tuned first. Each student then begins from the same weights and sees the same batches; only its loss differs.
Without a folder, the bundled chats are used.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.command import metrics, only_run, run

TEACHER = "model.hidden_size=256 model.intermediate_size=1024 model.num_hidden_layers=4"
STUDENT = "model.hidden_size=64 model.intermediate_size=256 model.num_hidden_layers=2"
COMMON = (
    "tracking=[] log.report=false data.max_length=256 data.num_proc=1 trainer.micro_batch_size=4 trainer.eval_at_start=false "
    "optimizer.lr=2e-3"
)
STUDENTS = {
    "fine-tuning alone": "trainer=sft",
    "KL(T||S)": "trainer=distill",
    "KL(T||S), half cross-entropy": "trainer=distill trainer.ce_share=0.5",
    "KL(T||S), temperature 2, half cross-entropy": "trainer=distill trainer.ce_share=0.5 trainer.temperature=2",
    "Jensen-Shannon, beta 0.5": "trainer=distill trainer.beta=0.5",
    "KL(S||T)": "trainer=distill trainer.beta=1",
}


def trained(name: str, arguments: str, folder: Path) -> tuple[Path, dict[str, float]]:
    """Train, and return the run directory and the last evaluation."""
    run(f"{COMMON} {arguments} name={name}", folder, timeout=7200, fresh=True)
    directory = only_run(folder, name)
    return directory, [row for row in metrics(directory) if "eval/loss" in row][-1]


def main(data: str, teacher_steps: int, steps: int) -> None:
    """Train the teacher and all students, and print the evaluation of each."""
    # The same 200 conversations are held out for all.
    files = f"data=json data.sources.json.path={data}/train_sft.jsonl data.eval_sources.json.path={data}/test_sft.jsonl"
    chosen = f"{files} +source@data.eval_sources.json=json data.eval_sources.json.sample_count=200" if data else ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        length = f"trainer.epochs=0 trainer.train_iters={teacher_steps}"
        teacher, found = trained("teacher", f"{chosen} {TEACHER} {length} checkpoint=[hf]", folder)
        print(f"teacher, {teacher_steps} steps: {found['eval/loss']:.4f}, accuracy {found['eval/accuracy']:.1%}")
        print(f"students, {steps} steps each: cross-entropy, accuracy, divergence")
        for index, (label, arguments) in enumerate(STUDENTS.items()):
            path = f"trainer.teacher_path={teacher}" if "distill" in arguments else ""
            length = f"trainer.epochs=0 trainer.train_iters={steps} checkpoint=[]"
            _, found = trained(f"student{index}", f"{chosen} {STUDENT} {length} {arguments} {path}", folder)
            nll, divergence = found.get("eval/nll_loss", found["eval/loss"]), found.get("eval/kd_loss")
            rest = "" if divergence is None else f"  {divergence:.4f}"
            print(f"  {label:45s} {nll:.4f}  {found['eval/accuracy']:.1%}{rest}", flush=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    main(given[0] if given else "", *(int(number) for number in (given[1:3] or (600, 300))))
