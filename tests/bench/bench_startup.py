"""How long the command takes before any rank starts: help, the composed config, typos, and the answer to TAB.

Prints the best and the median of several runs of each, beside the time of an empty interpreter, and writes nothing.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REPEATS = 15
TARGET_SECONDS = 0.6
CASES = {
    "python -c pass": ["-c", "pass"],
    "--help": ["-m", "arctic_hydra", "--help"],
    "--cfg job": ["-m", "arctic_hydra", "--cfg", "job"],
    "optimizer.lrr=1": ["-m", "arctic_hydra", "optimizer.lrr=1"],
    "model=ligr": ["-m", "arctic_hydra", "model=ligr"],
    "TAB": ["-m", "arctic_hydra", "-sc", "query=zsh"],
}


def main() -> None:
    """Time each case `REPEATS` times, interleaved, so that a busy moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(REPEATS):
            for name, arguments in CASES.items():
                start = time.perf_counter()
                variables = {"PYTHONPATH": str(ROOT), "COMP_LINE": "arctic-hydra trainer=dpo trainer.epo"}
                subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, env=variables)
                times[name].append(time.perf_counter() - start)
    for name, taken in times.items():
        print(
            f"{name:<20} best {min(taken):.3f} s  median {statistics.median(taken):.3f} s  (target {TARGET_SECONDS} s)"
        )


if __name__ == "__main__":
    main()
