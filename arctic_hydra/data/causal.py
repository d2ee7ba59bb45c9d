"""Plain text data: every token is supervised; long documents are sliced, short ones packed."""

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
    """Plain texts, each followed by the eos token, without a chat template."""

    column: str = "text"
    """Column with the text."""
    overlong: Overlong = Overlong.split
    """How to handle texts longer than `max_length`; split slices them."""

    def validate(self) -> None:
        """Check that no source declares another format than text, and the fields of the base class."""
        super().validate()
        problems = [
            (f"{key}.format", f"got {source.format.value}, expected text: this data trains on plain texts")
            for key, source in self.all_sources()
            if source.format not in (RowFormat.auto, RowFormat.text)
        ]
        problems += self.unused_role_mappings()
        if problems:
            raise FieldError(problems)

    def reading(self, source: DataSource) -> Reading:
        """Return how to read a source's rows: a single column."""
        return Reading(RowFormat.text, text_column=self.column)

    def options(self) -> PrepareOptions:
        """Return the options that determine how rows become examples; part of the cache key."""
        from arctic_hydra.data.prepare.preparer import PrepareOptions

        return PrepareOptions(self.max_length, True, self.overlong.value, self.malformed.value)
