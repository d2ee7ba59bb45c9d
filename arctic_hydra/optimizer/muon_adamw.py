"""torch's Muon and AdamW behind one optimizer; `use_muon` of a group chooses between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class MuonAdamW(torch.optim.Optimizer):
    """Updates groups with `use_muon` by `torch.optim.Muon`, the others by `torch.optim.AdamW`; both share groups and state."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})
        of = {kind: [group for group in self.param_groups if group["use_muon"] is kind] for kind in (True, False)}
        self._parts: dict[bool, torch.optim.Optimizer] = {}
        if of[True]:
            self._parts[True] = torch.optim.Muon(of[True])
        if of[False]:
            self._parts[False] = torch.optim.AdamW(of[False])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters; `closure` is not supported."""
        assert closure is None, "MuonAdamW takes no closure"
        for kind, part in self._parts.items():
            # Loading a state replaces groups and state, so they are passed on at every step.
            part.param_groups = [group for group in self.param_groups if group["use_muon"] is kind]
            part.state = self.state
            part.step()
