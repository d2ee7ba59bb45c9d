"""One rank: builds the run from `run.json` and executes it, without composing anything.

Started as `python -m arctic_hydra.worker <run.json>`, once per rank, with the `code=` of the command if there is one.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from arctic_hydra import redaction
from arctic_hydra.errors import EXIT_FAILED, ArcticHydraError, StateFileError
from arctic_hydra.files import code_file
from arctic_hydra.files.extensions import load_extensions
from arctic_hydra.launch.child import SECRETS_VARIABLE, die_with_parent
from arctic_hydra.redaction.trees import learn_secrets, restore
from arctic_hydra.run_directory import write_error
from arctic_hydra.stopping import StopRequest, block_signals


def main() -> NoReturn:
    """Run this rank and exit with its exit code."""
    block_signals()
    die_with_parent()
    redaction.protect()
    run_file = Path(sys.argv[1])
    try:
        outcome = _run(run_file)
    except BaseException as error:
        code = 1
        try:
            code = write_error_report(run_file.parent, error)
            sys.stdout.flush()
        finally:
            os._exit(code)  # no cleanup, which could block in a collective whose other ranks have exited
    sys.stdout.flush()
    sys.stderr.flush()
    # A rank that stopped early also exits with 0, else the agent would count a failure; result.json has the status.
    # os._exit does not wait for the threads of libraries.
    os._exit(0 if outcome else 1)


def _run(run_file: Path) -> dict[str, Any]:
    from arctic_hydra import config, display, log, run_directory
    from arctic_hydra.distributed import World, choose_accelerator

    log.quiet_libraries()
    choose_accelerator()
    load_extensions()
    code_file.take(sys.argv[2:])
    clean = run_directory.RunDirectory(run_file.parent).config()
    if clean is None:
        raise StateFileError(f"{run_file}: is missing; repeat the command of the run, which writes it again")
    tree = restore(clean, json.loads(os.environ.pop(SECRETS_VARIABLE, "{}")))
    learn_secrets(tree, clean)
    run = config.build(tree)
    run_dir = run_file.parent
    switch = run.trainer.kill_switch_path
    stop = StopRequest(Path(switch or run_dir / "STOP"), is_ours=switch is None)
    stop.watch_signals()

    world = World.from_env()
    with display.shown(run.log.prints(world), world.is_main), display.phase("start", transient=True):
        from arctic_hydra import tasks  # imports torch, which takes seconds

        outcome = tasks.run_task(run, run_dir, stop)
    if world.is_main:
        run_directory.RunDirectory(run_dir).write_result(outcome)
    return outcome


def write_error_report(run_dir: Path, error: BaseException) -> int:
    """Write the error of this rank to `logs/error-rank<n>.json` and to its log; return the exit code.

    If that fails, as on a full disk, it is printed.
    """
    import logging

    rank = int(os.environ.get("RANK", 0))
    code = error.exit_code if isinstance(error, ArcticHydraError) else EXIT_FAILED
    text = "".join(traceback.format_exception(error))
    logging.getLogger("arctic_hydra.worker").debug("rank %d ends: %s", rank, text)
    try:
        write_error(
            run_dir,
            rank,
            type(error).__name__,
            str(error),
            problems=error.problems if isinstance(error, ArcticHydraError) else [str(error)],
            expected=isinstance(error, ArcticHydraError),
            traceback=text,
            exit_code=code,
        )
    except OSError as failure:
        print(f"cannot write the error of rank {rank} to {run_dir / 'logs'} ({failure}):\n{text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
