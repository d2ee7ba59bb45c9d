"""The process that `arctic_hydra.run` and `arctic_hydra.sweep` start: `python -m arctic_hydra.api`, with an order on standard input.

It does what the command line does, but its error goes into a file. When the process that started it dies, it stops as SIGTERM
stops it, so that the run can be resumed.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from arctic_hydra.cli import command_line, multirun, user_code
from arctic_hydra.cli.run import run_one
from arctic_hydra.errors import ArcticHydraError, shown_problems
from arctic_hydra.launch.child import die_with_parent


def main() -> int:
    """Execute the order; return the exit code of the command line."""
    die_with_parent(signal.SIGTERM)
    order: dict[str, Any] = json.load(sys.stdin)

    def command() -> int:
        user_code.load(order["arguments"])
        if "tree" in order:
            return run_one(order["tree"], order["arguments"])
        return multirun.run_sweep(order["overrides"], order["config_name"], order["config_dir"], run_one)

    def report(error: ArcticHydraError) -> None:
        Path(order["problems"]).write_text(json.dumps(shown_problems(error)), encoding="utf-8")

    return command_line.exit_code(command, order["arguments"], report)


if __name__ == "__main__":
    raise SystemExit(main())
