"""Rows to token ids and masks: in chunks, over worker processes, with a report of every row that is left out."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from arctic_hydra.batch import IGNORE_INDEX
from arctic_hydra.data.masks import Chat, ChatEncoder, Encoded, template_of
from arctic_hydra.data.messages import RowProblem, read_messages, read_tools
from arctic_hydra.data.source.rows import Row, Rows
from arctic_hydra.data.store import Chunk, write_store
from arctic_hydra.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CODE_VERSION = 1
"""Raise when the same rows and options would give other tokens or masks: it is part of the cache key."""

CHUNK_ROWS = 1000
ROWS_PER_WORKER = 10_000
"""A worker process takes seconds to start: it has to have at least so many rows to do."""


@dataclass(frozen=True)
class Options:
    """What turns rows into examples, besides the tokenizer."""

    max_length: int
    mask_inputs: bool
    overlong: str
    """`drop`, `keep_start` or `error`."""
    malformed: str
    """`error` or `drop`."""


@dataclass
class SourceRows:
    """The rows of one source, and how to speak about it."""

    key: str
    """Full config key, such as `data.sources.chat`."""
    name: str
    rows: Rows
    process: bool = True


@dataclass
class Report:
    """What became of the rows of one source (or of a part of them)."""

    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    tokens: int = 0
    tokens_lost: int = 0
    """Tokens of overlong rows that were dropped or cut off."""
    supervised_tokens: int = 0
    max_token_id: int = -1

    def add(self, other: Report) -> None:
        """Add the counts of another part."""
        self.dropped.update(other.dropped)
        for name in ("rows", "kept", "truncated", "tokens", "tokens_lost", "supervised_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.max_token_id = max(self.max_token_id, other.max_token_id)

    def plain(self) -> dict[str, Any]:
        """Return the counts as plain values."""
        return {**asdict(self), "dropped": dict(sorted(self.dropped.items()))}


def prepared_key(identities: dict[str, Any], tokenizer: PreTrainedTokenizerBase, options: Options, chats: bool) -> str:
    """Return the cache key: a hash over sources, tokenizer, template, options and this code's version."""
    backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    backend.no_truncation()
    backend.no_padding()
    template = template_of(tokenizer) if chats else ""
    parts = {
        "code": CODE_VERSION,
        "sources": identities,
        "order": list(identities),
        "options": asdict(options),
        "tokenizer": hashlib.sha256(backend.to_str().encode()).hexdigest(),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": template,
        # Such a template writes today's date: tomorrow's tokens are others.
        "date": str(date.today()) if "strftime_now" in template and "date_string" not in template else "",
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def prepare(
    directory: Path, sources: Sequence[SourceRows], tokenizer: PreTrainedTokenizerBase, options: Options, num_proc: int
) -> None:
    """Write the examples of all sources below `directory`, the same whatever `num_proc` is.

    Raises DataError naming source, row and reason, or with a table of counts when nothing is left.
    """
    reports = [Report() for _ in sources]

    def chunks() -> Iterator[Chunk]:
        for chunk, report in _results(sources, tokenizer, options, num_proc):
            reports[chunk.source].add(report)
            yield chunk
        _check_something_left(sources, reports)

    write_store(
        directory,
        chunks(),
        lambda: {source.name: report.plain() for source, report in zip(sources, reports, strict=True)},
    )
    for source, report in zip(sources, reports, strict=True):
        left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(report.dropped.items())) or "none"
        log.info("%s: %d of %d rows prepared, left out: %s", source.key, report.kept, report.rows, left_out)


class _Preparer:
    """Holds what every chunk needs; one in each process."""

    def __init__(self, sources: Sequence[SourceRows], tokenizer: PreTrainedTokenizerBase, options: Options) -> None:
        self._sources = sources
        self._options = options
        self._encoder = ChatEncoder(tokenizer) if any(source.process for source in sources) else None

    def chunk(self, task: tuple[int, int, int]) -> tuple[Chunk, Report]:
        """Prepare rows [start, stop) of one source."""
        index, start, stop = task
        source = self._sources[index]
        report = Report(rows=stop - start)
        kept: list[tuple[int, list[int], np.ndarray[Any, Any]]] = []
        for row, item in zip(range(start, stop), self._examples(source, start, stop), strict=True):
            if isinstance(item, RowProblem):
                self._refuse(source, row, item, report)
                continue
            ids, mask = item
            if len(ids) > self._options.max_length and not self._keep_overlong(source, row, len(ids), report):
                continue
            ids, mask = ids[: self._options.max_length], mask[: self._options.max_length]
            mask[:1] = 0  # nothing comes before the first token, so nothing can predict it
            if not mask.any():
                report.dropped["no_supervised_token"] += 1
                continue
            kept.append((row, ids, mask))
        return self._assemble(index, kept, report), report

    def _examples(
        self, source: SourceRows, start: int, stop: int
    ) -> list[tuple[list[int], np.ndarray[Any, Any]] | RowProblem]:
        rows = source.rows.take(range(start, stop))
        if not source.process:
            return [_guard(_read_tokens, row) for row in rows]
        chats = [_guard(_read_chat, row) for row in rows]
        good = [chat for chat in chats if isinstance(chat, Chat)]
        assert self._encoder is not None, "a source of conversations has an encoder"
        encoded = iter(self._encoder.encode(good))
        results: list[tuple[list[int], np.ndarray[Any, Any]] | RowProblem] = []
        for chat in chats:
            item = chat if isinstance(chat, RowProblem) else next(encoded)
            results.append(item if isinstance(item, RowProblem) else (item.ids, self._mask(item)))
        return results

    def _mask(self, encoded: Encoded) -> np.ndarray[Any, Any]:
        if not self._options.mask_inputs:
            return np.ones(len(encoded.ids), dtype=np.uint8)
        mask = np.zeros(len(encoded.ids), dtype=np.uint8)
        for first, last in encoded.spans:
            mask[first:last] = 1
        return mask

    def _refuse(self, source: SourceRows, row: int, problem: RowProblem, report: Report) -> None:
        # A template or a tokenizer that does not fit is no matter of single rows.
        if problem.reason == "malformed" and self._options.malformed == "drop":
            report.dropped["malformed"] += 1
            return
        drop = (
            "; correct the row, or pass data.malformed=drop to leave such rows out"
            if problem.reason == "malformed"
            else ""
        )
        raise DataError(f"{source.key}: {source.rows.where(row)}: {problem}{drop}")

    def _keep_overlong(self, source: SourceRows, row: int, length: int, report: Report) -> bool:
        limit, policy = self._options.max_length, self._options.overlong
        if policy == "error":
            raise DataError(
                f"{source.key}: {source.rows.where(row)}: {length} tokens, more than data.max_length={limit}; raise "
                f"data.max_length, or pass data.overlong=drop or data.overlong=keep_start"
            )
        if policy == "drop":
            report.dropped["overlong"] += 1
            report.tokens_lost += length
            return False
        report.truncated += 1
        report.tokens_lost += length - limit
        return True

    def _assemble(self, index: int, kept: list[tuple[int, list[int], np.ndarray[Any, Any]]], report: Report) -> Chunk:
        lengths = np.array([len(ids) for _, ids, _ in kept], dtype=np.int32)
        flat = [np.array(ids, dtype=np.int32) for _, ids, _ in kept]
        ids = np.concatenate(flat) if flat else np.empty(0, np.int32)
        mask = np.concatenate([mask for _, _, mask in kept]) if kept else np.empty(0, np.uint8)
        report.kept = len(kept)
        report.tokens, report.supervised_tokens = len(ids), int(mask.sum())
        report.max_token_id = int(ids.max()) if len(ids) else -1
        return Chunk(index, ids, mask, lengths, np.array([row for row, _, _ in kept], dtype=np.int64))


def _guard(read: Any, row: Row) -> Any:
    try:
        return read(row)
    except RowProblem as problem:
        return problem


def _read_chat(row: Row) -> Chat:
    return Chat(read_messages(row), read_tools(row))


def _read_tokens(row: Row) -> tuple[list[int], np.ndarray[Any, Any]]:
    """Return ids and mask of a row that is tokenised already; labels are aligned with the ids, not shifted."""
    ids, labels = row.get("input_ids"), row.get("labels")
    if not isinstance(ids, list) or not ids or not all(type(token) is int and 0 <= token < 2**31 for token in ids):
        columns = ", ".join(sorted(row))
        raise RowProblem(
            "malformed", f"process=false needs 'input_ids', a list of token ids; got the columns {columns}"
        )
    if labels is None:
        return list(ids), np.ones(len(ids), dtype=np.uint8)
    if not isinstance(labels, list) or len(labels) != len(ids):
        raise RowProblem("malformed", f"labels must be a list as long as input_ids ({len(ids)})")
    mask = np.array([label != IGNORE_INDEX for label in labels], dtype=np.uint8)
    for place in np.flatnonzero(mask):
        if labels[place] != ids[place]:
            raise RowProblem(
                "malformed",
                f"labels[{place}] is {labels[place]}, but input_ids[{place}] is {ids[place]}; expected {IGNORE_INDEX} "
                f"or the same id (labels are not shifted)",
            )
    return list(ids), mask


_WORKER: _Preparer | None = None


def _start_worker(sources: Sequence[SourceRows], tokenizer: PreTrainedTokenizerBase, options: Options) -> None:
    global _WORKER
    # The parent may block signals and decides alone when to stop; a worker dies of SIGTERM and leaves Ctrl-C to it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR2})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core for each worker
    _WORKER = _Preparer(sources, tokenizer, options)


def _work(task: tuple[int, int, int]) -> tuple[Chunk, Report]:
    assert _WORKER is not None, "workers are initialised before their first task"
    return _WORKER.chunk(task)


def _results(
    sources: Sequence[SourceRows], tokenizer: PreTrainedTokenizerBase, options: Options, num_proc: int
) -> Iterator[tuple[Chunk, Report]]:
    tasks = [
        (index, start, min(start + CHUNK_ROWS, len(source.rows)))
        for index, source in enumerate(sources)
        for start in range(0, len(source.rows), CHUNK_ROWS)
    ]
    workers = min(num_proc, sum(len(source.rows) for source in sources) // ROWS_PER_WORKER)
    if workers < 2:
        yield from map(_Preparer(sources, tokenizer, options).chunk, tasks)
        return
    # Spawned, not forked: a rank may hold CUDA and the threads of its process group by now.
    context = multiprocessing.get_context("spawn")
    arguments = (sources, tokenizer, options)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=arguments) as pool:
        try:
            yield from pool.map(_work, tasks)
        except BrokenProcessPool as error:
            raise DataError(
                f"data.num_proc: one of {workers} preparation processes died (out of memory?); pass a "
                f"lower data.num_proc"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _check_something_left(sources: Sequence[SourceRows], reports: Sequence[Report]) -> None:
    empty = [source.key for source, report in zip(sources, reports, strict=True) if report.kept == 0]
    if not empty:
        return
    reasons = sorted({reason for report in reports for reason in report.dropped})
    lines = [" | ".join(["source", "rows", "kept", *reasons])]
    for source, report in zip(sources, reports, strict=True):
        counts = [report.rows, report.kept, *(report.dropped[reason] for reason in reasons)]
        lines.append(" | ".join([source.key, *map(str, counts)]))
    advice = {
        "overlong": "raise data.max_length or pass data.overlong=keep_start",
        "no_supervised_token": "check that answers are not empty and not cut off by data.max_length",
        "malformed": "pass data.malformed=error to see the first such row",
    }
    hints = [advice[reason] for reason in reasons if reason in advice] or ["check the source's path and split"]
    table = "\n  ".join(lines)
    raise DataError(
        f"{', '.join(empty)}: no example is left to train on; expected at least one\n  {table}\n{'; '.join(hints)}"
    )
