"""Preference data: the same prompt with a chosen and a rejected answer, both trained on as one pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_hydra.component import component
from arctic_hydra.data.base import DataSource
from arctic_hydra.data.formats.reading import Reading, RowFormat
from arctic_hydra.data.prepare.truncation import Overlong
from arctic_hydra.data.tokenized import TokenizedDataFactory
from arctic_hydra.errors import FieldError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from arctic_hydra.data.cache.token_store import PairStore
    from arctic_hydra.data.prepare.preparer import PrepareOptions
    from arctic_hydra.distributed import World


@component(group="data", name="preference")
class PreferenceDataFactory(TokenizedDataFactory):
    """Pairs of conversations that differ in their last answer, which is what is trained on.

    `max_length` bounds each side; a pack holds up to twice as many tokens, and never half a pair.
    """

    overlong: Overlong = Overlong.drop
    """What becomes of a pair whose longer side has more than `max_length` tokens. keep_end: the prompt loses its beginning,
    as much as the longer answer needs and the same for both; keep_start: the answers lose their end."""

    def validate(self) -> None:
        """Refuse what has no meaning for pairs, besides what every prepared data factory checks."""
        super().validate()
        problems = []
        if self.overlong is Overlong.split:
            text = "got split, expected drop, keep_start, keep_end or error: the parts of a pair are no pairs"
            problems.append(("overlong", text))
        if self.streaming:
            problems.append(("streaming", "got true, expected false: pairs are prepared as a whole"))
        for group, sources in (("sources", self.sources), ("eval_sources", self.eval_sources)):
            for name, source in sources.items():
                if source.format not in (RowFormat.auto, RowFormat.preference) or source.role_mapping:
                    text = f"got {source.format.value}, expected preference: this data trains on chosen and rejected"
                    problems.append((f"{group}.{name}.format", text))
                if not source.process:
                    problems.append((f"{group}.{name}.process", "got false, expected true: pairs are tokenised here"))
        if problems:
            raise FieldError(problems)

    def reading(self, source: DataSource) -> Reading:
        """Return how a source's rows are read: a row that is no preference says so."""
        return Reading(RowFormat.preference)

    def options(self) -> PrepareOptions:
        """Return what turns rows into pairs: only the last answers are trained on."""
        from arctic_hydra.data.encode.chat import TurnChoice
        from arctic_hydra.data.prepare.preparer import PrepareOptions

        turns = TurnChoice(last_only=True)
        return PrepareOptions(self.max_length, True, self.overlong.value, self.malformed.value, turns, pairs=True)

    def process(self, split: str, tokenizer: PreTrainedTokenizerBase, world: World) -> PairStore:
        """Return the prepared pairs of `split`."""
        from arctic_hydra.data.cache.token_store import PairStore

        return PairStore(super().process(split, tokenizer, world).flat)

    @property
    def pack_tokens(self) -> int:
        """Most tokens of one pack: both sides of any pair have room."""
        return 2 * self.max_length
