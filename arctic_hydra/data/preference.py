"""Preference data: pairs of a chosen and a rejected answer to the same prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from arctic_hydra.component import component
from arctic_hydra.data.base import DataSource
from arctic_hydra.data.formats.reading import Reading, RowFormat
from arctic_hydra.data.prepare.truncation import Overlong
from arctic_hydra.data.tokenized import TokenizedDataFactory
from arctic_hydra.errors import FieldError
from arctic_hydra.human_numbers import HumanInt, integer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from arctic_hydra.data.cache.token_store import PairStore
    from arctic_hydra.data.prepare.preparer import PrepareOptions
    from arctic_hydra.distributed import World


@dataclass(kw_only=True)
class AnswerDataFactory(TokenizedDataFactory):
    """Base of the data whose examples are compared by their last answer, of which only that is supervised."""

    overlong: Overlong = Overlong.drop
    """How to handle pairs whose longer side exceeds `max_length`. keep_end truncates the start of the prompt, equally for
    both sides; keep_start truncates the end of the answers."""
    max_prompt_length: HumanInt | None = integer(None, minimum=1, maximum=10**9)
    """Of pairs that are too long, keep this many tokens of the prompt, its start with `overlong=keep_start`, its end with
    keep_end, and truncate the end of the answers to the rest of `max_length`; unset: as `overlong` says."""

    examples_are: ClassVar[str] = "pairs"
    """What messages call the examples."""
    reads: ClassVar[str] = "chosen and rejected"
    """What the rows hold, for messages."""

    def validate(self) -> None:
        """Check that no setting is impossible for whole answers, and the fields of the base class."""
        super().validate()
        problems, them = [], self.examples_are
        if self.overlong is Overlong.split:
            text = f"got split, expected drop, keep_start, keep_end or error: {them} cannot be split"
            problems.append(("overlong", text))
        if self.always_max_length or self.fuse_positions_prob:
            key = "always_max_length" if self.always_max_length else "fuse_positions_prob"
            problems.append((key, f"got a value, but {them} can neither be cut nor joined; remove it"))
        if (most := self.max_prompt_length) is not None:
            if self.overlong not in (Overlong.keep_start, Overlong.keep_end):
                text = f"got {most}, which has no effect with overlong={self.overlong.value}; pass overlong=keep_start or keep_end"
                problems.append(("max_prompt_length", text))
            elif most >= self.max_length:
                text = f"got {most}, which leaves no room for answers in max_length={self.max_length}; expected less"
                problems.append(("max_prompt_length", text))
        if self.streaming:
            problems.append(("streaming", f"got true, expected false: {them} cannot be streamed"))
        for key, source in self.all_sources():
            if source.format not in (RowFormat.auto, RowFormat.preference):
                text = f"got {source.format.value}, expected preference: this data trains on {self.reads}"
                problems.append((f"{key}.format", text))
            if not source.process:
                problems.append((f"{key}.process", f"got false, expected true: pre-tokenized {them} are not supported"))
        problems += self.unused_role_mappings()
        if problems:
            raise FieldError(problems)

    def reading(self, source: DataSource) -> Reading:
        """Return how to read a source's rows: as preferences, so that any other row is malformed."""
        return Reading(RowFormat.preference)

    def options(self) -> PrepareOptions:
        """Return the options that determine how rows become examples: only the last answers are supervised."""
        from arctic_hydra.data.encode.chat import TurnChoice
        from arctic_hydra.data.prepare.preparer import PrepareOptions

        turns = TurnChoice(last_only=True)
        return PrepareOptions(
            self.max_length,
            True,
            self.overlong.value,
            self.malformed.value,
            turns,
            max_prompt_length=self.max_prompt_length,
        )

    @property
    def pack_tokens(self) -> int:
        """Maximum tokens per pack, with room for both documents of any example."""
        return 2 * self.max_length


@component(group="data", name="preference")
class PreferenceDataFactory(AnswerDataFactory):
    """Pairs of conversations that differ in their last answer; only that answer is supervised.

    `max_length` limits each side. A pack holds up to twice as many tokens, and pairs are never separated.
    """

    _reads_margins = False

    def largest_batch(self, micro_batch_size: int) -> tuple[int, int]:
        """Return the rows of the largest micro-batch, and the tokens of each: without packing, a pair is two rows."""
        rows, tokens = super().largest_batch(micro_batch_size)
        return (rows if self.packs else 2 * rows), tokens

    def read_margins(self) -> None:
        """Read the number in the column `margin` for each pair; only some trainers use it."""
        self._reads_margins = True

    def options(self) -> PrepareOptions:
        """Return the options that determine how rows become pairs."""
        return replace(super().options(), pairs=True, margins=self._reads_margins or None)

    def process(self, split: str, tokenizer: PreTrainedTokenizerBase, world: World) -> PairStore:
        """Return the tokenized pairs of `split`."""
        from arctic_hydra.data.cache.token_store import PairStore

        return PairStore(super().process(split, tokenizer, world).flat)
