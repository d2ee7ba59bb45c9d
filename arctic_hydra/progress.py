"""The counters of a run, including its position in the data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass
class Progress:
    """Counters of a run: totals since step 0 over all ranks, restored on resume."""

    global_step: int = 0
    """Completed optimizer steps, counted from 1; a skipped (non-finite or all-masked) step counts."""
    epoch: int = 0
    """Epochs completed."""
    epoch_step: int = 0
    """Optimizer steps completed in the current epoch, which is the position in the data."""
    tokens: int = 0
    """Tokens read, excluding padding."""
    supervised_tokens: int = 0
    """Tokens that contributed to the loss."""
    padding_tokens: int = 0
    """Padding tokens in the batches."""
    skipped_steps: int = 0
    """Steps that did not update the weights: non-finite gradients, a loss spike or no supervised token."""
    consecutive_skipped_steps: int = 0
    """Number of consecutive steps up to now that were skipped for non-finite gradients or a loss spike."""
    spiked_steps: int = 0
    """Skipped steps whose loss was a spike."""

    def state_dict(self) -> dict[str, int]:
        """Return the counters as plain ints."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set every counter from `state`. Raises KeyError if one is missing."""
        for item in fields(self):
            setattr(self, item.name, int(state[item.name]))
