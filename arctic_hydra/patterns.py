"""Regular expressions over parameter names, matched anywhere in a name."""

from __future__ import annotations

import difflib
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from arctic_hydra.errors import ConfigError
from arctic_hydra.human_numbers import shorten

_SHOWN = 3
PATTERN_ERRORS = (re.error, OverflowError, RecursionError)
"""What `re.compile` raises: for wrong syntax, for a repetition count that is too large, and for groups nested too deeply."""
MAX_SECONDS = 20.0
"""CPU time of the process for one pattern; nested repetitions can take exponential time."""


def check_patterns(field: str, patterns: list[str]) -> None:
    """Raise ValueError, starting with the field's name, for a pattern that is empty or not a valid regular expression."""
    for pattern in patterns:
        try:
            if not pattern:
                raise ValueError(
                    f"{field}: got an empty pattern, which matches everything; expected a regular expression such as 'layers.0.'"
                )
            re.compile(pattern)
        except PATTERN_ERRORS as error:
            raise ValueError(
                f"{field}: got {shorten(pattern)}, which is not a valid regular expression ({error}); expected one such as 'layers.0.'"
            ) from error


def matching(key: str, patterns: list[str], names: Iterable[str]) -> set[str]:
    """Return the names that match any of the patterns.

    Raises ConfigError for patterns that match no name, since they would have no effect. `key` is the full config key.
    """
    names = list(names)
    found = {}
    for pattern in patterns:
        with time_limit(f"{key}: got {shorten(pattern)}", "the parameters' names"):
            found[pattern] = {name for name in names if re.search(pattern, name)}
    if idle := [pattern for pattern in patterns if not found[pattern]]:
        raise ConfigError([f"{key}: {pattern!r} matches no parameter{near_names(pattern, names)}" for pattern in idle])
    return set().union(*found.values())


def near_names(pattern: str, names: Iterable[str]) -> str:
    """Return a hint for an error message: names with a part similar to the last word of the pattern, else the first few."""
    names = list(names)
    words = re.findall(r"[A-Za-z_]\w*", pattern)
    parts = {part: name for name in reversed(names) for part in name.split(".")}
    near = difflib.get_close_matches(words[-1], parts, n=_SHOWN, cutoff=0.5) if words else []
    if near:
        return f"; did you mean {' or '.join(f'{part!r} (as in {parts[part]})' for part in near)}?"
    return f"; the names are such as {', '.join(names[:_SHOWN])}" if names else "; there are none"


@contextmanager
def time_limit(got: str, searched: str) -> Iterator[None]:
    """Raise ConfigError after `MAX_SECONDS` of CPU time; `re` looks for signals while it works. No limit in other threads."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    try:
        yield
    except TimeoutError as error:
        raise ConfigError(
            [
                f"{got}, which takes more than {MAX_SECONDS:g} s on {searched}; expected a pattern without repetitions of "
                "repetitions such as (a+)+"
            ]
        ) from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)
