"""How long a resume takes late in an epoch against early in it: the whole command, until one more step is done and saved.

`python -m tests.bench resume`. Each start works on a copy of the same run directory, and is checked to have resumed at its
step and to have done exactly one more.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.harness import Comparison, Sample, command
from tests.command import SMALL, losses, only_run

ARGUMENTS = (
    f"{SMALL} tracking=[] trainer.eval_at_start=false trainer.micro_batch_size=2 checkpoint=[deepspeed] "
    "checkpoint.deepspeed.save_every_n_steps=0"
)


def comparisons(folder: Path, quick: bool) -> Iterator[Comparison]:
    """Yield the one comparison, of runs stopped at 10 % and at 90 % of their epoch; it has no quick form."""
    if quick:
        return
    _, output, _ = stopped_at(1, folder / "probe").answer
    [steps] = re.findall(r"stopped at step 1 of (\d+)", output)
    sides = {}
    for share in (10, 90):
        stop, start = max(1, int(steps) * share // 100), folder / f"{share}"
        stopped_at(stop, start)
        sides[f"resumed at {share} %"] = partial(resumed, start, stop)
    yield Comparison(f"resume within an epoch of {steps} steps", sides, _check, {"resumed at 90 %": 1.2})


def stopped_at(step: int, folder: Path) -> Sample:
    """Train until a step, from the last checkpoint in a folder if there is one."""
    folder.mkdir(exist_ok=True)
    return command([sys.executable, "-m", "arctic_hydra", *ARGUMENTS.split(), f"trainer.exit_iteration={step}"], folder)


def resumed(start: Path, stop: int) -> Sample:
    """Resume a copy for one step; the answer is whether it did just that."""
    copy = start.with_name(f"{start.name}-copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(start, copy)
    taken = stopped_at(stop + 1, copy)
    code, output, _ = taken.answer
    good = code == 75 and f"resumed  from step-{stop:08d}" in output and len(losses(only_run(copy))) == stop + 1
    return Sample(taken.wall, taken.cpu, good or taken.answer)


def _check(answers: dict[str, Any]) -> None:
    assert all(answer is True for answer in answers.values()), answers
