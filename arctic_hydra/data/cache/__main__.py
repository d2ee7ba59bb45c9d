"""The command of the cache of tokenized data and scores: `python -m arctic_hydra.data.cache list`, or `prune` to free disk space.

`prune` requires what to delete: `--older-than 30` (days since last use), `--all`, or keys as shown by `list`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from arctic_hydra import entry_point
from arctic_hydra.data.cache.entries import (
    ABOUT,
    KEY,
    PREPARED,
    SCORES,
    cache_problem,
    default_cache_dir,
    leftovers,
    lock_of,
    remove_entry,
)
from arctic_hydra.data.cache.token_store import MANIFEST, DamagedEntryError, read_manifest
from arctic_hydra.errors import EXIT_DONE, ConfigError
from arctic_hydra.human_numbers import format_count, format_seconds, quantity

SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Entry:
    """One entry of the cache, or the remains of one."""

    path: Path
    size_bytes: int
    used: float
    """Time of last use in seconds since the epoch; for an incomplete entry, of the last change."""
    contents: str
    complete: bool
    """Whether a run could open it; otherwise it is being built or deleted, or was left by a killed process."""

    @property
    def key(self) -> str:
        """Name of the entry."""
        return self.path.name


def entries(cache_dir: Path) -> list[Entry]:
    """Return the entries of a cache, prepared data and scores, complete or not, most recently used first."""
    found = []
    for root, file, contents in ((PREPARED, MANIFEST, _examples), (SCORES, ABOUT, _parts)):
        left = set(leftovers(cache_dir / root))
        for folder in (cache_dir / root).glob("*/"):
            if KEY.fullmatch(folder.name.partition(".")[0]):  # other directories were not created by this package
                with suppress(FileNotFoundError):  # published or deleted at the same time
                    found.append(_entry(folder, folder not in left, folder / file, contents))
    return sorted(found, key=lambda entry: -entry.used)


def _entry(folder: Path, is_whole: bool, touched: Path, contents: Callable[[Path], str]) -> Entry:
    complete = is_whole and touched.exists()
    size = sum(file.lstat().st_size for file in folder.iterdir())
    return Entry(folder, size, (touched if complete else folder).stat().st_mtime, contents(folder), complete)


def _examples(folder: Path) -> str:
    report: dict[str, Any] = {}
    with suppress(DamagedEntryError):
        report = read_manifest(folder)["report"]
    return f"{report.get('kept', 0):,} examples, {format_count(report.get('tokens', 0))} tokens"


def _parts(folder: Path) -> str:
    parts = sum(1 for _ in folder.glob("*.npy"))
    return f"scores of a frozen model, {quantity(parts, 'part')}"


def prune(chosen: list[Entry]) -> list[Entry]:
    """Delete entries and return the deleted ones; entries that another process is building or deleting are skipped."""
    deleted = []
    for entry in chosen:
        with suppress(Timeout, FileNotFoundError), lock_of(entry.path).acquire(timeout=0):
            remove_entry(entry.path)
            deleted.append(entry)
    return deleted


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m arctic_hydra.data.cache", description="The cache of tokenized data and scores."
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=None,
        help="data.cache_dir or trainer.scores_dir of the runs; the default directory if unset",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the entries, most recently used first")
    pruning = commands.add_parser("prune", help="delete entries")
    pruning.add_argument("keys", nargs="*", help="entries to delete, by a prefix of their key")
    pruning.add_argument("--older-than", type=float, metavar="DAYS", help="delete entries not used for DAYS days")
    pruning.add_argument("--all", action="store_true", help="delete every entry")
    options = parser.parse_args(argv)
    return entry_point.exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    cache_dir = options.cache_dir or default_cache_dir()
    if problem := cache_problem(cache_dir, SCORES):
        raise ConfigError(f"--cache-dir: {problem}")
    found = entries(cache_dir)
    if options.command == "list":
        _print(cache_dir, found)
        return EXIT_DONE
    if not (options.keys or options.all or options.older_than is not None):
        raise ConfigError("prune: got nothing to delete, expected keys, --older-than DAYS or --all")
    if options.older_than is not None and not 0 <= options.older_than < math.inf:
        raise ConfigError(f"prune: --older-than: got {options.older_than}, expected days, 0 or more")
    # An empty key, such as of an unset variable, is a prefix of all.
    unknown = [key for key in options.keys if not key or not any(entry.key.startswith(key) for entry in found)]
    if unknown:
        text = unknown[0] or repr("")
        raise ConfigError(f"prune: {text}: there is no such entry in {cache_dir}; run `list` to show the entries")
    oldest = None if options.older_than is None else time.time() - options.older_than * SECONDS_PER_DAY
    try:
        deleted = prune([entry for entry in found if _is_chosen(entry, options.keys, options.all, oldest)])
    except OSError as error:
        raise ConfigError(f"prune: cannot delete from {cache_dir} ({error}); expected a cache that you own") from error
    print(f"deleted {len(deleted)} of {len(found)} entries, {_size(sum(entry.size_bytes for entry in deleted))}")
    return EXIT_DONE


def _is_chosen(entry: Entry, keys: list[str], everything: bool, oldest: float | None) -> bool:
    named = any(entry.key.startswith(key) for key in keys)
    return everything or named or (oldest is not None and entry.used < oldest)


def _print(cache_dir: Path, found: list[Entry]) -> None:
    for entry in found:
        age = format_seconds(max(0.0, time.time() - entry.used))
        what = (
            f"{entry.contents}, used" if entry.complete else "incomplete: in use, or left by a killed process; changed"
        )
        print(f"{entry.key}  {_size(entry.size_bytes):>9}  {what} {age} ago")
    print(f"{len(found)} entries, {_size(sum(entry.size_bytes for entry in found))} in {cache_dir}")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"


if __name__ == "__main__":
    raise SystemExit(main())
