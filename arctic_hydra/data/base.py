"""Base classes of data sources and data factories, and the loader protocol that the trainer reads from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from arctic_hydra.component import Component
from arctic_hydra.data.batch import StepBatch
from arctic_hydra.data.code_identity import code_identity
from arctic_hydra.data.formats.messages import ROLES
from arctic_hydra.data.formats.reading import RowFormat
from arctic_hydra.data.formats.role_mapping import mapped_paths, mapping_problems
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError, FieldError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    """`chosen` or `rejected` for a preference, otherwise empty."""


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

    def validate(self) -> None:
        """Check the role mapping; subclasses that override it call it too."""
        problems = mapping_problems(self.role_mapping, ROLES)
        if self.role_mapping and self.format not in (RowFormat.auto, RowFormat.question_answer):
            problems.append(f"got a mapping together with format={self.format.value}, expected format=question_answer")
        if problems:
            raise FieldError([("role_mapping", problem) for problem in problems])
        if self.content_key and not any("." in path for _, path in mapped_paths(self.role_mapping)):
            raise FieldError(
                [("content_key", "has no effect without a path (array.field.value) in role_mapping; remove it")]
            )

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
        return iter(())

    @abstractmethod
    def load(self, split: str) -> Any:
        """Return the rows: a `Rows`, a `datasets.Dataset` or a list of dicts.

        `split` is `train` or `eval`; the source maps it to the name that the data uses. Raises DataError naming file,
        line and reason if rows cannot be read.
        """

    def shards(self, split: str) -> list[Any]:
        """Return the shards (`data.rows.shard.Shard`) that streaming reads one after another.

        By default a single shard with the rows that `load` returns; sources whose rows may not fit into memory override it.
        """
        from arctic_hydra.data.rows.columnar import IndexedShard
        from arctic_hydra.data.rows.read import as_rows
        from arctic_hydra.data.rows.shard import LazyShard

        return [LazyShard(lambda: IndexedShard(as_rows(self.load(split))))]

    def outline(self, split: str) -> dict[str, Any]:
        """Return plain values that identify the rows without reading all of them, such as names, sizes and sampled hashes of files."""
        return self.identity(split)

    def identity(self, split: str) -> dict[str, Any]:
        """Return plain values that change whenever the rows change: part of the cache key, as is the code of a user's class.

        By default a hash of every row; sources that can identify the rows without reading them override it.
        """
        from arctic_hydra.data.rows.fingerprint import hash_rows
        from arctic_hydra.data.rows.read import as_rows

        return {"rows": hash_rows(as_rows(self.load(split)))}


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
        return {"rows": self.rows_of(source, split), "code": [code_identity(source), code_identity(self)]}

    def rows_of(self, source: DataSource, split: str) -> dict[str, Any]:
        """Return plain values that change whenever a source's rows change."""
        return source.identity(split)

    @abstractmethod
    def build(self, tokenizer: PreTrainedTokenizerBase, geometry: BatchGeometry) -> tuple[Loader, Loader | None]:
        """Return the training loader, and the evaluation loader if there is evaluation data.

        Every rank calls it and gets the same plan; the evaluation loader contains each example exactly once, unshuffled.
        """
