"""Data sets in the Hugging Face layout: a hub id, a local directory or one file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra.component import component
from arctic_hydra.data.source.base import SampledSource
from arctic_hydra.data.source.discover import files_below, find_split, splits_in
from arctic_hydra.errors import DataError, FieldError, StateFileError
from arctic_hydra.files.state_file import Schema, Table, is_inside, one_of, read_state
from arctic_hydra.hub import cache_only_when_unreachable
from arctic_hydra.human_numbers import listed
from arctic_hydra.redaction import umask_of_user

if TYPE_CHECKING:
    from arctic_hydra.data.rows.base import Rows
    from arctic_hydra.data.rows.shard import Shard


_SHORT_FORM = re.compile(r"(?P<id>\w[\w.-]*(?:/[\w.-]+)?):(?P<split>\w[\w.-]*(?:\[[^\[\]]*\])?)")
"""A hub id and a split; paths of files and directories that exist are absolute when the config is built."""
BUILDERS = ("arrow", "cache", "csv", "json", "parquet", "text")
"""The builders of `datasets` that may read rows. Others execute code (`pandas`, before datasets 5) or import what data names."""
_NOT_OF_BUILDERS = ("verification_mode", "num_proc", "keep_in_memory", "save_infos")
"""Arguments of `datasets.load_dataset` that concern what is read after a builder has been chosen."""

_SPLITS = Schema("save the data set again", Table({"splits": [is_inside]}), formats=(0, 0))


def _format_problem(value: Any) -> str | None:
    """Return what was expected of a format of `datasets.Dataset.set_format`: `jax` and `tensorflow` would be imported."""
    return None if value is None else one_of("arrow", "numpy", "pandas", "polars", "python", "torch")(value)


_FILES = Schema(
    "save the data set again",
    Table({"_data_files": [Table({"filename": is_inside})]}, {"_format_type": _format_problem}),
    formats=(0, 0),
)
"""What `save_to_disk` writes: the directories of the splits, and the files of each."""


@component(group="source", name="hf")
class HFSource(SampledSource):
    """A data set by hub id, by local directory in the hub's layout, or by file."""

    path: str = "???"
    """Hub id, file, or local directory (`train_sft.jsonl`, `data/train_sft-00000-of-00003.parquet`; without split names: all train).
    `<hub id>:<split>` is short for both fields."""
    revision: str | None = None
    """Hub revision: branch, tag or commit."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Additional arguments of `datasets.load_dataset`."""

    def validate(self) -> None:
        """Read the short form `<hub id>:<split>`, and check the fields of the base class."""
        if short := _SHORT_FORM.fullmatch(self.path):
            if self.split not in ("", short["split"]):
                text = (
                    f"got {self.split!r}, but path={self.path!r} names the split {short['split']!r}; remove one of them"
                )
                raise FieldError([("split", text)])
            self.path, self.split = short["id"], short["split"]
        super().validate()

    def check_environment(self) -> Iterator[str]:
        """Yield a problem if a local path does not exist, and for each setting that has no effect on what is there."""
        path = self._local_path
        if not self.is_local:
            return
        if not path.exists():
            yield f"path: {self._missing_path()}"
            return
        if self.revision is not None:
            yield f"revision: has no effect on local data ({path}); remove it"
        is_saved = self._is_saved(path)
        if not (path.is_file() or is_saved):
            return
        kind = "a data set saved by `datasets`" if is_saved else "a file"
        if unused := sorted(self.kwargs.keys() - {"verification_mode"}):
            yield f"kwargs: {listed(unused)} has no effect on {kind}, which load_dataset does not read; remove it"
        name = self.split.partition("[")[0]
        if name not in ("", "train", "eval") and not (path / "dataset_dict.json").is_file():
            yield f"split: got {self.split!r}, but {path} has no splits: all of its rows are read; remove the name"

    def read(self, split: str) -> Rows:
        """Return the rows of `split`; raises DataError if they cannot be found or read."""
        from arctic_hydra.data.rows.read import read_files

        files = self._files(split)
        return read_files(files) if files else self._load_dataset(split)

    def shards(self, split: str) -> list[Shard]:
        """Return a shard for each local file, or for each file of a data set on the hub, which `datasets` streams."""
        from arctic_hydra.data.rows.columnar import DatasetRows, IndexedShard, IterableShard
        from arctic_hydra.data.rows.read import file_shards

        if self.loads_otherwise:
            return super().shards(split)
        name = self.split_name(split)
        files = self._files(name)
        if files:
            return file_shards(files)
        origin = f"{self.path}:{name}"
        if self.is_local and self._is_saved(self._local_path):
            return [IndexedShard(DatasetRows(_checked(self._dataset(name), origin, full=False), origin))]
        dataset = self._dataset(name, streaming=True)
        count = dataset.num_shards
        parts = [dataset.shard(num_shards=count, index=index) for index in range(count)]
        return [IterableShard(part, f"{origin}, shard {index}") for index, part in enumerate(parts)]

    def content_outline(self, split: str) -> Any:
        """Return name, size and sampled hash of local files; for a data set on the hub its id and revision."""
        from arctic_hydra.data.rows.fingerprint import fingerprint_files

        files = self._files(split)
        if files:
            return fingerprint_files(files)
        location = fingerprint_files(files_below(self._local_path)) if self.is_local else self.path
        return [location, self.revision, sorted(self.kwargs.items())]

    def content(self, split: str) -> Any:
        """Return hashes of local files; for a data set on the hub its id, revision and fingerprint."""
        from arctic_hydra.data.rows.fingerprint import hash_files

        files = self._files(split)
        if files:
            return hash_files(files)
        return [self.path, self.revision, sorted(self.kwargs.items()), self._fingerprint(split)]

    @property
    def _local_path(self) -> Path:
        return Path(self.path).expanduser()

    @property
    def is_local(self) -> bool:
        return self.path.startswith(("/", ".", "~")) or self._local_path.exists()

    def _missing_path(self) -> str:
        return (
            f"{self.path!r}: no such file or directory ({self._local_path.absolute()}); expected a data set in "
            f"the hub's layout, a file or a hub id; check the path"
        )

    def _files(self, split: str) -> list[Path]:
        """Return the local files of `split`; empty if `datasets` has to load it."""
        if not self.is_local:
            return []
        if not self._local_path.exists():
            raise DataError(self._missing_path())
        if self._local_path.is_file():
            return [self._local_path]
        # verification_mode is about downloads and has no effect on local files; all other arguments need `datasets`.
        if self.kwargs.keys() - {"verification_mode"} or self._is_saved(self._local_path):
            return []
        found = find_split(self._local_path, split)
        if not found:
            known = splits_in(self._local_path)
            raise DataError(
                f"{self._local_path}: no file of split {split!r}; expected {split}.jsonl, {split}.json, "
                f"{split}-00000.parquet or the same below data/; found splits: {', '.join(known) or 'none'}; "
                f"set the source's split= or split_mapping={{train: ..., eval: ...}}"
            )
        return found

    @staticmethod
    def _is_saved(path: Path) -> bool:
        return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()

    def _load_dataset(self, split: str) -> Rows:
        from arctic_hydra.data.rows.columnar import DatasetRows

        origin = f"{self.path}:{split}"
        return DatasetRows(_checked(self._dataset(split), origin), origin)

    def _dataset(self, split: str, streaming: bool = False) -> Any:
        import datasets

        try:
            if self.is_local and self._is_saved(self._local_path):
                return _read_saved(self._local_path, split)
            with nullcontext() if self.is_local else cache_only_when_unreachable(), umask_of_user():
                self._check_builder()
                arguments = {**self.kwargs, "streaming": True} if streaming else self.kwargs
                return datasets.load_dataset(self.path, split=split, revision=self.revision, **arguments)
        except DataError:
            raise
        except StateFileError as error:
            raise DataError(str(error)) from error
        except Exception as error:  # datasets raises many exception types if it cannot load a split
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
            raise DataError(
                f"{self.path!r}, split {split!r}: cannot be loaded ({type(error).__name__}: {reason}); "
                f"expected a hub id that is reachable or cached, or a local directory; offline, set the source's "
                f"path=<directory in its layout>"
            ) from error

    def _check_builder(self) -> None:
        """Raise DataError if `datasets` would read the rows with another builder than those in `BUILDERS`.

        The path can name one, and the files of a data set choose one; to find out, `datasets` lists them, but reads no rows.
        """
        import datasets

        arguments = {key: value for key, value in self.kwargs.items() if key not in _NOT_OF_BUILDERS}
        builder = datasets.load_dataset_builder(self.path, revision=self.revision, **arguments)
        package, _, name = builder.__module__.rpartition(".")
        if package != f"datasets.packaged_modules.{name}" or name not in BUILDERS:
            raise DataError(
                f"{self.path!r}: datasets reads it with its builder {name!r}, expected one of {', '.join(BUILDERS)}; nothing was "
                "read; convert the data to JSON Lines, Parquet or Arrow"
            )
        if not (self.kwargs.get("data_files") or self.kwargs.get("data_dir")):  # its card names the files
            self._check_files(builder.config.data_files or {})

    def _check_files(self, files: dict[str, list[str]]) -> None:
        """Raise DataError if the card of a data set names files of this machine that are not in its own directory."""
        inside = os.path.abspath(self._local_path) + os.sep if self.is_local else None
        for name in (str(name) for names in files.values() for name in names):
            # Other protocols, such as local:// and zip://, open files of this machine.
            is_remote = name.startswith(("hf://", "https://"))
            is_inside = inside and "://" not in name and os.path.abspath(name).startswith(inside)
            if "::" in name or not (is_remote or is_inside):
                raise DataError(
                    f"{self.path!r}: its card (README.md) names the file {name}, which is outside the data set; nothing was read; "
                    "expected files of its own, or of hf:// and https://; correct the card, or pass the file itself as the source's path"
                )

    def _fingerprint(self, split: str) -> str:
        if self.is_local and not self._is_saved(self._local_path):
            from arctic_hydra.data.rows.fingerprint import hash_rows

            return hash_rows(self._load_dataset(split))
        return str(self._dataset(split)._fingerprint)


def _read_saved(path: Path, split: str) -> Any:
    """Return a split of what `save_to_disk` wrote; raises StateFileError if it names files outside of the directory."""
    import datasets

    held = read_state(path / "dataset_dict.json", _SPLITS, of_others=True)
    for folder in [path] if held is None else [path / name for name in held["splits"]]:
        read_state(folder / "state.json", _FILES, of_others=True)
    saved = datasets.load_from_disk(str(path))
    return saved[split] if isinstance(saved, datasets.DatasetDict) else saved


def _checked(dataset: Any, origin: str, full: bool = True) -> Any:
    """Return a `datasets.Dataset` whose rows can be read, with all columns; raises DataError if they are damaged.

    Without `full`, for a stream, it reads the sizes of the columns only, and not all rows. `datasets` maps files into memory
    unchecked, so that damaged offsets would be read from other memory, or end the process.
    """
    import pyarrow as pa

    try:
        for batch in dataset.data.table.to_batches():
            batch.validate(full=full)
    except pa.ArrowException as error:
        raise DataError(f"{origin}: a damaged Arrow file ({error}); get it again") from error
    return dataset.with_format(None)  # a saved set has the format that it was last used with, which may hide columns
