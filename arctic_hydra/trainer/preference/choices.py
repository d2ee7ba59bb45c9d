"""Names of preference losses and references, known without torch."""

from __future__ import annotations

from enum import Enum


class ReferenceKind(Enum):
    """Which model is the reference, unless `reference_path` names another one."""

    auto = "auto"
    copy = "copy"
    adapter_off = "adapter_off"
    cached = "cached"


PAIR_LOSS_NAMES = ("sigmoid", "sigmoid_norm", "ipo", "hinge", "robust", "apo_zero", "apo_down", "exo_pair")
SMOOTHED = frozenset({"sigmoid", "robust", "exo_pair"})
"""Losses with label smoothing."""
PER_TOKEN = frozenset({"sigmoid_norm", "ipo"})
"""Losses of mean log-probabilities instead of sums."""
