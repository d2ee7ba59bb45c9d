"""Settings of the data factories that tokenize: lengths, packing, padding, mixing, splits, cache and streams."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from arctic_hydra.data.base import DataFactory
from arctic_hydra.data.prepare.truncation import Malformed, Overlong
from arctic_hydra.human_numbers import HumanFloat, HumanInt, integer, number, parse_human_number

DEFAULT_DIV_LENGTH = 256
"""Divisor of the length of rows with `pad_to=div_length`."""


class MixBy(Enum):
    """Unit of the sources' weights."""

    examples = "examples"
    tokens = "tokens"


class PadTo(Enum):
    """Length to which rows are padded."""

    longest = "longest"
    div_length = "div_length"
    max_length = "max_length"


@dataclass(kw_only=True)
class TokenizedSettings(DataFactory):
    """The settings of tokenized data, and the sizes that follow from them."""

    max_length: HumanInt = integer(2048, minimum=2, maximum=10**9)
    """Maximum tokens per example and per pack; at most the model's longest context, from which it is not filled in."""
    packing: bool = True
    """Pack several examples into one row without padding; they cannot attend to each other."""
    always_max_length: bool = False
    """Fill every pack but the last of an epoch with exactly `max_length` tokens; an example cut by its end continues in another."""
    drop_last: bool = False
    """Leave out the emptiest pack of an epoch (the last, with `always_max_length`) unless it is full."""
    repeat_to_pack_max_length: bool = False
    """Repeat data that is smaller than one pack until the pack is full."""
    fuse_positions_prob: HumanFloat = number(0.0, minimum=0, maximum=1)
    """Probability that a training pack becomes one document, whose examples attend to each other, to practice long contexts."""
    pad_to: PadTo = PadTo.longest
    """Pad rows to the longest of the batch (packs not at all), to a multiple of `div_length`, or to `max_length` tokens per pack."""
    div_length: HumanInt | None = integer(None, minimum=1, maximum=10**9)
    """Divisor of the length of rows with `pad_to=div_length`; 256 when unset."""
    group_by_length: bool = False
    """Without packing, batch examples of similar length to reduce padding."""
    mix_by: MixBy = MixBy.examples
    """Unit of the sources' `weight`: examples or tokens."""
    overlong: Overlong = Overlong.drop
    """How to handle examples longer than `max_length`; truncation falls between turns where possible and is reported."""
    malformed: Malformed = Malformed.error
    """How to handle malformed rows: `error` stops, `drop` skips and counts them."""
    train_eval_split: list[Any] = field(default_factory=lambda: [1.0, 0.0])
    """Shares of the sources' rows for training and for evaluation; they sum to 1."""
    num_proc: HumanInt | None = integer(None, minimum=1, maximum=4096)
    """Processes that tokenize; all cores when unset."""
    cache: bool = True
    """Cache tokenized data for later runs (`on`), or tokenize in every process of every run (`off`)."""
    cache_dir: str | None = None
    """Directory of the cache of tokenized data; `$XDG_CACHE_HOME/arctic_hydra` when unset."""
    fail_on_missing_cache: bool = False
    """Fail if the cache lacks the tokenized data, instead of tokenizing it; task=preview prepares it."""
    prefetch_steps: HumanInt = integer(2, minimum=0, maximum=1_000_000)
    """Optimizer steps to prefetch in a background thread; 0 builds each batch on demand."""
    streaming: bool = False
    """Read, tokenize and pack during training, without a copy on disk; needs `trainer.train_iters`."""
    buffer_rows: HumanInt = integer(10_000, minimum=1, maximum=10**9)
    """Rows of a stream that are shuffled and packed together; a larger buffer mixes and packs better."""

    excluded_from_id: ClassVar[frozenset[str]] = frozenset(
        ("num_proc", "cache", "cache_dir", "fail_on_missing_cache", "prefetch_steps")
    )

    def __post_init__(self) -> None:
        """Convert the shares of the split once, as every numeric field; `validate` reports those that are not numbers."""
        with suppress(ValueError):
            self.train_eval_split = [float(parse_human_number(share)) for share in self.train_eval_split]
        super().__post_init__()

    def unused_role_mappings(self) -> list[tuple[str, str]]:
        """Return the problems of sources with a `role_mapping`, in data whose rows are not read as conversations."""
        text = "expected none: only data=chat renames the roles of its rows; remove it"
        return [
            (f"{key}.role_mapping", f"got {source.role_mapping}, {text}")
            for key, source in self.all_sources()
            if source.role_mapping
        ]

    @property
    def has_evaluation(self) -> bool:
        """Whether `build` returns an evaluation loader."""
        return bool(self.eval_sources) or self.train_eval_split[1] > 0

    @property
    def needs_limit(self) -> bool:
        """Whether the data has no known end, so that the length of the run must come from `trainer.train_iters`."""
        return self.streaming

    @property
    def packs(self) -> bool:
        """Whether a row of a batch may hold several examples, without padding."""
        return self.packing

    @property
    def row_tokens(self) -> int:
        """Maximum tokens of one example."""
        return self.max_length

    @property
    def row_multiple(self) -> int:
        """Number of tokens whose multiples the lengths of rows are padded to; 1 if they are not."""
        return (self.div_length or DEFAULT_DIV_LENGTH) if self.pad_to is PadTo.div_length else 1

    def padded_row_tokens(self, micro_batch_size: int) -> int | None:
        """Tokens to which each row of a batch is padded at least; None if rows are not padded to a length."""
        return self.largest_batch(micro_batch_size)[1] if self.pad_to is PadTo.max_length else None
