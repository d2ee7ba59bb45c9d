"""Files of rows: telling formats apart, reading them, hashing them, finding those of a split."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from arctic_hydra.data.rows.base import JoinedRows, JsonLines, ListRows, ParquetRows, Rows
from arctic_hydra.data.rows.lines import read_arrow, read_csv, read_text
from arctic_hydra.errors import DataError

SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow", ".csv", ".tsv", ".txt")
_FORMATS = {".jsonl": ".json", ".tsv": ".csv"}
"""Suffixes of the same format as another."""

_NO_DATA = {"config", "dataset_dict", "dataset_info", "dataset_infos", "license", "readme"}
"""Names, less suffix, of files that lie beside the data of a set."""
_SPLIT_WORDS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}
"""What `datasets` takes for the name of a split in the names of files and folders."""

WHOLE_BYTES = 2**26
"""Files of a set that together are no larger are hashed whole where others are sampled."""
SAMPLED_BLOCKS, BLOCK_BYTES = 2**10, 2**14
"""What is hashed of a larger set: so many blocks over all of its files, but at least two of each."""

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


def measure_files(paths: Sequence[Path]) -> list[list[str | int]]:
    """Return name, size and a hash of blocks of each file: what can be told of files that may be too large to be hashed.

    Small sets are read whole. Of others an edit that keeps the size and lies between two blocks is not seen. Times do not
    count here either: a copy on another machine holds the same rows at the same offsets, and is resumed from.
    """
    sizes = [path.stat().st_size for path in paths]
    blocks = max(2, SAMPLED_BLOCKS // max(1, len(paths)))
    whole = sum(sizes) <= WHOLE_BYTES
    return [
        [path.name, size, hash_file(path) if whole else _hash_blocks(path, size, blocks)]
        for path, size in zip(paths, sizes, strict=True)
    ]


def _hash_blocks(path: Path, size: int, count: int) -> str:
    """Return the SHA-256 of blocks that are spread evenly over a file, its first and its last among them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for index in range(count):
            file.seek(max(0, size - BLOCK_BYTES) * index // (count - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def read_files(paths: Sequence[Path], read: Callable[[Path], Rows] | None = None) -> Rows:
    """Return the rows of the files, one after another; `read` reads one, `read_file` where none is given."""
    parts = [(read or read_file)(path) for path in paths]
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


def read_file(path: Path) -> Rows:
    """Return the rows of a file: Parquet, Arrow, JSON or JSON Lines by content, CSV and text (a row a line) by suffix.

    Raises DataError naming the file and what it is instead.
    """
    head = check_readable(path)
    if head.startswith(b"PAR1"):
        return _read_parquet(path)
    if head.startswith(b"ARROW1") or path.suffix == ".arrow":
        return read_arrow(path)
    if path.suffix in (".csv", ".tsv"):
        return read_csv(path)
    if path.suffix == ".txt" and not head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith((b"{", b"[")):
        return read_text(path, "line")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise DataError(f"{path}: the file is empty; expected JSON or JSON Lines with one object per row")
    if text.startswith(b"<"):
        start_text = text[:77].decode("utf-8", errors="replace")
        raise DataError(f"{path}: looks like an HTML page, not data; it starts with {start_text!r}; download it again")
    return _read_array(path) if text.startswith(b"[") else _read_lines(path)


def check_readable(path: Path) -> bytes:
    """Return the first bytes of a file; raises DataError when it is missing, unreadable or of a kind that needs a tool."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a file of rows; check the path")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    for start, what in _KNOWN_STARTS.items():
        if head.startswith(start):
            raise DataError(f"{path}: is {what}; expected JSON, JSON Lines, Parquet, Arrow, CSV or text")
    return head


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
    except RecursionError as error:
        raise DataError(f"{path}: JSON nested too deeply to read; expected an array of objects; correct it") from error
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, row {index}: got a JSON {type(row).__name__}, expected an object {{...}}; correct it"
            )
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

    `train_sft.jsonl`, `data/train_sft-00000-of-00003.parquet`, or files in a folder `train_sft/`. As `datasets` has it, all
    data files are of split `train` where none of them carries the name of a split. Empty if there is none; raises DataError
    when those without names are of several formats.
    """
    suffixes = "|".join(map(re.escape, SUFFIXES))
    name = re.compile(rf"{re.escape(split)}(-\d[^/]*)?({suffixes})")
    for folder in (directory, directory / "data"):
        if folder.is_dir():
            found = sorted(path for path in folder.iterdir() if path.is_file() and name.fullmatch(path.name))
            if found:
                return found
            if (folder / split).is_dir():
                inner = sorted(path for path in (folder / split).iterdir() if path.suffix in SUFFIXES)
                if inner:
                    return inner
    return _of_one_format(_unnamed(directory), directory) if split == "train" else []


def _unnamed(directory: Path) -> list[Path]:
    """Return all data files below a directory, or none where one of them carries the name of a split."""
    found: list[Path] = []
    for folder, inner, names in os.walk(directory):
        inner[:] = sorted(name for name in inner if not name.startswith((".", "__")))
        found += filter(_is_data, (Path(folder) / name for name in sorted(names)))
    for path in found:
        place = path.relative_to(directory).with_suffix("").as_posix().lower()
        if _SPLIT_WORDS & set(re.split(r"[-._ 0-9/]+", place)):
            return []
    return found


def _is_data(path: Path) -> bool:
    return path.suffix in SUFFIXES and path.stem.lower() not in _NO_DATA and not path.name.startswith(".")


def _of_one_format(files: list[Path], directory: Path) -> list[Path]:
    formats = {_FORMATS.get(path.suffix, path.suffix): path for path in reversed(files)}
    if len(formats) > 1:
        examples = ", ".join(str(path.relative_to(directory)) for path in sorted(formats.values()))
        raise DataError(
            f"{directory}: its files name no split and are of several formats ({examples}); expected files of one format, or "
            f"named after their splits; set the source's path=<file>"
        )
    return files


def splits_in(directory: Path) -> list[str]:
    """Return the split names that files in `directory` suggest."""
    folders = [folder for folder in (directory, directory / "data") if folder.is_dir()]
    files = [path for folder in folders for path in folder.iterdir() if _is_data(path)]
    names = {re.sub(r"-\d.*$", "", path.stem) for path in files}
    return sorted(names | ({"train"} if _unnamed(directory) else set()))


def files_below(directory: Path) -> list[Path]:
    """Return every file of rows below a directory that `datasets` reads or has saved, sorted; its own caches aside."""
    found = (path for path in directory.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    return sorted(path for path in found if not path.name.startswith((".", "cache-")))


def find_files(paths: Iterable[str], suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files that each of `paths` names: a file, a directory (its files with these suffixes) or a glob pattern.

    Raises DataError for one that names none, and for a file that is named twice.
    """
    found: list[Path] = []
    for path in paths:
        found += _files_of(Path(path).expanduser(), suffixes)
    twice = {file for file in found if found.count(file) > 1}
    if twice:
        raise DataError(f"{min(twice)}: the path names it twice, expected each file once; drop one")
    return found


def _files_of(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    kinds = " or ".join(suffixes)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in suffixes and not file.name.startswith("."))
        if not found:
            raise DataError(f"{path}: the directory holds no {kinds} file; expected at least one")
        return found
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
    if not matches:
        raise DataError(
            f"{path}: no such file ({path.absolute()}); expected a {kinds} file, a directory of them or a glob pattern; "
            f"check the path"
        )
    return matches
