"""The program as a child process: it shows its output as it comes, passes Ctrl-C on, and takes the error.

A process of its own leaves the caller's working directory, streams, signal handlers and umask alone, and works from any thread.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

from arctic_hydra import python_flags
from arctic_hydra.errors import EXIT_BAD_CONFIG, ConfigError, RunFailed
from arctic_hydra.launch.child import PARENT_VARIABLE

POLL_SECONDS = 0.1
_LAST_LINES = 15
"""Lines of the output that an error without any other text shows."""


@dataclass(frozen=True)
class Ended:
    """How the child ended."""

    code: int
    """Its exit code, negative for a signal."""
    problems: list[str]
    """The error that the program itself reported, if it did."""
    output: list[str]
    """The last lines that it printed."""
    interrupted: bool
    """Whether Ctrl-C asked it to stop."""

    def error(self) -> ConfigError | RunFailed | None:
        """Return the error that the program itself reported."""
        if not self.problems:
            return None
        return ConfigError(self.problems) if self.code == EXIT_BAD_CONFIG else RunFailed("\n".join(self.problems))


def execute(order: dict[str, Any], folder: Path, *, progress: bool) -> Ended:
    """Run `python -m arctic_hydra.api` with an order in a folder until it ends; print its output if `progress`.

    Ctrl-C asks it to stop at the next step, and again to end at once.
    """
    interrupted = False
    # Into a file, since writing to a pipe fails when this process has died, and the run then has a checkpoint to save.
    with TemporaryDirectory(prefix="arctic_hydra-") as scratch, TemporaryFile() as printed:
        problems = Path(scratch) / "problems.json"
        lines = _Lines(printed, Output().line if progress else None)
        child = _start({**order, "problems": str(problems)}, folder, printed)
        try:
            while child.poll() is None:
                try:
                    lines.follow()
                    time.sleep(POLL_SECONDS)
                except KeyboardInterrupt:
                    interrupted = True
                    child.send_signal(signal.SIGINT)
        finally:
            if child.poll() is None:
                child.terminate()  # the caller raised another exception
                child.wait()
        lines.end()
        told = json.loads(problems.read_text(encoding="utf-8")) if problems.exists() else []
    return Ended(child.returncode, told, list(lines.last), interrupted)


def _start(order: dict[str, Any], folder: Path, printed: IO[bytes]) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, *python_flags(), "-u", "-m", "arctic_hydra.api"],
        cwd=folder,
        env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
        stdin=subprocess.PIPE,
        stdout=printed,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a notebook sends Ctrl-C to the group of its processes
    )
    assert child.stdin is not None, "a pipe"
    try:
        with child.stdin as stdin:
            stdin.write(json.dumps(order).encode())
    except BrokenPipeError:
        pass  # it has exited, and its output says why
    return child


class _Lines:
    """The lines of a file that another process writes."""

    def __init__(self, file: IO[bytes], show: Callable[[str | None], None] | None) -> None:
        self.last: deque[str] = deque(maxlen=_LAST_LINES)
        """The last lines so far."""
        self._file, self._show = file, show
        self._position, self._begun = 0, b""

    def follow(self) -> None:
        """Show the lines that were written since the last call."""
        while content := os.pread(self._file.fileno(), 1 << 16, self._position):
            self._position += len(content)
            *lines, self._begun = (self._begun + content).split(b"\n")
            for line in lines:
                self._line(line)

    def end(self) -> None:
        """Show the remaining lines, the last of which may be incomplete."""
        self.follow()
        if self._begun:
            self._line(self._begun)
        if self._show is not None:
            self._show(None)

    def _line(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        self.last.append(text)
        if self._show is not None:
            self._show(text)


class Output:
    """Prints lines to standard output; on a terminal or in a notebook, the lines of steps replace each other."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._replaces = self._is_terminal or "ipykernel" in sys.modules
        self._open = 0  # length of the line that the next one may replace

    def line(self, text: str | None) -> None:
        """Print a line; None ends the last one."""
        if text is not None and self._replaces and text.startswith("step "):
            if self._is_terminal:  # a line that wraps cannot be replaced
                text = text[: get_terminal_size().columns - 1]
            start, end, width = "\r" if self._open else "", "", self._open
            self._open = len(text)
        else:
            start, end, width = "\n" if self._open else "", "\n", 0
            self._open = 0
        if text is not None:
            sys.stdout.write(f"{start}{text.ljust(width)}{end}")
        else:
            sys.stdout.write(start)
        sys.stdout.flush()
