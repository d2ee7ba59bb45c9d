"""Runs the command of an entry point, such as `python -m arctic_hydra`, and maps its errors to exit codes."""

from __future__ import annotations

import atexit
import errno
import os
import sys
from collections.abc import Callable, Sequence

from arctic_hydra import redaction
from arctic_hydra.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_STOPPED_EARLY,
    ArcticHydraError,
    ConfigError,
    print_error,
)
from arctic_hydra.stopping import ignore_signals


def exit_code(
    command: Callable[[], int], arguments: Sequence[str] = (), report: Callable[[ArcticHydraError], None] = print_error
) -> int:
    """Run a command that this process was started for; return its exit code, after its error was passed to `report`.

    Secrets, among them those of `arguments`, are masked in all that the command prints.
    """
    redaction.protect(arguments)
    try:
        if not _has_working_directory():
            raise ConfigError("the working directory no longer exists; change to another")
        code = command()
        sys.stdout.flush()  # the interpreter would report a closed pipe in its own words
        if code == EXIT_STOPPED_EARLY:
            atexit.register(ignore_signals)  # another one while the interpreter exits would replace the exit code
        return code
    except ArcticHydraError as error:
        report(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f"{error.filename}: " if error.filename else ""
            advice = "free space, or write to a larger disk (output_root=<folder> for a run)"
            report(ArcticHydraError(f"{where}{error.strerror}; {advice}"))
            return EXIT_FAILED
        if not isinstance(error, BrokenPipeError):
            raise
        # The reader closed the pipe, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _has_working_directory() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False
