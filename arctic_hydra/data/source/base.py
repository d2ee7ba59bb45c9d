"""Base of the built-in sources: splits, slices and samples of the rows."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from arctic_hydra.data.base import DataSource
from arctic_hydra.errors import DataError, FieldError
from arctic_hydra.human_numbers import HumanFloat, HumanInt, integer, number

SLICE = re.compile(r"[^\[\]]*\[(?P<start>-?\d+%?|):(?P<stop>-?\d+%?|)\]")

if TYPE_CHECKING:
    from arctic_hydra.data.rows.base import Rows


@dataclass(kw_only=True)
class SampledSource(DataSource):
    """A source that maps split names and can use a sample of the rows; subclasses read and identify the rows."""

    split: str = ""
    """Split to read, with an optional slice: `train[:10%]`, `[100:200]`, `[-50:]`; empty: `train` for sources, `eval` for eval_sources."""
    split_mapping: dict[str, str] = field(default_factory=dict)
    """Maps split names to those of the data, as in `{train: train_sft, eval: test_sft}`; an empty name: no such split."""
    sample_ratio: HumanFloat | None = number(None, minimum=0, maximum=1)
    """Share of the rows to use, drawn at random; excludes `sample_count`."""
    sample_count: HumanInt | None = integer(None, minimum=1)
    """Number of rows to use, drawn at random (all if there are fewer); excludes `sample_ratio`."""
    weight: HumanFloat | None = number(None, minimum=1e-9)
    """Share of an epoch relative to the other sources' weights, resampled every epoch; unset: every row once."""
    sample_seed: HumanInt = integer(42, minimum=0, maximum=2**64 - 1)
    """Seed of the sample."""

    def validate(self) -> None:
        """Check that at most one sample size is set, that it is not 0, and that a slice can be parsed."""
        super().validate()
        if self.sample_ratio is not None and self.sample_count is not None:
            text = f"got {self.sample_ratio} together with sample_count={self.sample_count}; expected one of them; remove one"
            raise FieldError([("sample_ratio", text)])
        if self.sample_ratio == 0:
            raise FieldError([("sample_ratio", "got 0, which leaves no rows; expected more than 0")])
        if {"[", "]"} & set(self.split) and not SLICE.fullmatch(self.split):
            text = f"got {self.split!r}, expected a name and a slice such as train[:10%], train[100:200] or [-50:]"
            raise FieldError([("split", text)])

    def has_split(self, split: str) -> bool:
        """Return whether the data has a split for `split`: false where `split_mapping` maps it to an empty name."""
        return bool(self.split) or self.split_mapping.get(split) != ""

    def streaming_problems(self, mixed: bool) -> Iterator[tuple[str, str]]:
        """Yield field and text of each setting that needs the number of rows, and of a missing weight in a mixture."""
        unknown = "has no effect with data.streaming=true, where the number of rows is unknown; remove"
        for key in ("sample_ratio", "sample_count"):
            if getattr(self, key) is not None:
                yield key, f"{unknown} it"
        if "[" in self.split:
            yield "split", f"got a slice, which {unknown} the slice"
        if mixed and self.weight is None:
            text = "got none, but streamed sources are mixed by weight; expected a number above 0"
            yield "weight", text

    def load(self, split: str) -> Rows:
        """Return the rows of `split`, first sliced, then sampled."""
        from arctic_hydra.data.rows.base import sample_rows, slice_rows

        rows = self.read(self.split_name(split))
        if bounds := self._slice():
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

    def identity(self, split: str) -> dict[str, Any]:
        """Return what the rows depend on: content, split, slice and sample."""
        name = self.split_name(split)
        sample = [self.sample_ratio, self.sample_count, self.sample_seed]
        content = self.content(name)
        return {"split": name, "slice": self._slice(), "sample": sample, "process": self.process, "content": content}

    def outline(self, split: str) -> dict[str, Any]:
        """Return the split and what identifies its content without reading all of it."""
        name = self.split_name(split)
        return {"split": name, "process": self.process, "content": self.content_outline(name)}

    def content_outline(self, split: str) -> Any:
        """Return plain values that identify the rows of `split` without reading all of them."""
        return self.content(split)

    def split_name(self, split: str) -> str:
        """Return the data's name of this split, without the slice."""
        name = self.split.partition("[")[0] or split
        return self.split_mapping.get(name, name)

    def _slice(self) -> tuple[str, str] | None:
        match = SLICE.fullmatch(self.split)
        return (match["start"], match["stop"]) if match else None

    @abstractmethod
    def read(self, split: str) -> Rows:
        """Return all rows of a split, given by the data's name of it."""

    @abstractmethod
    def content(self, split: str) -> Any:
        """Return plain values that change whenever the rows of a split change, given by the data's name of it."""
