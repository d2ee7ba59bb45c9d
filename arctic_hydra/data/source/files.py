"""Files of rows: telling formats apart, reading them, hashing them, finding those of a split."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from arctic_hydra.data.source.rows import JoinedRows, JsonLines, ListRows, ParquetRows, Rows
from arctic_hydra.errors import DataError

SUFFIXES = (".jsonl", ".json", ".parquet")

_KNOWN_STARTS = {
    b"\x1f\x8b": "gzip-compressed; unpack it first (`gunzip`)",
    b"PK\x03\x04": "a zip archive; unpack it first (`unzip`)",
    b"(\xb5/\xfd": "zstd-compressed; unpack it first (`unzstd`)",
    b"\xff\xfe": "UTF-16; convert it (`iconv -f utf-16 -t utf-8`)",
    b"\xfe\xff": "UTF-16; convert it (`iconv -f utf-16 -t utf-8`)",
    b"version https://git-lfs": "a git-lfs pointer, not the data; run `git lfs pull`",
}


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(paths: Sequence[Path]) -> list[list[str]]:
    """Return name and content hash of each file; a file's place and times do not matter."""
    return [[path.name, hash_file(path)] for path in paths]


def read_files(paths: Sequence[Path]) -> Rows:
    """Return the rows of the files, one after another."""
    parts = [read_file(path) for path in paths]
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


def read_file(path: Path) -> Rows:
    """Return the rows of a Parquet, JSON or JSON Lines file, told apart by content.

    Raises DataError naming the file and what it is instead.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a JSON, JSON Lines or Parquet file; check the path")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    for start, what in _KNOWN_STARTS.items():
        if head.startswith(start):
            raise DataError(f"{path}: is {what}; expected JSON or JSON Lines")
    if head.startswith(b"PAR1"):
        return _read_parquet(path)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise DataError(f"{path}: the file is empty; expected JSON or JSON Lines with one object per row")
    if text.startswith(b"<"):
        start_text = text[:77].decode("utf-8", errors="replace")
        raise DataError(f"{path}: looks like an HTML page, not data; it starts with {start_text!r}; download it again")
    return _read_array(path) if text.startswith(b"[") else _read_lines(path)


def _read_lines(path: Path) -> Rows:
    rows = JsonLines(path)
    try:
        rows.take([0])
    except DataError as error:
        if _is_one_object(path):
            raise DataError(
                f"{path}: holds one JSON object over several lines; expected one object per line, or an array [...] of "
                f"objects; write its rows as an array"
            ) from error
        raise
    return rows


def _is_one_object(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except ValueError:
        return False


def _read_array(path: Path) -> Rows:
    data = path.read_bytes()
    try:
        rows = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; expected UTF-8 text; convert it"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not JSON ({error}); expected an array of objects; correct it"
        ) from error
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {index}: got a JSON {type(row).__name__}, expected an object {{...}}")
    if not rows:
        raise DataError(f"{path}: the file is empty (an array without rows); expected at least one object")
    return ListRows(rows, str(path))


def _read_parquet(path: Path) -> Rows:
    import pyarrow as pa

    try:
        return ParquetRows(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: a damaged Parquet file ({str(error).splitlines()[0]}); get it again") from error


def find_split(directory: Path, split: str) -> list[Path]:
    """Return the files of `split` in a directory laid out as on the hub, sorted.

    `train_sft.jsonl`, `data/train_sft-00000-of-00003.parquet`, or files in a folder `train_sft/`. Empty if none.
    """
    name = re.compile(rf"{re.escape(split)}(-\d[^/]*)?(\.jsonl|\.json|\.parquet)")
    for folder in (directory, directory / "data"):
        if folder.is_dir():
            found = sorted(path for path in folder.iterdir() if path.is_file() and name.fullmatch(path.name))
            if found:
                return found
            if (folder / split).is_dir():
                inner = sorted(path for path in (folder / split).iterdir() if path.suffix in SUFFIXES)
                if inner:
                    return inner
    return []


def splits_in(directory: Path) -> list[str]:
    """Return the split names that files in `directory` suggest."""
    folders = [folder for folder in (directory, directory / "data") if folder.is_dir()]
    files = [path for folder in folders for path in folder.iterdir() if path.suffix in SUFFIXES]
    return sorted({re.sub(r"-\d.*$", "", path.stem) for path in files})
