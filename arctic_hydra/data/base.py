"""Base classes of data sources and data factories, and the loader protocol that the trainer reads from."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from arctic_hydra.component import Component
from arctic_hydra.data.batch import StepBatch
from arctic_hydra.data.code_identity import code_identity
from arctic_hydra.data.formats.messages import ROLES
from arctic_hydra.data.formats.reading import RowFormat
from arctic_hydra.data.formats.role_mapping import mapped_paths, mapping_problems
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError, FieldError
from arctic_hydra.human_numbers import integer, number

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from arctic_hydra.data.rows.base import Rows

SLICE = re.compile(r"[^\[\]]*\[(?P<start>-?\d+%?|):(?P<stop>-?\d+%?|)\]")
"""A split with a slice, as the field `split` takes it."""


@dataclass(frozen=True)
class BatchGeometry:
    """How an optimizer step is divided into micro-batches."""

    micro_batch_size: int
    """Packs (or, unpacked, examples) per micro-batch and rank."""
    accumulation: int
    """Micro-batches per optimizer step and rank."""
    world: World
    seed: int
    most_steps: int = 0
    """Limit of optimizer steps; 0: none, the data determines the length of the run."""

    @property
    def global_batch_size(self) -> int:
        """Packs (or examples) per optimizer step over all ranks."""
        return self.micro_batch_size * self.accumulation * self.world.size


@dataclass(frozen=True)
class Example:
    """One tokenized example, for display."""

    source: str
    row: int
    """Row number within the source."""
    ids: list[int]
    mask: list[int]
    """1 for each token that is trained on."""
    side: str = ""
    """`chosen` or `rejected` of a preference; `desirable`, `undesirable` or `mismatched` of labelled data; otherwise empty."""


class Loader(Protocol):
    """Batches of one optimizer step each, addressable by position, so that resuming reads no earlier batches."""

    fingerprint: str
    """Hash of everything that determines content and order of the batches; independent of the number of ranks."""
    source_names: list[str]
    """Names that `Batch.source_K` indexes."""

    def steps(self, epoch: int) -> int:
        """Return the optimizer steps in `epoch` (from 0), including an incomplete last one."""

    def windows(self, epoch: int, start: int = 0) -> Iterator[StepBatch]:
        """Yield this rank's batches of `epoch`, starting at step `start`; the order follows from seed and epoch."""

    def preview(self, count: int) -> list[Example]:
        """Return up to `count` examples of each source, for display."""

    def summary(self) -> dict[str, Any]:
        """Return statistics of the data for the run record: rows, tokens, supervised share, fill, per source."""


@dataclass(kw_only=True)
class DataSource(Component):
    """Base of the data sources, which provide rows."""

    process: bool = True
    """Whether rows are conversations or texts to tokenize; false: they contain `input_ids` (and `labels`)."""
    format: RowFormat = RowFormat.auto
    """Format of the rows; auto detects it from the columns, and a row in another format is an error."""
    role_mapping: dict[str, Any] = field(default_factory=dict)
    """Maps roles to columns or paths, as in `{user: question, assistant: messages.role.assistant}`."""
    content_key: str | None = None
    """Key of the text in the items of a `role_mapping` path; unset: the first of content, text, message, value."""
    split: str = ""
    """Split to read, with an optional slice: `train[:10%]`, `[100:200]`, `[-50:]`; empty: `train` for sources, `eval` for eval_sources."""
    sample_ratio: Any = number(None, minimum=0, maximum=1)  # the type of a slot cannot contain unions, see `component`
    """Share of the rows to use, drawn at random; excludes `sample_count`."""
    sample_count: Any = integer(None, minimum=1)
    """Number of rows to use, drawn at random (all if there are fewer); excludes `sample_ratio`."""
    sample_seed: Any = integer(42, minimum=0, maximum=2**64 - 1)
    """Seed of the sample."""

    def validate(self) -> None:
        """Check the role mapping, that at most one sample size is set and is not 0, and that a slice can be parsed.

        Subclasses that override it call it too.
        """
        if problems := [*self._mapping_problems(), *self._sample_problems()]:
            raise FieldError(problems)

    def _mapping_problems(self) -> Iterator[tuple[str, str]]:
        for problem in mapping_problems(self.role_mapping, ROLES):
            yield "role_mapping", problem
        if self.role_mapping and self.format not in (RowFormat.auto, RowFormat.question_answer):
            text = f"got a mapping together with format={self.format.value}, expected format=question_answer"
            yield "role_mapping", text
        elif self.content_key and not any("." in path for _, path in mapped_paths(self.role_mapping)):
            yield "content_key", "has no effect without a path (array.field.value) in role_mapping; remove it"

    def _sample_problems(self) -> Iterator[tuple[str, str]]:
        if self.sample_ratio is not None and self.sample_count is not None:
            text = f"got {self.sample_ratio} together with sample_count={self.sample_count}; expected one of them; remove one"
            yield "sample_ratio", text
        elif self.sample_ratio == 0:
            yield "sample_ratio", "got 0, which leaves no rows; expected more than 0"
        if {"[", "]"} & set(self.split) and not SLICE.fullmatch(self.split):
            text = f"got {self.split!r}, expected a name and a slice such as train[:10%], train[100:200] or [-50:]"
            yield "split", text

    @property
    def is_local(self) -> bool:
        """Whether the rows are on this machine, so that they can be identified without the network."""
        return True

    @property
    def weight(self) -> float | None:
        """Share of an epoch relative to the other sources' weights; None: every row once. Subclasses may make it a field."""
        return None

    def has_split(self, split: str) -> bool:
        """Return whether the data has a split for `split` (train or eval), as far as the config says."""
        return True

    def streaming_problems(self, mixed: bool) -> Iterator[tuple[str, str]]:
        """Yield field and text of each setting that streaming cannot honor; `mixed`: together with other sources."""
        unknown = "has no effect with data.streaming=true, where the number of rows is unknown; remove"
        for key in ("sample_ratio", "sample_count"):
            if getattr(self, key) is not None:
                yield key, f"{unknown} it"
        if "[" in self.split:
            yield "split", f"got a slice, which {unknown} the slice"

    @abstractmethod
    def load(self, split: str) -> Any:
        """Return all rows of a split: a `Rows`, a `datasets.Dataset` or a list of dicts.

        `split` is the field `split` without its slice, or `train` or `eval` where that is empty. Raises DataError naming
        file, line and reason if rows cannot be read. The caller takes slice and sample of the rows.
        """

    def rows(self, split: str) -> Rows:
        """Return the rows of `split` (train or eval) to use: those that `load` returns, first sliced, then sampled."""
        from arctic_hydra.data.rows.read import as_rows

        return self.choose(as_rows(self.load(self.split_name(split))))

    def choose(self, rows: Rows) -> Rows:
        """Return the rows of the slice and the sample; raises DataError if they leave none."""
        from arctic_hydra.data.rows.base import sample_rows, slice_rows

        if bounds := self.slice_bounds:
            rows = slice_rows(rows, *bounds)
            if not len(rows):
                raise DataError(f"split={self.split} leaves no rows; expected a slice with at least one")
        sample = sample_rows(rows, self.sample_ratio, self.sample_count, self.sample_seed)
        if len(rows) and not len(sample):
            raise DataError(
                f"sample_ratio={self.sample_ratio} of {len(rows)} rows leaves none; expected at least one; raise it, "
                f"or set sample_count"
            )
        return sample

    def split_name(self, split: str) -> str:
        """Return the name of the split that is read for `split` (train or eval), without the slice."""
        return self.split.partition("[")[0] or split

    @property
    def slice_bounds(self) -> tuple[str, str] | None:
        """Start and stop of the slice in the field `split`; None without one."""
        match = SLICE.fullmatch(self.split)
        return (match["start"], match["stop"]) if match else None

    def shards(self, split: str) -> list[Any]:
        """Return the shards (`data.rows.shard.Shard`) that streaming reads one after another.

        By default a single shard with all rows; sources whose rows may not fit into memory override it.
        """
        from arctic_hydra.data.rows.columnar import IndexedShard
        from arctic_hydra.data.rows.shard import LazyShard

        return [LazyShard(lambda: IndexedShard(self.rows(split)))]

    def outline(self, split: str) -> dict[str, Any]:
        """Return plain values that identify the rows without reading all of them, such as names, sizes and sampled hashes of files."""
        return self.identity(split)

    def identity(self, split: str) -> dict[str, Any]:
        """Return plain values that change whenever the rows change: part of the cache key, as is the code of a user's class.

        By default a hash of every row in use; sources that can identify the rows without reading them override it.
        """
        from arctic_hydra.data.rows.fingerprint import hash_rows

        return {"rows": hash_rows(self.rows(split))}


@dataclass(kw_only=True)
class DataFactory(Component):
    """Base of the data factories."""

    sources: dict[str, DataSource] = field(default_factory=dict)
    """Training sources by name."""
    eval_sources: dict[str, DataSource] = field(default_factory=dict)
    """Evaluation sources by name."""

    @property
    def has_evaluation(self) -> bool:
        """Whether `build` returns an evaluation loader."""
        return bool(self.eval_sources)

    @property
    def cache_directory(self) -> Path | None:
        """Absolute path of the directory in which prepared data is cached; None if it is not kept on disk."""
        from arctic_hydra.data.cache.entries import default_cache_dir

        if not self.__dict__.get("cache"):
            return None
        named = self.__dict__.get("cache_dir")
        return (Path(named).expanduser() if named else default_cache_dir()).absolute()

    @property
    def needs_limit(self) -> bool:
        """Whether the length of the data is unknown, so that `trainer.train_iters` has to set the length of the run."""
        return False

    @property
    def packs(self) -> bool:
        """Whether a row of a batch may hold several examples, without padding."""
        return bool(self.__dict__.get("packing", False))

    @property
    def row_tokens(self) -> int:
        """Maximum tokens of one example; 0 if unknown."""
        return int(self.__dict__.get("max_length") or 0)

    @property
    def pack_tokens(self) -> int:
        """Maximum tokens of one pack; 0 if unknown."""
        return self.row_tokens

    def largest_batch(self, micro_batch_size: int) -> tuple[int, int]:
        """Return the rows of the largest micro-batch, and the tokens of each; 0 tokens if unknown."""
        return (1, micro_batch_size * self.pack_tokens) if self.packs else (micro_batch_size, self.row_tokens)

    @property
    def row_multiple(self) -> int:
        """Number of tokens whose multiples the lengths of rows are padded to; 1 if they are not."""
        return 1

    def padded_row_tokens(self, micro_batch_size: int) -> int | None:
        """Tokens to which each row of a batch is padded at least; None if rows are not padded to a length."""
        return None

    @property
    def end_of_turn_tokens(self) -> Sequence[str]:
        """Tokens that the config names as ends of a turn, besides the tokenizer's special tokens."""
        return ()

    def identities(self, split: str) -> dict[str, Any]:
        """Return the identity of the rows of each source of `split` (train or eval), such as content hashes."""
        return {name: self.identity_of(split, name) for name in self.sources_of(split)}

    def sources_of(self, split: str) -> dict[str, DataSource]:
        """Return the sources of `split` (train or eval) by name."""
        return self.sources if split == "train" else self.eval_sources

    def all_sources(self) -> Iterator[tuple[str, DataSource]]:
        """Yield the training sources, then those of evaluation, each with its key within this factory."""
        for group, sources in (("sources", self.sources), ("eval_sources", self.eval_sources)):
            yield from ((f"{group}.{name}", source) for name, source in sources.items())

    def identity_of(self, split: str, name: str) -> dict[str, Any]:
        """Return the identity of the rows of one source; raises DataError naming the source."""
        try:
            return self.row_identity(self.sources_of(split)[name], split)
        except DataError as error:
            raise DataError(f"{self._key(split, name)}: {error}") from error

    def _key(self, split: str, name: str) -> str:
        return f"data.{'sources' if split == 'train' else 'eval_sources'}.{name}"

    def row_identity(self, source: DataSource, split: str) -> dict[str, Any]:
        """Return plain values that change whenever a source's rows change, or the user-defined code that produces them."""
        replacing = self._run.listeners("load_end") if self._run is not None else []
        acting = [code_identity(callback) for callback in replacing if not callback.only_observes]
        as_is = {} if source.process else {"process": False}
        return {
            "rows": self.rows_of(source, split) | as_is,
            "code": [code_identity(source), code_identity(self), *acting],
        }

    def rows_of(self, source: DataSource, split: str) -> dict[str, Any]:
        """Return plain values that change whenever a source's rows change."""
        return source.identity(split)

    @abstractmethod
    def build(self, tokenizer: PreTrainedTokenizerBase, geometry: BatchGeometry) -> tuple[Loader, Loader | None]:
        """Return the training loader, and the evaluation loader if there is evaluation data.

        Every rank calls it and gets the same plan; the evaluation loader contains each example exactly once, unshuffled.
        """
