"""One epoch of the 957 bundled chats against TRL's SFTTrainer: the whole command, and its training alone.

`python -m tests.bench epoch`; `nox -s peers` makes the environment of TRL, without which there is nothing to compare. Both start
from the same weights on the same rows, train on equally many supervised tokens, and end with nothing but the log. Our
rows are in packs of 2,048 tokens; TRL pads batches of 4, in random order and, its best setting on a CPU, by length.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import models
from tests.bench.harness import Comparison, Sample, command, peer

TRL, GROUPED, OURS = "TRL, batches of 4", "TRL, batches of 4 by length", "packs"


def comparisons(folder: Path, quick: bool) -> Iterator[Comparison]:
    """Yield the comparison of commands, then that of their training, from the same runs."""
    python = peer("trl")
    if python is None:
        return
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1} if quick else {}
    model, rows = models.write_model(folder, **small), models.write_rows(folder, 16 if quick else 957)
    about = (
        f"{len(rows.read_text().splitlines())} chats, 5 M parameters, fp32, AdamW; our data is prepared anew each time"
    )
    runs = {}
    for name in (TRL, GROUPED):
        settings = models.write_settings(folder, model, rows, batch=4, grouped=name == GROUPED, evaluate=False)
        runs[name] = Epoch(partial(theirs, python, settings, folder))
    runs[OURS] = Epoch(partial(ours, model, rows, folder))
    yield Comparison("one epoch, command", {name: run.whole for name, run in runs.items()}, _check, {OURS: 0.5}, about)
    sides = {name: run.part for name, run in runs.items()}
    yield Comparison(
        "one epoch, training", sides, _check, {OURS: 0.5}, "the same runs; CPU time is that of the commands"
    )


class Epoch:
    """Runs of one side: each is a sample of the command, and later one of its training."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._parts: list[Sample] = []

    def whole(self) -> Sample:
        """Run the command."""
        taken, training = self._run()
        self._parts.append(training)
        return Sample(taken.wall, taken.cpu, training.answer)

    def part(self) -> Sample:
        """Return the training of the first command that has not been asked for."""
        return self._parts.pop(0)


def theirs(python: str, settings: Path, folder: Path) -> tuple[Sample, Sample]:
    """Train with TRL; return the command and its training."""
    shutil.rmtree(folder / "trl", ignore_errors=True)
    taken = command([python, "-m", "tests.bench.peers.trl_train", str(settings)], folder)
    code, output, errors = taken.answer
    assert code == 0, errors[-2000:]
    found = json.loads(output.splitlines()[-1])
    return taken, Sample(found["seconds"], taken.cpu, found["tokens"])


def ours(model: Path, rows: Path, folder: Path) -> tuple[Sample, Sample]:
    """Train with this package; return the command and its training."""
    shutil.rmtree(folder / "ours", ignore_errors=True)
    more = [f"output_root={folder / 'ours'}", f"data.cache_dir={folder / 'ours' / 'cache'}"]
    arguments = [*models.overrides(model, rows, evaluate=False), *more]
    taken = command([sys.executable, "-m", "arctic_hydra", *arguments], folder)
    code, _, errors = taken.answer
    assert code == 0, errors[-2000:]
    [path] = (folder / "ours").glob("*/*/metrics.jsonl")
    steps = [row for row in map(json.loads, path.read_text().splitlines()) if "loss" in row]
    lines = zip(steps, [0, *(row["step"] for row in steps)], strict=False)
    seconds = sum(row["step_seconds"] * (row["step"] - before) for row, before in lines)
    return taken, Sample(seconds, taken.cpu, steps[-1]["supervised_tokens"])


def _check(answers: dict[str, Any]) -> None:
    base, *others = answers.values()
    assert base > 0 and all(tokens == base for tokens in others), answers
