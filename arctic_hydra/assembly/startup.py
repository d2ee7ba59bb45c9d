"""The start of a rank: its log, its place among the ranks, and callbacks for errors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arctic_hydra import determinism, distributed, log
from arctic_hydra.config import Run
from arctic_hydra.distributed import World
from arctic_hydra.errors import ConfigError

logger = logging.getLogger(__name__)


@contextmanager
def report_exceptions(run: Run, run_dir: Path) -> Iterator[None]:
    """Call `on_exception` of every callback for an error raised in this context, then raise it again."""
    run.trainer.set_callbacks(list(run.callback.values()), World.from_env())
    try:
        yield
    except Exception as error:
        try:
            run.trainer.notify("exception", run.trainer, {"error": error, "run_dir": run_dir})
        except Exception:
            logger.exception("a callback failed in on_exception")
        raise


def start_process(run: Run, run_dir: Path) -> None:
    """Open the log of this rank; raise ConfigError if this machine cannot run it, or if the model's code does not qualify."""
    start_log(run, run_dir)
    if problems := run.environment_problems():
        raise ConfigError(problems)
    run.model.check_model()


def start_log(run: Run, run_dir: Path) -> None:
    """Open the log of this rank, on the terminal and in `logs/`, as the config group `log` selects."""
    world = World.from_env()
    log.start(run_dir, world, run.log.level, to_file=run.log.writes(world), to_terminal=run.log.prints(world))
    log.quiet_progress_bars()


def join_ranks(run: Run) -> World:
    """Start the process groups, seed this process, and return its place among the ranks. Collective."""
    world, trainer = World.from_env(), run.trainer
    if run.deterministic:
        determinism.use_deterministic_algorithms()
    distributed.start(world, trainer.collective_timeout_seconds)
    distributed.start_sequence_groups(world, trainer.sequence_parallel_size, trainer.collective_timeout_seconds)
    determinism.seed_everything(run.seed)
    return world
