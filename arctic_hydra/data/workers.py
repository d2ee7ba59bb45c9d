"""Processes that turn rows into examples; or this process alone, where that is quicker."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from arctic_hydra.data.examples import Options, Preparer, Report, SourceRows
from arctic_hydra.data.store import Chunk
from arctic_hydra.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from arctic_hydra.data.source.rows import Rows


@dataclass(frozen=True)
class Task:
    """Rows [start, stop) of a source: of those that the workers know, or of other `rows` that come along."""

    source: int
    start: int
    stop: int
    rows: Rows | None = None


Prepared = tuple[Chunk, Report]


@contextmanager
def workers(
    sources: Sequence[SourceRows], tokenizer: PreTrainedTokenizerBase, options: Options, processes: int
) -> Iterator[Callable[[Iterable[Task]], Iterator[Prepared]]]:
    """Give a function that prepares tasks and yields their results in order, with one process in this very one.

    Raises DataError when a process dies.
    """
    if processes < 2:
        preparers = [Preparer(source, tokenizer, options) for source in sources]
        yield lambda tasks: (_prepare(preparers, task) for task in tasks)
        return
    # Spawned, not forked: a rank may hold CUDA and the threads of its process group by now.
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(sources, tokenizer, options),
    )

    def prepare(tasks: Iterable[Task]) -> Iterator[Prepared]:
        try:
            yield from pool.map(_work, tasks)
        except BrokenProcessPool as error:
            raise DataError(
                f"data.num_proc: one of {processes} preparation processes died (out of memory?); pass a "
                f"lower data.num_proc"
            ) from error

    try:
        yield prepare
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_PREPARERS: list[Preparer] = []


def _start(sources: Sequence[SourceRows], tokenizer: PreTrainedTokenizerBase, options: Options) -> None:
    # The parent may block signals and decides alone when to stop; a worker dies of SIGTERM and leaves Ctrl-C to it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR2})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core for each worker
    _PREPARERS[:] = [Preparer(source, tokenizer, options) for source in sources]


def _work(task: Task) -> Prepared:
    return _prepare(_PREPARERS, task)


def _prepare(preparers: Sequence[Preparer], task: Task) -> Prepared:
    preparer = preparers[task.source]
    return (preparer if task.rows is None else preparer.of(task.rows)).chunk((task.start, task.stop))
