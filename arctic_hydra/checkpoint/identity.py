"""Whether a checkpoint belongs to a run: its own, or the one that it extends."""

from __future__ import annotations

import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

from arctic_hydra.checkpoint.base import TrainingState
from arctic_hydra.checkpoint.store import MANIFEST, Checkpoint
from arctic_hydra.errors import CheckpointError, ConfigError
from arctic_hydra.files.state_file import Table, at_least_0, mismatch
from arctic_hydra.progress import Progress

logger = logging.getLogger("arctic_hydra.checkpoint")

RESUMABLE = Table(
    {
        "world_size": int,
        "identity": dict,
        "progress": Table({item.name: at_least_0 for item in fields(Progress)}),
        "evaluation": dict,
        "recent_losses": list,
        "log_offsets": dict,
    },
    {"extended_at": at_least_0},
)
"""The facts in a manifest that resuming needs."""
MUST_MATCH = ("config_hash", "data_fingerprint", "zero_stage", "frozen_weights")


def check_identity(found: Checkpoint, state: TrainingState, extended: Path | None = None) -> None:
    """Compare the identities of a checkpoint and of this run, or with `extended`, of the run in that directory.

    The result is the same on every rank. Raises CheckpointError, or ConfigError for a run that cannot be extended.
    """
    if problem := mismatch(found.manifest, RESUMABLE):
        raise CheckpointError(
            f"{found.path / MANIFEST}: {problem}; another program wrote it. Move that directory away to resume from the "
            "previous checkpoint, or pass fresh=true to start over"
        )
    then, now = found.manifest["identity"], json.loads(json.dumps(state.identity))
    if extended is not None:
        now["config_hash"] = extended.name
    differing = [key for key in MUST_MATCH if then.get(key) != now.get(key)]
    if differing:
        values = "; ".join(f"{key}: checkpoint {then.get(key)!r}, this run {now.get(key)!r}" for key in differing)
        if extended is not None:
            raise ConfigError(
                f"extend: {found.path} does not fit this run: {values}. Use the data and weights it was saved with, or pass "
                f"init_from={extended} instead of extend, which takes its weights only"
            )
        raise CheckpointError(
            f"{found.path} was saved by a different run: {values}. "
            "Use the config, data and global batch size it was saved with, or pass fresh=true to start over"
        )
    _warn_of_versions(found.path, then.get("versions", {}), now.get("versions", {}), state.world.is_main)


def _warn_of_versions(path: Path, before: dict[str, Any], here: dict[str, Any], is_main: bool) -> None:
    changed = [name for name in before | here if before.get(name) != here.get(name)] if before else []
    if changed and is_main:
        words = ", ".join(f"{name} {before.get(name)} -> {here.get(name)}" for name in changed)
        logger.warning("%s was saved with other versions (%s): resuming may not be bit-exact", path, words)
