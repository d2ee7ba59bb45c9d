"""How long a resume takes late in an epoch against early in it: the whole command, until one more step is done and saved.

`python tests/bench/bench_resume.py [--repeats N]`. The two kinds are interleaved; each start works on a copy of the same run
directory, and is checked to have resumed at its step and to have done exactly one more.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.command import SMALL, losses, only_run, run

ARGUMENTS = (
    f"{SMALL} tracking=[] trainer.eval_at_start=false trainer.micro_batch_size=2 checkpoint=[deepspeed] "
    "checkpoint.deepspeed.save_every_n_steps=0"
)
TARGET = 1.2


def main() -> None:
    """Prepare a run stopped at 10 % and at 90 % of its epoch, then time the same command on copies of both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        first = run(f"{ARGUMENTS} trainer.exit_iteration=1", prepare(folder, "probe"), code=75)
        [steps] = re.findall(r"stopped at step 1 of (\d+)", first.stdout)
        stops = {share: max(1, int(steps) * share // 100) for share in (10, 90)}
        for share, stop in stops.items():
            run(f"{ARGUMENTS} trainer.exit_iteration={stop}", prepare(folder, f"{share}"), code=75)
        taken: dict[int, list[float]] = {share: [] for share in stops}
        for repeat in range(options.repeats):
            for share, stop in stops.items():
                copy = folder / f"{share}-{repeat}"
                shutil.copytree(folder / f"{share}", copy)
                start = time.perf_counter()
                done = run(f"{ARGUMENTS} trainer.exit_iteration={stop + 1}", copy, code=75)
                taken[share].append(time.perf_counter() - start)
                assert f"resumed  from step-{stop:08d}" in done.stdout and len(losses(only_run(copy))) == stop + 1
    print(f"{'resumed at':<12} {'step':>6} {'median s':>9}   all")
    for share, stop in stops.items():
        each = " ".join(f"{seconds:.1f}" for seconds in taken[share])
        print(f"{share:>8} %   {stop:>6} {statistics.median(taken[share]):>9.2f}   {each}")
    ratio = statistics.median(taken[90]) / statistics.median(taken[10])
    print(f"late against early, of {steps} steps: {ratio:.2f} (target under {TARGET})")


def prepare(folder: Path, name: str) -> Path:
    """Make an empty working directory."""
    (folder / name).mkdir()
    return folder / name


if __name__ == "__main__":
    main()
