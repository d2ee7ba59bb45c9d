"""`task=export`: writes a checkpoint of any number of ranks as a Hugging Face directory, in one process on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra import display
from arctic_hydra.assembly import base_weights, run_model, startup
from arctic_hydra.checkpoint import initial_weights
from arctic_hydra.checkpoint.hf import HuggingFaceCheckpoint, check_mergeable, write_export
from arctic_hydra.checkpoint.store import step_name
from arctic_hydra.config import Run
from arctic_hydra.data.load.stop_tokens import counted_stops
from arctic_hydra.distributed import World
from arctic_hydra.model.names import NEEDS_CUDA
from arctic_hydra.report.outcome import verified
from arctic_hydra.run_directory import FINISHED, RunDirectory, relative
from arctic_hydra.tasks.evaluate import checkpoint_root
from arctic_hydra.trainer.parts.saving import size_mib
from arctic_hydra.trainer.verification.comparison import verify
from arctic_hydra.trainer.verification.expectation import expect

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def execute(run: Run, run_dir: Path) -> dict[str, Any]:
    """Write the checkpoint as `<save_name>-step-<step>` next to the run's checkpoints; return its path and what verifying it found."""
    import torch

    startup.start_log(run, run_dir)
    restored = restore(run, run_dir)
    model, tokenizer, weights, stops = restored.model, restored.tokenizer, restored.weights, restored.stop_tokens
    del restored  # refers to the model, which must not stay in memory
    chosen = run.checkpoint.get("hf")
    options = chosen if isinstance(chosen, HuggingFaceCheckpoint) else HuggingFaceCheckpoint()
    name = f"{options.save_name}-{step_name(weights.step or 0)}"
    target = options.directory_of(run_dir.parent) / name
    expected = None
    if options.verify:
        trusted, device = run.model.trusts_remote_code, torch.device("cpu")
        expected = expect(model, tokenizer, stops, device, run.trainer.auto_class, trusts_remote_code=trusted)
    merge = options.merge if options.merge is not None else base_weights.base_of(run) is None
    with display.phase("export", f"to {name}/", unit="MiB") as phase:
        if initial_weights.has_adapter(model) and merge:
            check_mergeable(model)
            model = model.merge_and_unload()
        write_export(model, model.state_dict(), tokenizer, target, options, stops)
        phase.advance(size_mib(target))
    del model  # the export takes its place in memory
    verdicts = {name: verify(target, expected).as_dict()} if expected else {}
    ending = verified(FINISHED, verdicts)
    return {**ending, "checkpoint": str(weights.path), "step": weights.step, "export": str(target)}


@dataclass(frozen=True)
class Restored:
    """The model of a checkpoint on the CPU, as an export would hold it."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    weights: initial_weights.Weights
    """The checkpoint."""
    stop_tokens: Sequence[int]
    """Ids of the stop tokens that were trained."""


def restore(run: Run, run_dir: Path) -> Restored:
    """Return the model of the checkpoint that `from_checkpoint` or `export` selects, for the task whose folder is `run_dir`."""
    run.trainer.set_callbacks([], World.from_env())
    found = initial_weights.find_checkpoint(checkpoint_root(run, run_dir), run.export or run.from_checkpoint)
    weights = base_weights.averaged(run, found, "export")
    tokenizer = run.trainer.create_tokenizer(run.tokenizer)
    if run.model.attn_implementation in NEEDS_CUDA:
        run.model.attn_implementation = "eager"  # which every architecture has
    start = base_weights.starting_weights(run)
    with display.phase("weights", f"from {relative(weights.path)}"):
        config = run.trainer.create_config(run.model)
        model = run_model.create_model(run, config, tokenizer, start, weights, quantize=False)
    return Restored(model, tokenizer, weights, _stop_tokens(run, run_dir.parent, weights, tokenizer))


def _stop_tokens(
    run: Run, trained_in: Path, weights: initial_weights.Weights, tokenizer: PreTrainedTokenizerBase
) -> Sequence[int]:
    """Return the stop tokens that the checkpoint holds, or, for older checkpoints, those in the record of its run."""
    if weights.stop_tokens is not None:
        return weights.stop_tokens
    figures = RunDirectory(trained_in).record().get("statistics", {}).get("train", {})
    return counted_stops(figures, tokenizer, run.data.end_of_turn_tokens)
