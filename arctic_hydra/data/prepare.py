"""A source's rows to its entry in the cache: the key, the worker processes, and the report."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra.data.examples import Options, Preparer, Report, SourceRows
from arctic_hydra.data.store import Chunk, write_store
from arctic_hydra.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CODE_VERSION = 2
"""Raise when the same rows and options would give other tokens or masks: it is part of the cache key."""

CHUNK_ROWS = 1000
WORTH_SECONDS = 10.0
"""A worker process takes seconds to start: it is started where this process alone would need so long for the rest."""


def prepared_key(identity: Any, tokenizer: PreTrainedTokenizerBase, options: Options) -> str:
    """Return the cache key of a source: a hash over its rows, tokenizer, template, options and this code's version."""
    backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    backend.no_truncation()
    backend.no_padding()
    try:
        template = str(tokenizer.get_chat_template())
    except ValueError:  # none: fine for texts, and conversations say so when they are encoded
        template = ""
    parts = {
        "code": CODE_VERSION,
        "source": identity,
        "options": asdict(options),
        "tokenizer": hashlib.sha256(backend.to_str().encode()).hexdigest(),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": template,
        # Such a template writes today's date: tomorrow's tokens are others.
        "date": str(date.today()) if "strftime_now" in template and "date_string" not in template else "",
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def prepare(
    directory: Path, source: SourceRows, tokenizer: PreTrainedTokenizerBase, options: Options, num_proc: int
) -> None:
    """Write the examples of a source below `directory`, the same whatever `num_proc` is.

    Raises DataError naming source, row and reason, or with a table of counts when nothing is left.
    """
    total = Report()

    def chunks() -> Iterator[Chunk]:
        for chunk, report in _results(source, tokenizer, options, num_proc):
            total.add(report)
            yield chunk
        if total.kept == 0:
            raise DataError(_nothing_left(source, total))

    write_store(directory, chunks(), total.plain)
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(total.dropped.items())) or "none"
    log.info("%s: %d examples from %d rows, left out: %s", source.key, total.kept, total.rows, left_out)
    _check_stop(source, total, tokenizer)


def _check_stop(source: SourceRows, report: Report, tokenizer: PreTrainedTokenizerBase) -> None:
    if not report.stops:
        return
    ((stop, _),) = report.stops.most_common(1)
    if stop != tokenizer.eos_token_id:
        log.warning(
            "%s: answers are trained to end in %r, but tokenizer.eos_token is %r: generation that stops at the eos token "
            "alone will run on; expected one token for both; set the template's stop token as eos_token of the tokenizer",
            source.key,
            tokenizer.decode([stop]),
            tokenizer.eos_token,
        )


_WORKER: Preparer | None = None


def _start_worker(source: SourceRows, tokenizer: PreTrainedTokenizerBase, options: Options) -> None:
    global _WORKER
    # The parent may block signals and decides alone when to stop; a worker dies of SIGTERM and leaves Ctrl-C to it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR2})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core for each worker
    _WORKER = Preparer(source, tokenizer, options)


def _work(task: tuple[int, int]) -> tuple[Chunk, Report]:
    assert _WORKER is not None, "workers are initialised before their first task"
    return _WORKER.chunk(task)


def _results(
    source: SourceRows, tokenizer: PreTrainedTokenizerBase, options: Options, num_proc: int
) -> Iterator[tuple[Chunk, Report]]:
    count = len(source.rows)
    tasks = [(start, min(start + CHUNK_ROWS, count)) for start in range(0, count, CHUNK_ROWS)]
    preparer, begun = Preparer(source, tokenizer, options), time.perf_counter()
    for done, task in enumerate(tasks):
        left, each = len(tasks) - done, (time.perf_counter() - begun) / max(done, 1)
        if num_proc > 1 and done and left > 1 and each * left >= WORTH_SECONDS:
            yield from _shared(preparer, tasks[done:], min(num_proc - 1, left - 1), (source, tokenizer, options))
            return
        yield preparer.chunk(task)


def _shared(
    preparer: Preparer, tasks: list[tuple[int, int]], workers: int, arguments: tuple[Any, ...]
) -> Iterator[tuple[Chunk, Report]]:
    """Yield the results in order while this process, too, does what the workers have not begun."""
    # Spawned, not forked: a rank may hold CUDA and the threads of its process group by now.
    context = multiprocessing.get_context("spawn")
    results: deque[Future[tuple[Chunk, Report]]] = deque()
    waiting = deque(tasks)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=arguments) as pool:
        try:
            while results or waiting:
                while waiting and sum(not result.done() for result in results) < 2 * workers:
                    results.append(pool.submit(_work, waiting.popleft()))
                if waiting and not results[0].done():
                    results.append(_done(preparer, waiting.popleft()))
                else:
                    yield results.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                f"data.num_proc: one of {workers} preparation processes died (out of memory?); pass a "
                f"lower data.num_proc"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _done(preparer: Preparer, task: tuple[int, int]) -> Future[tuple[Chunk, Report]]:
    """Return the result of a task done here; an error waits for its turn, so that the first bad row is the one told."""
    future: Future[tuple[Chunk, Report]] = Future()
    try:
        future.set_result(preparer.chunk(task))
    except DataError as error:
        future.set_exception(error)
    return future


def _nothing_left(source: SourceRows, report: Report) -> str:
    reasons = sorted(report.dropped)
    counts = [report.rows, report.kept, *(report.dropped[reason] for reason in reasons)]
    lines = [" | ".join(["source", "rows", "kept", *reasons]), " | ".join([source.key, *map(str, counts)])]
    advice = {
        "overlong": "raise data.max_length or pass data.overlong=keep_start, keep_end or split",
        "no_supervised_token": "check that answers are not empty and not cut off by data.max_length",
        "malformed": "pass data.malformed=error to see the first such row",
    }
    hints = [advice[reason] for reason in reasons if reason in advice] or ["check the source's path and split"]
    table = "\n  ".join(lines)
    return f"{source.key}: no example is left to train on; expected at least one\n  {table}\n{'; '.join(hints)}"
