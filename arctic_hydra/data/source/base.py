"""What the built-in sources share: a split, and a sample of the rows."""

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
    """A source that maps split names and may take only a sample; subclasses read rows and identify them."""

    split: str = ""
    """Split to read; empty: `train` for sources, `eval` for eval_sources. A slice may follow: `train[:10%]`, `[100:200]`, `[-50:]`."""
    split_mapping: dict[str, str] = field(default_factory=dict)
    """From a split name to what the data calls it, as in `{train: train_sft, eval: test_sft}`; empty where it has none."""
    sample_ratio: HumanFloat | None = number(None, minimum=0, maximum=1)
    """Share of the rows to use, chosen at random; excludes `sample_count`."""
    sample_count: HumanInt | None = integer(None, minimum=1)
    """Number of rows to use, chosen at random (all where there are fewer); excludes `sample_ratio`."""
    weight: HumanFloat | None = number(None, minimum=1e-9)
    """Share of an epoch beside the other sources' weights, drawn anew in each epoch; unset: every row once."""
    sample_seed: HumanInt = integer(42, minimum=0)
    """Seed of the choice of rows."""

    def validate(self) -> None:
        """Refuse two sample sizes at once, and an empty sample."""
        super().validate()
        if self.sample_ratio is not None and self.sample_count is not None:
            text = (
                f"got {self.sample_ratio} beside sample_count={self.sample_count}; expected one of them; drop the other"
            )
            raise FieldError([("sample_ratio", text)])
        if self.sample_ratio == 0:
            raise FieldError([("sample_ratio", "got 0, which leaves no row; expected more than 0")])
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
        """Return the rows of `split`: the slice of them, then the sample of that."""
        from arctic_hydra.data.rows.base import sample_rows, slice_rows

        rows = self.read(self.split_name(split))
        if bounds := self._slice():
            rows = slice_rows(rows, *bounds)
            if not len(rows):
                raise DataError(f"split={self.split} leaves no row; expected a slice that holds some")
        sample = sample_rows(rows, self.sample_ratio, self.sample_count, self.sample_seed)
        if len(rows) and not len(sample):
            raise DataError(
                f"sample_ratio={self.sample_ratio} of {len(rows)} rows leaves none; expected a share of at least one; raise it, "
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
        """Return the split and what is known of its rows without reading them."""
        name = self.split_name(split)
        return {"split": name, "process": self.process, "content": self.content_outline(name)}

    def content_outline(self, split: str) -> Any:
        """Return plain values that tell the rows of `split` without reading them all."""
        return self.content(split)

    def split_name(self, split: str) -> str:
        """Return what the data calls this split, its slice aside."""
        name = self.split.partition("[")[0] or split
        return self.split_mapping.get(name, name)

    def _slice(self) -> tuple[str, str] | None:
        match = SLICE.fullmatch(self.split)
        return (match["start"], match["stop"]) if match else None

    @abstractmethod
    def read(self, split: str) -> Rows:
        """Return all rows of the split that the data calls `split`."""

    @abstractmethod
    def content(self, split: str) -> Any:
        """Return plain values that change whenever the rows of `split` change."""
