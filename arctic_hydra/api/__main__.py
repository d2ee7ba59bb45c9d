"""The process that `arctic_hydra.run` and `arctic_hydra.sweep` start: `python -m arctic_hydra.api`, with an order on standard input.

It does what the command line does, and answers in a file: with its directory, its error and its exit code. When the process that
started it dies, it stops as SIGTERM stops it, so that the run can be resumed.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from arctic_hydra import entry_point
from arctic_hydra.cli import multirun, user_code
from arctic_hydra.cli.composition.compose import with_paths
from arctic_hydra.cli.run import run_job
from arctic_hydra.errors import ConfigError, shown_problems
from arctic_hydra.launch.child import die_with_parent
from arctic_hydra.launch.job import Job


def main() -> int:
    """Execute the order; return the exit code of the command line."""
    die_with_parent(signal.SIGTERM)
    order: dict[str, Any] = json.load(sys.stdin)
    told: dict[str, Any] = {}

    def tell(**values: Any) -> None:
        told.update(values)
        with suppress(FileNotFoundError):  # the process that started this one has ended
            Path(order["answer"]).write_text(json.dumps(told), encoding="utf-8")

    def command() -> int:
        user_code.load(order["code"])  # the arguments may come from the record of an extended run, which names no code
        for line in order["notes"]:
            print(f"default  {line}", flush=True)
        code = _run(order) if "tree" in order else _sweep(order, tell)
        tell(code=code)
        return code

    return entry_point.exit_code(command, order["arguments"], lambda error: tell(problems=shown_problems(error)))


def _run(order: dict[str, Any]) -> int:
    job = Job.of(with_paths(order["tree"]), order["arguments"])
    if str(job.directory.path) != order["directory"]:
        raise ConfigError(
            f"the run was composed for {order['directory']}, but would now run in {job.directory.path}: the number of GPUs, or "
            "another property of the machine, has changed since; compose it again"
        )
    return run_job(job)


def _sweep(order: dict[str, Any], tell: Callable[..., None]) -> int:
    plan = multirun.SweepPlan(multirun.Multirun(order["overrides"], order["config_name"], order["config_dir"]))
    sweep = plan.sweep()
    tell(directory=str(sweep.path))
    return multirun.run_jobs(plan, sweep)


if __name__ == "__main__":
    raise SystemExit(main())
