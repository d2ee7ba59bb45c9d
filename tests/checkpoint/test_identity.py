"""Whether a checkpoint belongs to a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arctic_hydra.checkpoint.identity import check_identity
from arctic_hydra.checkpoint.store import Checkpoint
from arctic_hydra.errors import CheckpointError, ConfigError
from arctic_hydra.progress import Progress

OWN = {"config_hash": "abc", "data_fingerprint": "d", "zero_stage": 0, "frozen_weights": None}


def check(changes: dict[str, Any], extended: Path | None = None) -> None:
    manifest = {
        "world_size": 1,
        "identity": {**OWN, **changes},
        "progress": Progress().state_dict(),
        "evaluation": {},
        "recent_losses": [],
        "log_offsets": {},
    }
    state: Any = SimpleNamespace(identity=OWN, world=SimpleNamespace(is_main=True))
    check_identity(Checkpoint(Path("run/checkpoints/step-1"), manifest), state, extended)


def test_a_checkpoint_belongs_to_its_own_run_or_to_the_extended_one() -> None:
    check({})
    check({"config_hash": "xyz"}, extended=Path("runs/xyz"))
    with pytest.raises(
        CheckpointError, match="was saved by a different run: config_hash: checkpoint 'xyz', this run 'abc'"
    ):
        check({"config_hash": "xyz"})
    with pytest.raises(
        ConfigError, match="extend: .* does not fit this run: config_hash: checkpoint 'abc', this run 'xyz'"
    ):
        check({}, extended=Path("runs/xyz"))


def test_an_extended_run_has_the_same_data() -> None:
    with pytest.raises(ConfigError, match="extend: .* data_fingerprint: .*pass init_from=.* takes its weights only"):
        check({"config_hash": "xyz", "data_fingerprint": "other"}, extended=Path("runs/xyz"))
