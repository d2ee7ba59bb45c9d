"""Logging: one file per rank in the run directory, and standard error for ranks that print."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path

from arctic_hydra.distributed import World
from arctic_hydra.files.state_file import APPEND, open_regular
from arctic_hydra.redaction import mask

FORMAT = "%(asctime)s %(levelname)s [rank %(rank)s] %(name)s: %(message)s"
SAID = "arctic_hydra.said"
"""Logger of what the display has printed already, so that only the file gets its records."""
CHATTY_LIBRARIES = (
    "deepspeed",
    "DeepSpeed",
    "alembic",
    "mlflow",
    "datasets",
    "httpx",
    "filelock",
    "urllib3",
    "torch",
    "fsspec",
)


def start(run_dir: Path, world: World, level: str, *, to_file: bool, to_terminal: bool) -> None:
    """Log to `logs/rank<n>.log` below `run_dir` and to standard error.

    Records of other libraries are included from WARNING in the file and from ERROR on the terminal.
    """
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(logging.WARNING)
    context = _RankFilter(world.rank)
    if to_file:
        folder = run_dir / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank{world.rank}.log"
        file_handler = _OwnFileHandler(path)
        file_handler.setFormatter(_MaskingFormatter(FORMAT))
        file_handler.addFilter(context)
        root.addHandler(file_handler)
        # The launcher sends SIGUSR1 when another rank has failed and this one does not exit.
        faulthandler.register(signal.SIGUSR1, file=open_regular(path, APPEND), all_threads=True)
    if to_terminal:
        root.addHandler(_terminal_handler(context, "" if world.size == 1 else "[rank %(rank)s] "))
    logging.getLogger("arctic_hydra").setLevel(level)
    for name in CHATTY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)


class _OwnFileHandler(logging.FileHandler):
    """Appends to a file, but not through a link, which could lead out of the run directory."""

    def _open(self) -> TextIOWrapper:
        descriptor = open_regular(Path(self.baseFilename), APPEND)
        return open(descriptor, "a", encoding="utf-8", errors="backslashreplace")


class _MaskingFormatter(logging.Formatter):
    """Masks secrets in messages, including those of other libraries, and in tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return mask(super().format(record))


class _TerminalHandler(logging.Handler):
    """Writes to standard error, or above the progress bar if there is one."""

    say: Callable[[str], None] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if _TerminalHandler.say is not None:
            _TerminalHandler.say(text)
        else:
            print(text, file=sys.stderr, flush=True)


def _terminal_handler(context: _RankFilter, start: str = "") -> _TerminalHandler:
    terminal = _TerminalHandler()
    terminal.setFormatter(_MaskingFormatter(f"{start}%(kind)s%(message)s"))
    terminal.addFilter(context)
    terminal.addFilter(_only_ours)
    return terminal


def set_terminal(say: Callable[[str], None] | None) -> None:
    """Print terminal records with `say`, which prints above the progress bar; None restores standard error."""
    _TerminalHandler.say = staticmethod(say) if say else None


class _RankFilter(logging.Filter):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def filter(self, record: logging.LogRecord) -> bool:
        record.rank = self.rank
        record.kind = "warning: " if record.levelno == logging.WARNING else ""
        return True


def _only_ours(record: logging.LogRecord) -> bool:
    if record.name == SAID:
        return False
    return record.name.startswith("arctic_hydra") or record.levelno >= logging.ERROR


def quiet_libraries() -> None:
    """Set environment variables that reduce the output of other libraries on import; values set by the user win."""
    for name, value in {
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "DS_LOG_LEVEL": "error",
        "DEEPSPEED_LOG_LEVEL": "error",
    }.items():
        os.environ.setdefault(name, value)


def quiet_warnings() -> None:
    """Print warnings of this package alone, in a process that talks to the user instead of calling `start`."""
    root = logging.getLogger()
    root.setLevel(logging.ERROR)
    if not root.handlers:
        root.addHandler(_terminal_handler(_RankFilter(0)))
    logging.getLogger("arctic_hydra").setLevel(logging.WARNING)
    logging.captureWarnings(True)


def quiet_progress_bars() -> None:
    """Disable the progress bars of other libraries, which would overwrite ours."""
    import transformers

    # datasets reads the variable when it is imported, which not every run does.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if datasets := sys.modules.get("datasets"):
        datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
