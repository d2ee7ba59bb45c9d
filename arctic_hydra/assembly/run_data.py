"""The tokenizer and the batches of one rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from arctic_hydra import without_garbage_collection
from arctic_hydra.assembly.startup import join_ranks
from arctic_hydra.config import Run, has_legacy_id
from arctic_hydra.data.base import BatchGeometry, Loader
from arctic_hydra.data.code_identity import legacy_identity
from arctic_hydra.data.load.sequence_parallel import shard_loader
from arctic_hydra.distributed import World
from arctic_hydra.run_directory import RunDirectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(kw_only=True, frozen=True)
class Data:
    """The tokenizer and the batches of one rank."""

    world: World
    tokenizer: PreTrainedTokenizerBase
    group_loader: Loader
    """Batches of this rank's sequence group; checkpoints record their position."""
    loader: Loader
    """This rank's share of them."""
    eval_loader: Loader | None


def build_data(run: Run, run_dir: Path) -> Data:
    """Join the other ranks, then build the tokenizer and this rank's batches, which determine the training horizon."""
    world = join_ranks(run)
    with without_garbage_collection(), run.trainer.event("create_tokenizer") as facts:
        tokenizer = facts["tokenizer"] = run.trainer.create_tokenizer(run.tokenizer)
    data = create_loaders(run, run_dir, tokenizer, world)
    run.trainer.plan(data.loader, run.scheduler.warmup)
    return data


def create_loaders(run: Run, run_dir: Path, tokenizer: PreTrainedTokenizerBase, world: World) -> Data:
    """Return this rank's training and evaluation batches, padded to one size if the model is compiled."""
    dealt_to = world.data_parallel(run.trainer.sequence_parallel_size)
    padding = run.padded_row_tokens, run.data.row_multiple
    with run.trainer.event("create_loader", tokenizer=tokenizer) as facts, legacy_identity(has_legacy_id(run, run_dir)):
        loaders = run.trainer.create_data(run.data, tokenizer, geometry(run, dealt_to))
        facts["loader"], facts["eval_loader"] = loaders
    group_loader, eval_loader = facts["loader"], loaders[1]
    return Data(
        world=world,
        tokenizer=tokenizer,
        group_loader=group_loader,
        loader=shard_loader(group_loader, *padding),
        eval_loader=eval_loader and shard_loader(eval_loader, *padding),
    )


def record_horizon(run: Run, run_dir: Path, data: Data) -> None:
    """Write the training horizon into the run's record, for programs that monitor the run."""
    if data.world.is_main:
        RunDirectory(run_dir).update_record(horizon=run.trainer.training_horizon)


def geometry(run: Run, dealt_to: World) -> BatchGeometry:
    """Return the batch geometry for the data-parallel ranks `dealt_to`, see `World.data_parallel`."""
    trainer = run.trainer
    return BatchGeometry(
        trainer.micro_batch_size, trainer.gradient_accumulation_steps, dealt_to, run.seed, trainer.train_iters
    )
