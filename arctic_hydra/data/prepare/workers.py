"""Worker processes that turn rows into examples, or the current process if that is faster."""

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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from arctic_hydra.data.documents import Chunk
from arctic_hydra.data.prepare.preparer import PrepareOptions, RowPreparer, SourceRows
from arctic_hydra.data.prepare.row_report import RowReport
from arctic_hydra.errors import DataError
from arctic_hydra.files import code_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from arctic_hydra.data.rows.base import Rows


@dataclass(frozen=True)
class RowTask:
    """Rows [start, stop) of a source: of the rows that the workers have, or of `rows` if given."""

    source: int
    start: int
    stop: int
    rows: Rows | None = None


PreparedChunk = tuple[Chunk, RowReport]
TaskRunner = Callable[[Iterable[RowTask]], Iterator[PreparedChunk]]


@contextmanager
def task_runner(
    sources: Sequence[SourceRows], tokenizer: PreTrainedTokenizerBase, options: PrepareOptions, processes: int
) -> Iterator[TaskRunner]:
    """Provide a function that yields the results of tasks in order; with one process, they run in the current one.

    Chat templates are not rendered in a thread of the training process: its memory could not be limited without limiting the run.
    The function raises DataError if a worker process dies.
    """
    beside = threading.current_thread() is not threading.main_thread()
    if processes < 2 and not (beside and any(source.uses_template for source in sources)):
        preparers = [RowPreparer(source, tokenizer, options) for source in sources]
        yield lambda tasks: (_run_task(preparers, task) for task in tasks)
        return
    with _pool(processes, sources, tokenizer, options) as pool:

        def run_tasks(tasks: Iterable[RowTask]) -> Iterator[PreparedChunk]:
            try:
                yield from pool.map(_run_task_in_worker, tasks)
            except BrokenProcessPool as error:
                raise _worker_died(processes) from error

        yield run_tasks


def prepare_with_helpers(
    preparer: RowPreparer,
    tasks: Sequence[RowTask],
    helpers: int,
    source: SourceRows,
    tokenizer: PreTrainedTokenizerBase,
    options: PrepareOptions,
) -> Iterator[PreparedChunk]:
    """Yield the results of tasks of `source` in order; this process also runs tasks that no helper has started."""
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


def _run_here(preparer: RowPreparer, task: RowTask) -> Future[PreparedChunk]:
    """Return the result of a task run in this process; errors are kept in order, so that the first bad row is reported."""
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
    """Provide a pool whose processes read their input from a file.

    Arguments would be passed through a pipe with a capacity of 64 KiB, so each process could start only after the previous
    one has imported its modules.
    """
    # Spawned, not forked: a rank may already use CUDA and have threads of its process group.
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryFile() as file:  # unnamed, so that nothing remains even if this process is killed
        try:
            pickle.dump((sources, tokenizer, options), file, protocol=pickle.HIGHEST_PROTOCOL)
            file.flush()
        except OSError as error:
            with suppress(OSError):
                file.close()  # which writes what is left once more
            raise DataError(
                f"data.num_proc: cannot pass the rows to {processes} worker processes in a file in {tempfile.gettempdir()} "
                f"({error.strerror}); set the environment variable TMPDIR to a directory with space, or pass data.num_proc=1"
            ) from error
        path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
        pool = ProcessPoolExecutor(
            processes, mp_context=context, initializer=_start_worker, initargs=(path, code_file.arguments())
        )
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        pool.shutdown(wait=False, cancel_futures=True)  # all results are in; the processes exit on their own


def _worker_died(processes: int) -> DataError:
    return DataError(
        f"data.num_proc: one of {processes} worker processes died (out of memory? pass a lower data.num_proc), "
        "or rendered one conversation without end (check tokenizer.chat_template)"
    )


_WORKER_PREPARERS: list[RowPreparer] = []


def _start_worker(path: str, code: Sequence[str]) -> None:
    # The parent may block signals and decides when to stop; workers exit on SIGTERM and ignore Ctrl-C.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR2})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core per worker
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return  # the work was finished before this process started
    code_file.take(code)  # sources may be instances of its classes
    sources, tokenizer, options = pickle.loads(content)
    _WORKER_PREPARERS[:] = [RowPreparer(source, tokenizer, options) for source in sources]


def _exit_with_parent() -> None:
    """Exit when the parent process ends, even if it is killed; the worker would otherwise wait forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers are started by this package only"
    parent.join()
    os._exit(1)


def _run_task_in_worker(task: RowTask) -> PreparedChunk:
    return _run_task(_WORKER_PREPARERS, task)


def _run_task(preparers: Sequence[RowPreparer], task: RowTask) -> PreparedChunk:
    preparer = preparers[task.source]
    return (preparer if task.rows is None else preparer.with_rows(task.rows)).prepare_chunk(task.start, task.stop)


def cores_per_process(processes: int) -> int:
    """Return this process's share of the cores, if `processes` work on this machine."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, processes))
