"""The one owner of every counter of a run: what was done, and where in the data it stands."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass
class Progress:
    """Counters of a run; all are totals since step 0, over all ranks, and survive a resume."""

    global_step: int = 0
    """Completed optimizer steps, counted from 1; a skipped (non-finite or all-masked) step counts."""
    epoch: int = 0
    """Epochs completed."""
    epoch_step: int = 0
    """Optimizer steps completed within the current epoch: the data position."""
    tokens: int = 0
    """Real tokens read, padding excluded."""
    supervised_tokens: int = 0
    """Tokens that contributed to the loss."""
    padding_tokens: int = 0
    """Padding tokens computed."""
    skipped_steps: int = 0
    """Steps that changed no weight: non-finite gradients, or not one supervised token."""
    consecutive_skipped_steps: int = 0
    """Length of the run of steps that ends here and was skipped for non-finite gradients or a loss spike."""
    spiked_steps: int = 0
    """Those of the skipped steps whose loss was a spike."""

    def state_dict(self) -> dict[str, int]:
        """Return the counters as plain ints."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set every counter from `state`; raises KeyError when one is missing."""
        for item in fields(self):
            setattr(self, item.name, int(state[item.name]))
