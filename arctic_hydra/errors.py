"""Errors that users can act on, and their exit codes."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from arctic_hydra.redaction import mask

if TYPE_CHECKING:
    from arctic_hydra.api.loaded_run import LoadedRun

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_CONFIG = 2
EXIT_INTERRUPTED = 130
EXIT_STOPPED_EARLY = 75  # EX_TEMPFAIL: stopped with a resumable checkpoint


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint that ends an error message: the known word most similar to `word`; empty if none is similar."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


class ArcticHydraError(Exception):
    """Base of the errors whose text is shown to the user without a traceback."""

    exit_code = EXIT_FAILED

    @property
    def problems(self) -> list[str]:
        """Each problem by itself; one, unless a subclass collects several."""
        return [str(self)]


class ConfigError(ArcticHydraError, ValueError):
    """The config is invalid; holds every problem found, not only the first.

    Each problem is one string: where (full config key), what it got, what it expected, what to do.
    """

    exit_code = EXIT_BAD_CONFIG

    def __init__(self, problems: str | Sequence[str]) -> None:
        self._problems = [problems] if isinstance(problems, str) else list(problems)
        assert self._problems, "a ConfigError needs at least one problem"
        super().__init__("\n".join(self._problems))

    @property
    def problems(self) -> list[str]:
        """Every problem found."""
        return self._problems


class FieldError(ConfigError):
    """One or more fields of one component have an invalid value; keys are relative to the component.

    `config.build` turns `lr` into `optimizer.lr` before the error is shown.
    """

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.fields = list(problems)
        super().__init__([f"{name}: {text}" for name, text in problems])


class DataError(ArcticHydraError, ValueError):
    """The data cannot be used: a file is missing or damaged, a row is malformed, or no example is left."""


class ModelError(ArcticHydraError, ValueError):
    """The model or tokenizer cannot be loaded or does not fit the rest of the run."""


class CheckpointError(ArcticHydraError, RuntimeError):
    """A checkpoint could not be written, or none of the existing ones can be loaded."""


class RunLockedError(ArcticHydraError, RuntimeError):
    """Another live process holds the run directory."""


class UnsafePathError(ArcticHydraError, ValueError):
    """A directory is a link, another user's, or writable by others, so it is neither trusted nor emptied."""


class StateFileError(ArcticHydraError, ValueError):
    """A file that the package wrote earlier cannot be used.

    `damaged` is true if only the content is wrong, so that the file may be replaced.
    """

    def __init__(self, text: str, *, damaged: bool = False) -> None:
        super().__init__(text)
        self.damaged = damaged


class RunFailed(ArcticHydraError, RuntimeError):
    """A run that `arctic_hydra.run` started has failed; its text is the error of the rank that failed first."""

    run: LoadedRun | None
    """The failed run; None if it was refused before it had a directory."""

    def __init__(self, text: str, run: LoadedRun | None = None) -> None:
        super().__init__(text)
        self.run = run


class DuplicateOption(ValueError):
    """A class was to be registered as an option that exists; its second argument is the group and the name of the option."""

    def __str__(self) -> str:
        return str(self.args[0])


def print_error(error: ArcticHydraError) -> None:
    """Print each problem to standard error, see `shown_problems`."""
    for text in shown_problems(error):
        print(f"error: {text}", file=sys.stderr)


def shown_problems(error: ArcticHydraError) -> list[str]:
    """Return each problem with its secrets masked, those of a config on one line each."""
    keep = "" if isinstance(error, ConfigError) else "\n\t"
    return [printable(mask(problem), keep=keep) for problem in error.problems]


def describe(error: BaseException) -> str:
    """Return type, message and place of an error in code of a user, on one line."""
    text = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    ours = os.path.dirname(__file__)
    frames = [
        item for item in traceback.extract_tb(error.__traceback__) if not item.filename.startswith((ours, "<frozen"))
    ]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"


def printable(text: str, keep: str = "\n\t") -> str:
    """Return text whose control characters and lone surrogates, other than those in `keep`, are written as escapes.

    Values in a message may come from a file or a command line; as they are, they could steer the terminal.
    """
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode()
        for letter in text
    )
