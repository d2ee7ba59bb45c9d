"""How long commands take: those that start no rank, against the bare imports of Hydra, and one step, against those of torch.

`python -m tests.bench startup`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.harness import Comparison, Sample, command

HYDRA = "import hydra, omegaconf"
TORCH = "import os; os.environ['DS_ACCELERATOR'] = 'cpu'; import torch, transformers, deepspeed"
CLASS = "from transformers import LlamaForCausalLM"  # transformers imports most of itself only then
SMALL = (
    "model.hidden_size=64 model.intermediate_size=128 model.num_hidden_layers=2 data.max_length=256 data.num_proc=1 "
    "trainer.train_iters=1 trainer.eval_at_start=false trainer.eval_at_end=false fresh=true"
)
BARE = f"{SMALL} checkpoint=[] tracking=[] log.report=false"
COMMANDS = {
    # arguments: exit code, and what the output contains
    "--cfg job": (0, "optimizer:\n"),
    "--help": (0, "optimizer"),
    "optimizer.lrr=1": (2, "optimizer.lr"),
    "model=ligr": (2, "model: got 'ligr'"),
    "-sc query=zsh": (0, "trainer.epochs="),
}
TARGETS = {"--cfg job": 2.2}


def comparisons(folder: Path, quick: bool) -> Iterator[Comparison]:
    """Yield the commands without ranks, then those with one step."""
    variables = {"COMP_LINE": "arctic-hydra trainer=dpo trainer.epo"}
    wanted = {"--cfg job": COMMANDS["--cfg job"]} if quick else COMMANDS
    sides = {text: partial(program, text, folder, variables) for text in wanted}
    bare = {f"python -c '{HYDRA}'": partial(command, [sys.executable, "-c", HYDRA], folder)}
    yield Comparison("commands without ranks", {**bare, **sides}, _check_outputs, TARGETS)
    if quick:
        return
    program(BARE, folder)  # prepares the data
    steps = {"one step": BARE, "one step, checkpoint, MLflow, export and report": SMALL}
    sides = {name: partial(program, text, folder) for name, text in steps.items()}
    imports = {
        "import torch, transformers, deepspeed": TORCH,
        "the same and LlamaForCausalLM": f"{TORCH}; {CLASS}",
    }
    bare = {
        f"python -c '{name}'": partial(command, [sys.executable, "-c", text], folder) for name, text in imports.items()
    }
    targets = dict(zip(steps, (1.3, 1.8), strict=True))
    yield Comparison(
        "whole commands, warm cache", {**bare, **sides}, _check_steps, targets, "two layers of 64, to the end"
    )


def program(text: str, folder: Path, variables: dict[str, str] | None = None) -> Sample:
    """Run a command line of the package."""
    return command([sys.executable, "-m", "arctic_hydra", *text.split()], folder, variables)


def _check_outputs(answers: dict[str, Any]) -> None:
    assert next(iter(answers.values()))[0] == 0, "the bare imports failed"
    for text, (code, part) in COMMANDS.items():
        if text in answers:
            found, *outputs = answers[text]
            assert found == code and any(part in output for output in outputs), (text, answers[text])


def _check_steps(answers: dict[str, Any]) -> None:
    for name, (code, output, errors) in answers.items():
        assert code == 0 and (name.startswith("python") or "finished" in output), (name, output, errors)
