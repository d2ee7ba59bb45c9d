"""A source's rows to its entry in the cache: the key, the worker processes, and the report."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra.data.cache.token_store import Chunk, write_store
from arctic_hydra.data.encode.chat import template_of
from arctic_hydra.data.prepare.preparer import Options, Preparer, Report, SourceRows
from arctic_hydra.data.prepare.workers import Prepared, Task, shared
from arctic_hydra.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CODE_VERSION = 7
"""Raise when the same rows and options would give other tokens, masks or reports: it is part of the cache key."""

CHUNK_ROWS = 1000
MANY_EMPTY = 0.1
"""Share of a source's rows without anything to train on from which on it is said aloud."""
ADVICE = {
    "overlong": "raise data.max_length or pass data.overlong=keep_start, keep_end or split",
    "no_supervised_token": "check that answers are not empty and not cut off by data.max_length",
    "malformed": "pass data.malformed=error to see the first such row",
}
"""What to do about rows that are left out, by reason."""
WORTH_SECONDS = 3.0
"""A helper takes a second or two to start: there is one for so many seconds that this process alone would need."""
QUICKEST_SECONDS = 0.06
"""What a chunk takes at least: where even that is worth every helper, they start beside the first chunk."""


def prepared_key(identity: Any, tokenizer: PreTrainedTokenizerBase, options: Options) -> str:
    """Return the cache key of a source: a hash over its rows, tokenizer, template, options and this code's version."""
    backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    backend.no_truncation()
    backend.no_padding()
    templates: list[str] = []
    for with_tools in (False, True):
        with suppress(DataError):  # none: fine for texts, and conversations say so when they are encoded
            templates.append(template_of(tokenizer, with_tools))
    parts = {
        "code": CODE_VERSION,
        "source": identity,
        "options": asdict(options),
        "tokenizer": hashlib.sha256(backend.to_str().encode()).hexdigest(),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "templates": templates,
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
            raise DataError(nothing_left(source.key, total))

    write_store(directory, chunks(), total.plain)
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(total.dropped.items())) or "none"
    log.info("%s: %d examples from %d rows, left out: %s", source.key, total.kept, total.rows, left_out)


def check_stop(key: str, report: Report, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn where answers end in another token than the one that generation stops at."""
    if not report.stops:
        return
    ((stop, _),) = report.stops.most_common(1)
    if stop != tokenizer.eos_token_id:
        log.warning(
            "%s: answers are trained to end in %r, but tokenizer.eos_token is %r: generation that stops at the eos token "
            "alone will run on; expected one token for both; set the template's stop token as eos_token of the tokenizer",
            key,
            tokenizer.decode([stop]),
            tokenizer.eos_token,
        )


def check_thoughts(key: str, left_out: int) -> None:
    """Warn where the rows hold thoughts that the chat template does not write: right for old turns, else a surprise."""
    if left_out:
        log.warning(
            "%s: the thoughts (reasoning_content, reasoning or thinking) of %d trained turns are not in the rendered chats, "
            "so they are not trained on; expected the chat template to write them; pass tokenizer.chat_template=<file> with "
            "one that does, or leave them out of the rows",
            key,
            left_out,
        )


def check_supervised(key: str, report: dict[str, Any]) -> None:
    """Warn where many rows have nothing to train on, as after a wrong role, weight or cut; `report` is a plain one."""
    empty = report["dropped"].get("no_supervised_token", 0)
    if empty > MANY_EMPTY * report["rows"]:
        log.warning(
            "%s: %d of %d rows are left out because no token of them is trained on; expected few; %s",
            key,
            empty,
            report["rows"],
            ADVICE["no_supervised_token"],
        )


def _results(
    source: SourceRows, tokenizer: PreTrainedTokenizerBase, options: Options, num_proc: int
) -> Iterator[Prepared]:
    count = len(source.rows)
    tasks = [Task(0, start, min(start + CHUNK_ROWS, count)) for start in range(0, count, CHUNK_ROWS)]
    preparer, begun = Preparer(source, tokenizer, options), time.perf_counter()
    for done, task in enumerate(tasks):
        left, each = len(tasks) - done, (time.perf_counter() - begun) / done if done else QUICKEST_SECONDS
        helpers = min(num_proc - 1, left - 1, int(each * left / WORTH_SECONDS))
        if helpers > 0 and (done or helpers == num_proc - 1):
            yield from shared(preparer, tasks[done:], helpers, source, tokenizer, options)
            return
        yield preparer.chunk((task.start, task.stop))


def nothing_left(key: str, report: Report) -> str:
    """Return the error text of a source that has no example: its counts, and what to do about them."""
    reasons = sorted(report.dropped)
    counts = [report.rows, report.kept, *(report.dropped[reason] for reason in reasons)]
    lines = [" | ".join(["source", "rows", "kept", *reasons]), " | ".join([key, *map(str, counts)])]
    hints = [ADVICE[reason] for reason in reasons if reason in ADVICE] or ["check the source's path and split"]
    table = "\n  ".join(lines)
    return f"{key}: no example is left; expected at least one\n  {table}\n{'; '.join(hints)}"
