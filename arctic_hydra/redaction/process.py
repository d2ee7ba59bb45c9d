"""Start-up of every process: masks secrets in its output, and makes new files private."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO, cast

from arctic_hydra.redaction import masking

_PRIVATE = 0o077
_umask_of_user: int | None = None


def protect(overrides: Sequence[str] = ()) -> None:
    """Mask secrets, among them those of `overrides`, in all that this process prints; create files that only their owner
    can read. A second call adds the secrets of its overrides."""
    global _umask_of_user
    before = os.umask(_PRIVATE)
    _umask_of_user = before if _umask_of_user is None else _umask_of_user
    masking.learn_overrides(overrides)
    for name in ("stdout", "stderr"):
        # Python has no stream for a closed descriptor, as of `>&-`; the next file opened would take its place.
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115  # as long as the process lives
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # for characters that the encoding of the terminal lacks
        if not isinstance(stream, MaskingStream):
            setattr(sys, name, cast(TextIO, MaskingStream(stream)))


@contextmanager
def umask_of_user() -> Iterator[None]:
    """Create files with the modes that the user chose: caches of other libraries may be shared by several users."""
    private = os.umask(_PRIVATE)
    os.umask(private if _umask_of_user is None else _umask_of_user)
    try:
        yield
    finally:
        os.umask(private)


class MaskingStream:
    """A text stream that masks secrets; everything except writing is left to the stream behind it.

    What is written to a terminal that has been closed is dropped: the run saves and stops after its SIGHUP, or goes on.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._was_terminal = stream.isatty()

    def write(self, text: str) -> int:
        """Write `text` with its secrets masked, and return its length as if all of it was written."""
        with self._surviving_terminal():
            self._stream.write(masking.mask(text))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with self._surviving_terminal():
            self._stream.flush()

    def writelines(self, lines: Sequence[str]) -> None:
        """Write each line."""
        for line in lines:
            self.write(line)

    @contextmanager
    def _surviving_terminal(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno != errno.EIO or not self._was_terminal:
                raise
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)
