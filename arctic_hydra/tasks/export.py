"""`task=export`: writes a checkpoint of any number of ranks as a Hugging Face directory, in one process on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra import assemble, display
from arctic_hydra.checkpoint import initial_weights
from arctic_hydra.checkpoint.hf import HuggingFaceCheckpoint, check_mergeable, has_adapter, write_export
from arctic_hydra.checkpoint.store import step_name
from arctic_hydra.config import Run
from arctic_hydra.data.load.stop_tokens import counted_stops
from arctic_hydra.distributed import World
from arctic_hydra.run_directory import FINISHED, RunDirectory, relative
from arctic_hydra.tasks.evaluate import checkpoint_root
from arctic_hydra.trainer.parts.saving import size_mib

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def execute(run: Run, run_dir: Path) -> dict[str, Any]:
    """Write the checkpoint as `<save_name>-step-<step>` next to the run's checkpoints; return its path."""
    assemble.start_log(run, run_dir)
    run.trainer.set_callbacks([], World.from_env())
    found = initial_weights.find_checkpoint(checkpoint_root(run, run_dir), run.from_checkpoint)
    weights = assemble.averaged(run, found, "export")
    tokenizer = run.trainer.create_tokenizer(run.tokenizer)
    start = assemble.starting_weights(run)
    with display.phase("weights", f"from {relative(weights.path)}"):
        config = run.trainer.create_config(run.model)
        model = assemble.create_model(run, config, tokenizer, start, weights, quantize=False)
    chosen = run.checkpoint.get("hf")
    options = chosen if isinstance(chosen, HuggingFaceCheckpoint) else HuggingFaceCheckpoint()
    name = f"{options.save_name}-{step_name(weights.step or 0)}"
    target = options.directory_of(run_dir.parent) / name
    merge = options.merge if options.merge is not None else assemble.base_of(run) is None
    with display.phase("export", f"to {name}/", unit="MiB") as phase:
        if has_adapter(model) and merge:
            check_mergeable(model)
            model = model.merge_and_unload()
        stops = _stop_tokens(run, run_dir.parent, weights, tokenizer)
        write_export(model, model.state_dict(), tokenizer, target, options, stops)
        phase.advance(size_mib(target))
    return {"status": FINISHED, "checkpoint": str(weights.path), "step": weights.step, "export": str(target)}


def _stop_tokens(
    run: Run, trained_in: Path, weights: initial_weights.Weights, tokenizer: PreTrainedTokenizerBase
) -> Sequence[int]:
    """Return the stop tokens that the checkpoint holds, or, for older checkpoints, those in the record of its run."""
    if weights.stop_tokens is not None:
        return weights.stop_tokens
    figures = RunDirectory(trained_in).record().get("statistics", {}).get("train", {})
    return counted_stops(figures, tokenizer, run.data.end_of_turn_tokens)
