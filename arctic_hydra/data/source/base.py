"""What the built-in sources share: a split, and a sample of the rows."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from arctic_hydra.data.base import DataSource
from arctic_hydra.errors import FieldError
from arctic_hydra.human_numbers import HumanFloat, HumanInt, integer, number

if TYPE_CHECKING:
    from arctic_hydra.data.source.rows import Rows


@dataclass(kw_only=True)
class SampledSource(DataSource):
    """A source that maps split names and may take only a sample; subclasses read rows and identify them."""

    split: str = ""
    """Split to read; empty: `train` for sources, `eval` for eval_sources."""
    split_mapping: dict[str, str] = field(default_factory=dict)
    """From a split name to what the data calls it, as in `{train: train_sft, eval: test_sft}`."""
    sample_ratio: HumanFloat | None = number(None, minimum=0, maximum=1)
    """Share of the rows to use, chosen at random; excludes `sample_count`."""
    sample_count: HumanInt | None = integer(None, minimum=1)
    """Number of rows to use, chosen at random (all where there are fewer); excludes `sample_ratio`."""
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

    def load(self, split: str) -> Rows:
        """Return the rows of `split`, sampled."""
        from arctic_hydra.data.source.rows import sample_rows

        return sample_rows(self.read(self.split_name(split)), self.sample_ratio, self.sample_count, self.sample_seed)

    def identity(self, split: str) -> dict[str, Any]:
        """Return what the rows depend on: content, split and sample."""
        name = self.split_name(split)
        sample = [self.sample_ratio, self.sample_count, self.sample_seed]
        return {"split": name, "sample": sample, "process": self.process, "content": self.content(name)}

    def split_name(self, split: str) -> str:
        """Return what the data calls this split."""
        name = self.split or split
        return self.split_mapping.get(name, name)

    @abstractmethod
    def read(self, split: str) -> Rows:
        """Return all rows of the split that the data calls `split`."""

    @abstractmethod
    def content(self, split: str) -> Any:
        """Return plain values that change whenever the rows of `split` change."""
