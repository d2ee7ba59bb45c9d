"""Finds data files by path, directory or pattern, and those of a split."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from arctic_hydra.errors import DataError

SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow", ".csv", ".tsv", ".txt")
_FORMATS = {".jsonl": ".json", ".tsv": ".csv"}
"""Suffixes that denote the same format as another suffix."""

_NOT_DATA = {"config", "dataset_dict", "dataset_info", "dataset_infos", "license", "readme"}
"""Names without suffix of files that accompany a data set."""
_SPLIT_WORDS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}
"""Words in the names of files and folders that `datasets` treats as the name of a split."""


def find_split(directory: Path, split: str) -> list[Path]:
    """Return the files of `split` in a directory laid out as on the hub, sorted.

    `train_sft.jsonl`, `data/train_sft-00000-of-00003.parquet`, or files in a folder `train_sft/`. As in `datasets`, all
    data files belong to split `train` if none of their names contains the name of a split. Returns an empty list if there
    are none; raises DataError if the files have several formats.
    """
    suffixes = "|".join(map(re.escape, SUFFIXES))
    name = re.compile(rf"{re.escape(split)}(-\d[^/]*)?({suffixes})")
    for folder in (directory, directory / "data"):
        if folder.is_dir():
            found = sorted(path for path in folder.iterdir() if path.is_file() and name.fullmatch(path.name))
            if not found and (folder / split).is_dir():
                found = _regular(sorted(filter(_is_data, (folder / split).iterdir())))
            if found:
                return _check_one_format(found, directory, f"the files of split {split!r}")
    files = _files_without_split(directory) if split == "train" else []
    return _check_one_format(files, directory, "its files name no split and")


def _files_without_split(directory: Path) -> list[Path]:
    """Return all data files below a directory, or none if the name of one contains the name of a split."""
    found: list[Path] = []
    for folder, inner, names in os.walk(directory):
        inner[:] = sorted(name for name in inner if not name.startswith((".", "__")))
        found += filter(_is_data, (Path(folder) / name for name in sorted(names)))
    return [] if any(_splits_named(path.relative_to(directory)) for path in found) else _regular(found)


def _splits_named(path: Path) -> set[str]:
    """Return the words in a path that are names of splits."""
    return _SPLIT_WORDS & set(re.split(r"[-._ 0-9/]+", path.with_suffix("").as_posix().lower()))


def _is_data(path: Path) -> bool:
    return path.suffix in SUFFIXES and path.stem.lower() not in _NOT_DATA and not path.name.startswith(".")


def _check_one_format(files: list[Path], directory: Path, which: str) -> list[Path]:
    """Return the files; raises DataError if they have several formats: probably the same rows twice."""
    formats = {_FORMATS.get(path.suffix, path.suffix): path for path in reversed(files)}
    if len(formats) > 1:
        examples = ", ".join(str(path.relative_to(directory)) for path in sorted(formats.values()))
        raise DataError(
            f"{directory}: {which} have several formats ({examples}); expected files of one format, or "
            f"files named after their splits; set the source's path=<file>"
        )
    return files


def _regular(files: list[Path]) -> list[Path]:
    """Return the files; raises DataError for a pipe, a device or a broken link among them, which could not be read to its end."""
    for path in files:
        if not path.is_file():
            raise DataError(
                f"{path}: is not a regular file; remove it from the directory, or set the source's path=<file>"
            )
    return files


def splits_in(directory: Path) -> list[str]:
    """Return the split names that files in `directory` suggest."""
    folders = [folder for folder in (directory, directory / "data") if folder.is_dir()]
    files = [path for folder in folders for path in folder.iterdir() if _is_data(path)]
    names = {re.sub(r"-\d.*$", "", path.stem) for path in files}
    return sorted(names | ({"train"} if _files_without_split(directory) else set()))


def files_below(directory: Path) -> list[Path]:
    """Return every file of rows below a directory that `datasets` reads or has saved, sorted, without its caches."""
    found = (path for path in directory.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    return sorted(path for path in found if not path.name.startswith((".", "cache-")))


def find_files(paths: Iterable[str], suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files of each path, which is a file, a directory (its files with these suffixes) or a glob pattern.

    Raises DataError for a path without files, and for a file that is named twice.
    """
    found: list[Path] = []
    for path in paths:
        found += _files_of(Path(path).expanduser(), suffixes)
    twice = [file for file, count in Counter(found).items() if count > 1]
    if twice:
        raise DataError(f"{min(twice)}: the path names it twice, expected each file once; remove one")
    return found


def _files_of(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    kinds = " or ".join(suffixes)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in suffixes and not file.name.startswith("."))
        if not found:
            raise DataError(f"{path}: the directory contains no {kinds} file; expected at least one")
        named = {file.name: _splits_named(Path(file.name)) for file in found}
        train = [name for name, words in named.items() if words & {"train", "training"}]
        held_out = [name for name, words in named.items() if words and name not in train]
        if train and held_out:
            raise DataError(
                f"{path}: its files belong to several splits, such as {train[0]} and {held_out[0]}; expected the files of one; "
                f"pass one of them, such as {path / train[0]} to train on and {path / held_out[0]} to evaluate on, or a pattern for all"
            )
        return _regular(found)
    if path.exists():  # a pipe, a socket or a device
        raise DataError(
            f"{path}: is not a regular file; expected a {kinds} file, a directory of them or a glob pattern"
        )
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
    if not matches:
        raise DataError(
            f"{path}: no such file ({path.absolute()}); expected a {kinds} file, a directory of them or a glob pattern; "
            f"check the path"
        )
    return matches
