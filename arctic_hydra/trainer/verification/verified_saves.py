"""Verifies the exports that a run writes while it trains and at its end."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra import distributed
from arctic_hydra.checkpoint.base import CheckpointEngine
from arctic_hydra.checkpoint.hf import HuggingFaceCheckpoint
from arctic_hydra.run_directory import RunDirectory
from arctic_hydra.trainer.verification.verdict import verdict_lines

if TYPE_CHECKING:
    from arctic_hydra.trainer.base import Trainer

log = logging.getLogger("arctic_hydra.trainer")


def verify_saved(trainer: Trainer, engine: CheckpointEngine, folder: Path | None) -> None:
    """Verify what `engine` has just exported to `folder`: the first export of this start and the final one; collective.

    The first shows early that exports fail, the final one is what is used; each takes time in which all ranks wait. Rank 0
    keeps the verdict in `trainer.export_verdicts`, and in the record if the export differs, and logs that on one before the end.
    """
    wanted = isinstance(engine, HuggingFaceCheckpoint) and engine.verify and folder is not None
    if not wanted or (trainer._loop.verified_any and not trainer.training_finished):
        return
    from arctic_hydra.trainer.verification.comparison import verify
    from arctic_hydra.trainer.verification.expectation import expect

    tools = trainer.tools
    trainer._loop.verified_any = True
    # Ranks must run equal samples: at ZeRO-3 each gathers the weights as often as the others.
    stops = distributed.broadcast_object(tools.state.stop_tokens() if trainer.world.is_main else [])
    with trainer.trial():
        expected = expect(
            tools.engine,
            tools.state.tokenizer,
            stops,
            trainer.device,
            trainer.auto_class,
            trusts_remote_code=tools.model_factory.trusts_remote_code,
        )
    if not trainer.world.is_main:
        return
    assert folder is not None
    # The other ranks wait in their next collective.
    seconds = min(expected.reload_seconds, trainer.collective_timeout_seconds / 3)
    expected = replace(expected, reload_seconds=seconds)
    verdict = trainer.export_verdicts[folder.name] = verify(folder, expected).as_dict()
    _remember(trainer.export_verdicts, RunDirectory(tools.run_dir))
    if not trainer.training_finished:  # the summary of the run shows the last one
        for line in verdict_lines(folder.name, verdict):
            log.log(logging.ERROR if verdict["differs"] else logging.INFO, "%s", line)


def _remember(verdicts: dict[str, dict[str, Any]], directory: RunDirectory) -> None:
    """Keep the verdicts on exports that differ in the record, so that the run fails at its end even if it stops before."""
    wrong = {name: verdict for name, verdict in verdicts.items() if verdict["differs"]}
    if wrong != directory.record().get("verification", {}):
        directory.update_record(verification=wrong)
