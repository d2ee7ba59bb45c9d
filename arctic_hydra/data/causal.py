"""Plain text data: every token is trained on, long documents are sliced, short ones packed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_hydra.component import component
from arctic_hydra.data.base import DataSource
from arctic_hydra.data.formats.reading import Reading, RowFormat
from arctic_hydra.data.prepare.truncation import Overlong
from arctic_hydra.data.tokenized import TokenizedDataFactory
from arctic_hydra.errors import FieldError

if TYPE_CHECKING:
    from arctic_hydra.data.prepare.preparer import PrepareOptions


@component(group="data", name="causal")
class CausalDataFactory(TokenizedDataFactory):
    """Texts as they are, each ended by the eos token; no chat template touches them."""

    column: str = "text"
    """Column that holds the text."""
    overlong: Overlong = Overlong.split
    """What becomes of a text longer than `max_length`; split: it is sliced."""

    def validate(self) -> None:
        """Refuse sources that declare another form than text, besides what every prepared data factory checks."""
        super().validate()
        problems = [
            (f"{group}.{name}.format", f"got {source.format.value}, expected text: this data trains on plain texts")
            for group, sources in (("sources", self.sources), ("eval_sources", self.eval_sources))
            for name, source in sources.items()
            if source.format not in (RowFormat.auto, RowFormat.text) or source.role_mapping
        ]
        if problems:
            raise FieldError(problems)

    def reading(self, source: DataSource) -> Reading:
        """Return how a source's rows are read: one column, whatever else they hold."""
        return Reading(RowFormat.text, text_column=self.column)

    def options(self) -> PrepareOptions:
        """Return what turns rows into examples."""
        from arctic_hydra.data.prepare.preparer import PrepareOptions

        return PrepareOptions(self.max_length, True, self.overlong.value, self.malformed.value)
