"""Base of the built-in sources: names of splits, weights, and the identity of the rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from arctic_hydra.data.base import DataSource
from arctic_hydra.human_numbers import HumanFloat, number

if TYPE_CHECKING:
    from arctic_hydra.data.rows.base import Rows


@dataclass(kw_only=True)
class SampledSource(DataSource):
    """A source that maps split names and can be weighted; subclasses read and identify the rows."""

    split_mapping: dict[str, str] = field(default_factory=dict)
    """Maps split names to those of the data, as in `{train: train_sft, eval: test_sft}`; an empty name: no such split."""
    weight: HumanFloat | None = number(None, minimum=1e-9)
    """Share of an epoch relative to the other sources' weights, resampled every epoch; unset: every row once."""

    def has_split(self, split: str) -> bool:
        """Return whether the data has a split for `split`: false where `split_mapping` maps it to an empty name."""
        return bool(self.split) or self.split_mapping.get(split) != ""

    def streaming_problems(self, mixed: bool) -> Iterator[tuple[str, str]]:
        """Yield field and text of each setting that needs the number of rows, and of a missing weight in a mixture."""
        yield from super().streaming_problems(mixed)
        if mixed and self.weight is None:
            text = "got none, but streamed sources are mixed by weight; expected a number above 0"
            yield "weight", text

    def load(self, split: str) -> Rows:
        """Return all rows of a split, given by the data's name of it; the caller takes slice and sample."""
        return self.read(split)

    @property
    def loads_otherwise(self) -> bool:
        """Whether a subclass overrides `load`, so that the files as they are would be other rows."""
        return type(self).load is not SampledSource.load

    def identity(self, split: str) -> dict[str, Any]:
        """Return everything that determines the rows: content, split, slice and sample."""
        name = self.split_name(split)
        sample = [self.sample_ratio, self.sample_count, self.sample_seed]
        content = self.content(name)
        return {
            "split": name,
            "slice": self.slice_bounds,
            "sample": sample,
            "process": self.process,
            "content": content,
        }

    def outline(self, split: str) -> dict[str, Any]:
        """Return the split and what identifies its content without reading all of it."""
        name = self.split_name(split)
        return {"split": name, "process": self.process, "content": self.content_outline(name)}

    def content_outline(self, split: str) -> Any:
        """Return plain values that identify the rows of `split` without reading all of them."""
        return self.content(split)

    def split_name(self, split: str) -> str:
        """Return the data's name of this split, without the slice."""
        name = super().split_name(split)
        return self.split_mapping.get(name, name)

    @abstractmethod
    def read(self, split: str) -> Rows:
        """Return all rows of a split, given by the data's name of it."""

    @abstractmethod
    def content(self, split: str) -> Any:
        """Return plain values that change whenever the rows of a split change, given by the data's name of it."""
