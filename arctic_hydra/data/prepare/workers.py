"""Processes that turn rows into examples; or this process alone, where that is quicker."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from arctic_hydra.data.documents import Chunk
from arctic_hydra.data.prepare.preparer import PrepareOptions, RowPreparer, SourceRows
from arctic_hydra.data.prepare.row_report import RowReport
from arctic_hydra.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from arctic_hydra.data.rows.base import Rows


@dataclass(frozen=True)
class Task:
    """Rows [start, stop) of a source: of those that the workers know, or of other `rows` that come along."""

    source: int
    start: int
    stop: int
    rows: Rows | None = None


PreparedChunk = tuple[Chunk, RowReport]
TaskRunner = Callable[[Iterable[Task]], Iterator[PreparedChunk]]


@contextmanager
def task_runner(
    sources: Sequence[SourceRows], tokenizer: PreTrainedTokenizerBase, options: PrepareOptions, processes: int
) -> Iterator[TaskRunner]:
    """Give a function that prepares tasks and yields their results in order, with one process in this very one.

    Raises DataError when a process dies.
    """
    if processes < 2:
        preparers = [RowPreparer(source, tokenizer, options) for source in sources]
        yield lambda tasks: (_run_task(preparers, task) for task in tasks)
        return
    with _pool(processes, sources, tokenizer, options) as pool:

        def run_tasks(tasks: Iterable[Task]) -> Iterator[PreparedChunk]:
            try:
                yield from pool.map(_run_task_in_worker, tasks)
            except BrokenProcessPool as error:
                raise _worker_died(processes) from error

        yield run_tasks


def prepare_with_helpers(
    preparer: RowPreparer,
    tasks: Sequence[Task],
    helpers: int,
    source: SourceRows,
    tokenizer: PreTrainedTokenizerBase,
    options: PrepareOptions,
) -> Iterator[PreparedChunk]:
    """Yield the results of tasks of `source` in order; this process, too, does what its helpers have not begun."""
    results: deque[Future[PreparedChunk]] = deque()
    waiting = deque(tasks)
    with _pool(helpers, [source], tokenizer, options) as pool:
        try:
            while results or waiting:
                while waiting and sum(not result.done() for result in results) < 2 * helpers:
                    results.append(pool.submit(_run_task_in_worker, waiting.popleft()))
                if waiting and not results[0].done():
                    results.append(_run_here(preparer, waiting.popleft()))
                else:
                    yield results.popleft().result()
        except BrokenProcessPool as error:
            raise _worker_died(helpers) from error


def _run_here(preparer: RowPreparer, task: Task) -> Future[PreparedChunk]:
    """Return the result of a task; an error waits for its turn, so that the first bad row is the one told."""
    future: Future[PreparedChunk] = Future()
    try:
        future.set_result(_run_task([preparer], task))
    except DataError as error:
        future.set_exception(error)
    return future


@contextmanager
def _pool(
    processes: int, sources: Sequence[SourceRows], tokenizer: PreTrainedTokenizerBase, options: PrepareOptions
) -> Iterator[ProcessPoolExecutor]:
    """Give a pool whose processes take what they need from a file.

    As arguments it would go through a pipe, which holds 64 KiB: the start of each process would wait until it has imported
    its modules, one process after another.
    """
    # Spawned, not forked: a rank may hold CUDA and the threads of its process group by now.
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryFile() as file:  # without a name: it ends with this process, whatever ends that
        pickle.dump((sources, tokenizer, options), file, protocol=pickle.HIGHEST_PROTOCOL)
        file.flush()
        path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
        pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(path,))
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        pool.shutdown(wait=False, cancel_futures=True)  # everything is there: they may end on their own


def _worker_died(processes: int) -> DataError:
    return DataError(
        f"data.num_proc: one of {processes} preparation processes died (out of memory?); pass a lower data.num_proc"
    )


_WORKER_PREPARERS: list[RowPreparer] = []


def _start_worker(path: str) -> None:
    # The parent may block signals and decides alone when to stop; a worker dies of SIGTERM and leaves Ctrl-C to it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR2})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core for each worker
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return  # the work was done before this process had started
    sources, tokenizer, options = pickle.loads(content)
    _WORKER_PREPARERS[:] = [RowPreparer(source, tokenizer, options) for source in sources]


def _exit_with_parent() -> None:
    """End this process when its parent is gone, killed or not: nobody would tell it, and it would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "helpers are started by this package alone"
    parent.join()
    os._exit(1)


def _run_task_in_worker(task: Task) -> PreparedChunk:
    return _run_task(_WORKER_PREPARERS, task)


def _run_task(preparers: Sequence[RowPreparer], task: Task) -> PreparedChunk:
    preparer = preparers[task.source]
    return (preparer if task.rows is None else preparer.with_rows(task.rows)).prepare_chunk(task.start, task.stop)
