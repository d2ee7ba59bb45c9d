"""`task=check`: what the run would need of each rank's memory.

Runs in a process of its own, which may import torch: `python -m arctic_hydra.tasks.check`, the config as JSON on its
standard input. Nothing is written, and no weights are read.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from arctic_hydra.config import Run


def print_estimate(tree: dict[str, Any]) -> None:
    """Print the memory estimate of a resolved config, made in a child process."""
    command = [sys.executable, "-W", "ignore", "-m", "arctic_hydra.tasks.check"]
    done = subprocess.run(command, input=json.dumps(tree), capture_output=True, text=True, check=False)
    reason = (done.stderr.strip().splitlines() or ["its process ended without a word"])[-1]
    print(done.stdout.rstrip() if done.returncode == 0 else f"memory   not estimated: {reason}")


def describe(run: Run, supervised_share: float = 1.0) -> list[str]:
    """Return the lines of the estimate, or why there is none: an estimate that fails must not end a run."""
    from arctic_hydra import memory

    try:
        found = memory.estimate(run, memory.largest_load(run, supervised_share))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return [f"memory   not estimated: {reason}"]
    first, *more = found.lines(memory.device_memory())
    return [f"memory   {first}", *(f"         {line}" for line in more)]


def _main() -> None:
    from arctic_hydra import component, config, log

    log.quiet_libraries()
    log.quiet_progress_bars()
    component.load_extensions()
    run = config.build(json.load(sys.stdin))
    print("\n".join([*describe(run), "         (every token supervised; the run says so again with its data's share)"]))


if __name__ == "__main__":
    _main()
