"""The one reader of state files: JSON objects that the package writes and reads again in another process.

A file is opened without following links, must be a regular file that no other user could have written (`ownership`), and must
not exceed a size. Its content must be a JSON object with a format that this version reads and fields of the expected types.
Everything else is a StateFileError: which file, what is wrong, what to do.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from arctic_hydra.errors import StateFileError
from arctic_hydra.files.ownership import file_problem, folder_problem, kind_of, remedy

MAX_BYTES = 64 << 20
APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND
"""Flags of `open_regular` for a log."""
_LOG_BYTES = 1 << 20
_LONGEST_PATH, _LONGEST_NAME = 4096, 255

Spec = Any
"""Specification of a value: a type, a tuple of alternatives, `[spec]` for a list, a `Table`, or a function that returns what it
expected instead, or None."""
_NAMES = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    list: "a list",
}


@dataclass(frozen=True)
class Table:
    """The fields of a JSON object; others are ignored."""

    required: Mapping[str, Spec] = field(default_factory=dict)
    optional: Mapping[str, Spec] = field(default_factory=dict)


@dataclass(frozen=True)
class Entries:
    """A JSON object with entries of one kind, such as files by name."""

    key: Callable[[Any], str | None]
    value: Spec


@dataclass(frozen=True)
class Schema:
    """A kind of state file."""

    remedy: str
    """What to do if the file is damaged."""
    table: Table
    formats: tuple[int, int] = (0, 1)
    """The oldest and the newest format that this version reads; 0 is that of files without a number."""
    max_bytes: int = MAX_BYTES

    @property
    def format(self) -> int:
        """The format that this version writes."""
        return self.formats[1]


def read_state(path: Path, schema: Schema, *, of_others: bool = False) -> dict[str, Any] | None:
    """Return the content of a state file without its format number, or None if there is no such file.

    `of_others` accepts files of other users, for a path that the user named. Raises StateFileError.
    """
    text = _read(path, schema, of_others)
    return None if text is None else _parse(path, text, schema)


def is_text(name: Any) -> str | None:
    """Return what was expected if `name` is not a text; every key of a JSON object is one."""
    return None if isinstance(name, str) else "text"


def is_inside(name: Any) -> str | None:
    """Return what was expected if `name` is not the plain relative path of a file in the directory of its state file."""
    expected = "a name inside the directory"
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return expected
    parts = PurePosixPath(name)
    return expected if parts.is_absolute() or ".." in parts.parts or str(parts) != name or name == "." else None


def one_of(*words: str) -> Callable[[Any], str | None]:
    """Return a check that a value is one of these words."""
    return lambda value: None if isinstance(value, str) and value in words else f"one of {', '.join(words)}"


def at_least_0(value: Any) -> str | None:
    """Return what was expected if `value` is not a non-negative whole number, else None."""
    return None if type(value) is int and value >= 0 else "a whole number, 0 or more"


def absolute_path(value: Any) -> str | None:
    """Return what was expected if `value` is not an absolute path without `..` that a file system can have."""
    fits = isinstance(value, str) and "\0" not in value and os.path.isabs(value) and os.path.normpath(value) == value
    if not fits:
        return "an absolute path without `..`"
    try:
        encoded = os.fsencode(value)
    except UnicodeEncodeError:
        return "a path that can be encoded"
    too_long = len(encoded) >= _LONGEST_PATH or any(len(part) > _LONGEST_NAME for part in encoded.split(b"/"))
    return (
        f"a path of less than {_LONGEST_PATH:,} bytes, with at most {_LONGEST_NAME} in each name" if too_long else None
    )


def mismatch(value: Any, spec: Spec, where: str = "") -> str | None:
    """Return where a value differs from `spec`, what it is and what was expected; None if it fits."""
    if isinstance(spec, tuple):
        nested = next((item for item in spec if isinstance(item, Table) and isinstance(value, dict)), None)
        if nested is not None:
            return mismatch(value, nested, where)
        if any(mismatch(value, item, where) is None for item in spec):
            return None
        return _differs(where, value, " or ".join(map(_expectation, spec)))
    if spec is None or isinstance(spec, type):
        return None if _is(value, spec) else _differs(where, value, _expectation(spec))
    if isinstance(spec, Table | Entries | list):
        kind = list if isinstance(spec, list) else dict
        if not isinstance(value, kind):
            return _differs(where, value, _NAMES[kind])
        return next(_nested_mismatches(value, spec, where), None)
    expected = spec(value)
    return _differs(where, value, expected) if expected else None


def _nested_mismatches(value: Any, spec: Table | Entries | list[Spec], where: str) -> Iterator[str]:
    """Yield what is wrong with the parts of an object or a list."""
    parts: Iterable[tuple[str, Any, Spec]]
    if isinstance(spec, Table):
        yield from (f"{_join(where, name)}: missing" for name in spec.required if name not in value)
        known = {**spec.optional, **spec.required}
        parts = ((name, value[name], known[name]) for name in known if name in value)
    elif isinstance(spec, Entries):
        yield from (_differs(where, name, expected) for name in value if (expected := spec.key(name)))
        parts = ((name, item, spec.value) for name, item in value.items())
    else:
        parts = ((str(number), item, spec[0]) for number, item in enumerate(value))
    for name, item, wanted in parts:
        if found := mismatch(item, wanted, _join(where, name)):
            yield found


def _is(value: Any, kind: type | None) -> bool:
    if kind is None:
        return value is None
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def _expectation(spec: Spec) -> str:
    if spec is None:
        return "null"
    if isinstance(spec, type):
        return _NAMES[spec]
    return _NAMES[list if isinstance(spec, list) else dict]


def _differs(where: str, value: Any, expected: str) -> str:
    shown = json.dumps(value, default=str)
    got = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return f"{where or 'the file'}: got {got}, expected {expected}"


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _read(path: Path, schema: Schema, of_others: bool) -> bytes | None:
    try:
        descriptor = open_to_read(path, schema.remedy)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not of_others:
            check_trusted(path, info)
        if info.st_size > schema.max_bytes:
            raise StateFileError(
                f"{path}: has {info.st_size:,} bytes, more than the {schema.max_bytes:,} that such a file may have; "
                f"{schema.remedy}",
                damaged=True,
            )
        return file.read(schema.max_bytes + 1)


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file without following a link or waiting for a pipe; return the descriptor.

    Raises StateFileError for anything but a regular file, OSError if it cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        info = os.fstat(descriptor)
        if stat.S_ISREG(info.st_mode):
            return descriptor
        os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError:
        info = path.lstat()
        if stat.S_ISREG(info.st_mode):
            raise
    target = f" to {os.readlink(path)}" if stat.S_ISLNK(info.st_mode) else ""
    raise StateFileError(f"{path}: is {kind_of(info)}{target}, expected a file; move it away and try again")


def open_to_read(path: Path, remedy: str = "make it readable") -> int:
    """Open a regular file as `open_regular` does; return the descriptor.

    Raises FileNotFoundError if there is none, and StateFileError, which ends with `remedy`, if it cannot be opened.
    """
    try:
        return open_regular(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StateFileError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error


def replace_text(path: Path, text: str) -> None:
    """Replace a file atomically, readable by this user only; a link in its place is replaced, not followed.

    Lone surrogates, which UTF-8 cannot encode, are written as escapes.
    """
    descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a log, from at most its last MiB; raises StateFileError for a link or anything but a file."""
    try:
        descriptor = open_to_read(path)
    except FileNotFoundError as error:
        raise StateFileError(f"{path}: there is no such file") from error
    with os.fdopen(descriptor, "rb") as file:
        file.seek(max(0, os.fstat(descriptor).st_size - _LOG_BYTES))
        lines = file.read(_LOG_BYTES).decode("utf-8", errors="replace").splitlines()
    return lines[max(0, len(lines) - count) :]


def check_trusted(path: Path, info: os.stat_result) -> None:
    """Raise StateFileError if other users could have written an open file, or replaced it in its directory."""
    if problem := folder_problem(path.parent, follow=True):
        raise StateFileError(f"{path}: cannot be trusted: its directory {problem}; {remedy(problem)}")
    if problem := file_problem(info, path.parent.stat()):
        raise StateFileError(f"{path}: cannot be trusted: it {problem}; {remedy(problem)}")


def _parse(path: Path, text: bytes, schema: Schema) -> dict[str, Any]:
    try:
        content = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        why = "it is empty" if not text.strip() else str(error) or type(error).__name__
        raise StateFileError(f"{path}: not JSON ({why}); {schema.remedy}", damaged=True) from error
    if not isinstance(content, dict):
        raise StateFileError(f"{path}: {_differs('', content, 'an object')}; {schema.remedy}", damaged=True)
    oldest, newest = schema.formats
    number = content.pop("format", None)
    if type(number if number is not None else 0) is not int or not oldest <= (number or 0) <= newest:
        expected = newest if oldest == newest else f"{oldest} to {newest}"
        raise StateFileError(
            f"{path}: format: got {json.dumps(number) if number is not None else None}, expected {expected}; another program "
            "or version wrote it"
        )
    if problem := mismatch(content, schema.table):
        raise StateFileError(f"{path}: {problem}; {schema.remedy}", damaged=True)
    return content
