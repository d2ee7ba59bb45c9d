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
    directory: Path | None = None
    """Directory of the sweep, once it is known."""
    crashed: bool = False
    """Whether a signal or an unexpected exception ended it before the command had an exit code."""

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
    child: subprocess.Popen[bytes] | None = None
    # Into a file, since writing to a pipe fails when this process has died, and the run then has a checkpoint to save.
    with TemporaryDirectory(prefix="arctic_hydra-") as scratch, TemporaryFile() as printed:
        answer = Path(scratch) / "answer.json"
        shows = progress and sys.stdout is not None and not getattr(sys.stdout, "closed", False)
        lines = _Lines(printed, Output().line if shows else None)
        try:
            child = _start(folder, printed)
            _pass(json.dumps({**order, "answer": str(answer)}), child)
            while child.poll() is None:
                try:
                    lines.follow()
                    time.sleep(POLL_SECONDS)
                except KeyboardInterrupt:
                    interrupted = True
                    child.send_signal(signal.SIGINT)
        finally:
            if child is not None and child.poll() is None:
                child.terminate()  # the caller raised another exception
                _wait(child)
        lines.end()
        told = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {}
    problems, directory = told.get("problems", []), told.get("directory")
    return Ended(
        child.returncode,
        problems,
        list(lines.last),
        interrupted,
        directory=Path(directory) if directory else None,
        crashed="code" not in told and not problems,
    )


def _start(folder: Path, printed: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *python_flags(folder), "-u", "-m", "arctic_hydra.api"],
        cwd=folder,
        env={**os.environ, PARENT_VARIABLE: str(os.getpid()), "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.PIPE,
        stdout=printed,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a notebook sends Ctrl-C to the group of its processes
    )


def _pass(order: str, child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None, "a pipe"
    try:
        with child.stdin as stdin:
            stdin.write(order.encode())
    except BrokenPipeError:
        pass  # it has exited, and its output says why


def _wait(child: subprocess.Popen[bytes]) -> None:
    """Wait until the child ends; Ctrl-C meanwhile is passed on, and ends it at once."""
    while child.poll() is None:
        try:
            child.wait()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)


class _Lines:
    """The lines of a file that another process writes."""

    def __init__(self, file: IO[bytes], show: Callable[[str | None], None] | None) -> None:
        self.last: deque[str] = deque(maxlen=_LAST_LINES)
        """The last lines so far."""
        self._file, self._show = file, show
        self._position = 0  # of the first line that was not shown yet

    def follow(self) -> None:
        """Show the lines that were written since the last call."""
        for line in self._new().split(b"\n")[:-1]:
            self._position += len(line) + 1  # one by one, since Ctrl-C may come between two lines
            self._line(line)

    def end(self) -> None:
        """Show the remaining lines, the last of which may be incomplete."""
        self.follow()
        if rest := self._new():
            self._line(rest)
        self._pass_on(None)

    def _new(self) -> bytes:
        descriptor = self._file.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size - self._position, self._position)

    def _line(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        self.last.append(text)
        self._pass_on(text)

    def _pass_on(self, text: str | None) -> None:
        try:
            if self._show is not None:
                self._show(text)
        except (OSError, ValueError):  # standard output was closed, which must not end the run
            self._show = None


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
            start = f"{start}{text.ljust(width)}{end}"
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        sys.stdout.write(start.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
