"""A local sweep in two slots against its jobs as commands one after another, and what a further job adds to a sweep.

`python -m tests.bench sweep`. All sides train the same tiny runs, one thread each, without checkpoint and tracking; their losses
are compared. What a further job adds is the eighth part of what a sweep of 12 takes more than one of 4, in one slot.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.harness import Comparison, Parts, Sample, command

TINY = (
    "model.hidden_size=64 model.intermediate_size=128 model.num_hidden_layers=2 data.max_length=256 data.num_proc=1 "
    "data.sources.chat.sample_count=40 trainer.train_iters=4 trainer.eval_at_start=false trainer.eval_at_end=false "
    "tracking=[] checkpoint=[] log.report=false"
)
JOBS, FEW, MANY = 8, 4, 12
TRAINING, FURTHER = "its training loop", "a further job of a sweep"


def comparisons(folder: Path, quick: bool) -> Iterator[Comparison]:
    """Yield both comparisons; there is no quick form, since tests/sweep compares the losses of a sweep with those of its jobs."""
    if quick:
        return
    program("name=warm", folder)  # prepares the data
    sides = {"one after another": partial(one_by_one, folder), "sweep, two slots": partial(swept, folder, JOBS, 2)}
    yield Comparison(f"{JOBS} tiny jobs", sides, _check, settings=f"{len(os.sched_getaffinity(0))} cores")
    parts = Parts(partial(further, folder))
    sides = {name: partial(parts.sample, name) for name in (TRAINING, FURTHER)}
    yield Comparison("one more job", sides, _check_further, settings="one slot")


def one_by_one(folder: Path) -> Sample:
    """Run the jobs as commands; the answer is their losses."""
    shutil.rmtree(folder / "single", ignore_errors=True)
    taken = [program(f"name=single seed={seed}", folder) for seed in range(JOBS)]
    return Sample(sum(one.wall for one in taken), sum(one.cpu for one in taken), losses(folder, "single"))


def swept(folder: Path, jobs: int, slots: int) -> Sample:
    """Run the jobs as a sweep; the answer is their losses."""
    shutil.rmtree(folder / "swept", ignore_errors=True)
    seeds = ",".join(str(seed) for seed in range(jobs))
    grid = f"-m hydra/launcher=local hydra.launcher.slots={slots} seed={seeds}"
    taken = program(f"name=swept {grid}", folder)
    return Sample(taken.wall, taken.cpu, losses(folder, "swept"))


def losses(folder: Path, name: str) -> list[list[float]]:
    """Return the losses of each run of this name, by seed."""
    return [found for found, _ in runs(folder, name)]


def further(folder: Path) -> dict[str, Sample]:
    """Return what a job of a sweep adds to it, and the part of it that is its training loop."""
    few, many = swept(folder, FEW, 1), swept(folder, MANY, 1)
    trained = [seconds for _, seconds in runs(folder, "swept")]
    loop = sum(trained) / len(trained)
    more, count = many.wall - few.wall, MANY - FEW
    answer = [len(few.answer), len(many.answer), many.answer[:FEW] == few.answer]
    added = {"ms above the loop": 1e3 * (more / count - loop)}
    cpu = (many.cpu - few.cpu) / count
    return {
        TRAINING: Sample(loop, cpu, answer, {"ms above the loop": 0.0}),
        FURTHER: Sample(more / count, cpu, answer, added),
    }


def _check(answers: dict[str, Any]) -> None:
    base, *others = answers.values()
    assert len(base) == JOBS and all(base) and all(other == base for other in others), answers


def _check_further(answers: dict[str, Any]) -> None:
    assert all(answer == [FEW, MANY, True] for answer in answers.values()), answers


def program(arguments: str, folder: Path) -> Sample:
    """Run a command of tiny jobs."""
    where = [f"output_root={folder}", f"data.cache_dir={folder / 'cache'}"]
    words = [sys.executable, "-m", "arctic_hydra", *TINY.split(), *where, *arguments.split()]
    taken = command(words, folder, {"OMP_NUM_THREADS": "1"})
    assert taken.answer[0] == 0, taken.answer[2][-2000:]
    return taken


def runs(folder: Path, name: str) -> list[tuple[list[float], float]]:
    """Return the losses of each run of this name, by seed, and the seconds of its steps."""
    found = {}
    for path in folder.glob(f"{name}/*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [row for row in rows if "loss" in row]
        seed = json.loads((path.parent / "run.json").read_text())["config"]["seed"]
        lines = zip(rows, [0, *(row["step"] for row in rows)], strict=False)
        seconds = sum(row["step_seconds"] * (row["step"] - before) for row, before in lines)
        found[seed] = ([row["loss"] for row in rows], seconds)
    return [found[seed] for seed in sorted(found)]
