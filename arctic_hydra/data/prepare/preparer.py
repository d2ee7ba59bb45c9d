"""Rows to examples: read, encode, mask and truncate them, and count every row that is dropped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from arctic_hydra import without_garbage_collection
from arctic_hydra.data.arrays import Array
from arctic_hydra.data.batch import IGNORE_INDEX
from arctic_hydra.data.documents import Chunk
from arctic_hydra.data.encode.chat import TurnChoice
from arctic_hydra.data.encode.encoder import ExampleEncoder
from arctic_hydra.data.encode.spans import Encoded
from arctic_hydra.data.formats.messages import Chat, PlainText, RowProblem, has_only_blank_answers, malformed
from arctic_hydra.data.formats.preference import read_margin, read_preference
from arctic_hydra.data.formats.reading import Reading, RowFormat
from arctic_hydra.data.formats.unpaired import read_unpaired
from arctic_hydra.data.prepare.row_report import RowReport
from arctic_hydra.data.prepare.truncation import Overlong, kept_spans, length_bin, truncating
from arctic_hydra.data.rows.base import Row, Rows
from arctic_hydra.errors import DataError
from arctic_hydra.human_numbers import listed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MASKS = ("attention_mask", "completion_mask", "assistant_masks", "assistant_mask", "loss_mask")
"""Columns of other programs that say which tokens are padding or are not trained on; `labels` say the latter here."""


@dataclass(frozen=True)
class PrepareOptions:
    """What determines how rows become examples, besides the tokenizer; part of the cache key."""

    max_length: int
    mask_inputs: bool
    overlong: str
    """Name of an `Overlong`."""
    malformed: str
    """`error` or `drop`."""
    turns: TurnChoice = field(default_factory=TurnChoice)
    pairs: bool = False
    """Whether rows are preferences, each of which becomes two documents: chosen, then rejected."""
    max_prompt_length: int | None = None
    """Tokens of the prompt that are kept of a pair that is too long; None if the prompt has no separate limit."""
    labelled: bool | None = None
    """Whether rows are answers with a label, or preferences, of which each side becomes such an answer; None if not."""
    margins: bool | None = None
    """Whether the margin of each pair is read; None if not."""

    @property
    def answers(self) -> bool:
        """Whether examples are compared by their answers, which cannot be split."""
        return self.pairs or bool(self.labelled)


@dataclass
class SourceRows:
    """The rows of one source, how to read them, and its name in messages."""

    key: str
    """Full config key, such as `data.sources.chat`."""
    name: str
    rows: Rows
    process: bool = True
    reading: Reading = field(default_factory=Reading)

    @property
    def uses_template(self) -> bool:
        """Whether the rows may be conversations, which a chat template renders."""
        return self.process and self.reading.format is not RowFormat.text


@dataclass
class _Example:
    ids: Array
    mask: Array
    turn_ends: list[int]
    stops: list[int]
    thoughts_left_out: int = 0
    blank: bool = False
    """Whether it has no answer but whitespace, whose end is trained on."""
    plain: bool = False
    """Whether it is a text that no chat template renders."""


class RowPreparer:
    """Turns ranges of a source's rows into examples; each process has its own."""

    def __init__(self, source: SourceRows, tokenizer: PreTrainedTokenizerBase, options: PrepareOptions) -> None:
        self._source = source
        self._options = options
        self._policy = Overlong[options.overlong]
        self._encoder = ExampleEncoder(tokenizer, options.turns) if source.process else None
        self._bos = tokenizer.bos_token_id
        self._vocabulary = len(tokenizer)

    def with_rows(self, rows: Rows) -> RowPreparer:
        """Return a preparer for other rows of the same source, such as the next ones of a stream."""
        other = copy(self)
        other._source = replace(self._source, rows=rows)
        return other

    def prepare_chunk(self, start: int, stop: int) -> tuple[Chunk, RowReport]:
        """Return the examples of rows [start, stop), and what became of the rows."""
        with without_garbage_collection():
            return (self._prepare_answers if self._options.answers else self._prepare_examples)(start, stop)

    def _prepare_examples(self, start: int, stop: int) -> tuple[Chunk, RowReport]:
        report = RowReport(rows=stop - start)
        parts: list[tuple[int, Array, Array]] = []
        for row, item in zip(range(start, stop), self._examples(start, stop), strict=True):
            if isinstance(item, RowProblem):
                self._refuse(row, item, report)
                continue
            kept = self._fit(row, [item], report)
            if not kept:
                continue
            report.thoughts_left_out += item.thoughts_left_out
            report.blank_answers += item.blank and any(mask.any() for _, mask in kept)
            report.without_template += item.plain
            for token in item.stops:  # faster than Counter.update for a few tokens
                report.stops[token] += 1
            parts += [(row, ids, mask) for ids, mask in kept]
        return _with_counts(_without_unsupervised(_assemble(parts), report), report), report

    def _prepare_answers(self, start: int, stop: int) -> tuple[Chunk, RowReport]:
        """Prepare pairs, or answers with a label, of which a row may hold two."""
        report = RowReport(rows=stop - start)
        kept: list[tuple[int, Array, Array]] = []
        kept_labels: list[int] = []
        kept_margins: list[float] = []
        assert self._encoder is not None, "preferences have no pre-tokenized form"
        labelled, options = bool(self._options.labelled), self._options
        read = [_answers_or_problem(row, options) for row in self._source.rows.take(range(start, stop))]
        encoded = iter(self._encoder.encode([chat for chats, _, _ in read for chat in chats]))
        for row, (chats, labels, margin) in zip(range(start, stop), read, strict=True):
            found = list(islice(encoded, len(chats)))
            problem = next((side for side in found if isinstance(side, RowProblem)), None)
            if problem is not None:
                self._refuse(row, problem, report)
                continue
            sides = [self._masked(side) for side in found if isinstance(side, Encoded)]
            parts = self._fit(row, sides, report)
            if not parts:
                continue
            answers = [ids[mask.astype(bool)] for ids, mask in parts]
            if not all(len(answer) for answer in answers):
                report.dropped["no_supervised_token"] += 1
            elif len(answers) == 2 and np.array_equal(*answers):  # also if the difference was truncated
                report.dropped["no_difference"] += 1
            else:
                kept += [(row, *part) for part in parts]
                kept_labels += labels
                wanted = [chat.messages[-1:] for chat, label in zip(chats, labels, strict=True) if label]
                report.blank_answers += any(map(has_only_blank_answers, wanted))
                kept_margins += [margin] * len(parts)
                report.stops.update(stop for side in sides for stop in side.stops)
                report.thoughts_left_out += sum(side.thoughts_left_out for side in sides)
        chunk = _with_counts(_assemble(kept), report)
        if labelled:
            return replace(chunk, labels=np.array(kept_labels, dtype=np.uint8)), report
        if options.margins:
            chunk = replace(chunk, margins=np.array(kept_margins, dtype=np.float32))
        report.kept //= 2
        return chunk, report

    def _examples(self, start: int, stop: int) -> list[_Example | RowProblem]:
        rows = self._source.rows.take(range(start, stop))
        if self._encoder is None:
            return [_value_or_problem(_read_tokens, row, self._vocabulary) for row in rows]
        read = [_value_or_problem(self._source.reading.read, row) for row in rows]
        blank = [isinstance(item, Chat) and has_only_blank_answers(item.messages) for item in read]
        plain = [isinstance(item, PlainText) for item in read]
        return [
            item if isinstance(item, RowProblem) else self._masked(item, empty, text)
            for item, empty, text in zip(self._encoder.encode(read), blank, plain, strict=True)
        ]

    def _masked(self, encoded: Encoded, blank: bool = False, plain: bool = False) -> _Example:
        mask = (np.zeros if self._options.mask_inputs else np.ones)(len(encoded.ids), dtype=np.uint8)
        for first, last in encoded.spans:
            mask[first:last] = 1
        ends = encoded.turn_ends
        stops = [int(encoded.ids[end - 1]) for end in ends] if self._options.turns.train_on_eot else []
        return _Example(encoded.ids, mask, ends, stops, encoded.thoughts_left_out, blank, plain)

    def _fit(self, row: int, sides: Sequence[_Example], report: RowReport) -> list[tuple[Array, Array]]:
        """Return ids and mask of the kept parts of an example or of both sides of a pair; nothing if it is dropped."""
        limit, longest = self._options.max_length, sides[0]
        for side in sides:
            longest = side if len(side.ids) > len(longest.ids) else longest
        length = len(longest.ids)
        if not length:  # an empty text with a tokenizer that adds no tokens
            report.dropped["no_supervised_token"] += 1
            return []
        report.length_bins[length_bin(length)] += 1
        if length <= limit:
            return [part for side in sides for part in _cut(side, [(0, len(side.ids))], 0)]
        if self._policy is Overlong.error:
            raise DataError(
                f"{self._source.key}: {self._source.rows.where(row)}: {length} tokens, more than data.max_length={limit}; "
                f"raise data.max_length, or pass data.overlong=drop, {truncating(not self._options.answers)}"
            )
        head = int(self._bos is not None and longest.ids[0] == self._bos)
        if (most := self._options.max_prompt_length) is not None:
            parts = [_with_short_prompt(side, most, limit, head, self._policy) for side in sides]
            report.truncated += 1
            report.tokens_lost += sum(len(side.ids) for side in sides) - sum(len(ids) for ids, _ in parts)
            return parts
        spans = None if self._policy is Overlong.drop else self._kept_spans(sides, longest, head)
        if spans is None:
            report.dropped["overlong"] += 1
            report.tokens_lost += sum(len(side.ids) for side in sides)
            return []
        lost = sum(len(side.ids) for side in sides) - sum(stop - start for own in spans for start, stop in own)
        report.truncated += lost > 0
        report.split += any(len(own) > 1 for own in spans)
        report.tokens_lost += lost
        return [part for side, own in zip(sides, spans, strict=True) for part in _cut(side, own, head)]

    def _kept_spans(
        self, sides: Sequence[_Example], longest: _Example, head: int
    ) -> list[list[tuple[int, int]]] | None:
        """Return the spans of each side that are kept; None for a pair whose longer answer leaves no room for the prompt."""
        limit = self._options.max_length
        if (
            len(sides) > 1 and self._policy is Overlong.keep_end
        ):  # both sides have the same prompt, so it is truncated equally
            ((start, _),) = kept_spans(len(longest.ids), limit, self._policy, longest.turn_ends, head)
            if any(start >= int(side.mask.argmax()) for side in sides):
                return None
            return [[(start, len(side.ids))] for side in sides]
        return [
            kept_spans(len(side.ids), limit, self._policy, side.turn_ends, head)
            if len(side.ids) > limit
            else [(0, len(side.ids))]
            for side in sides
        ]

    def _refuse(self, row: int, problem: RowProblem, report: RowReport) -> None:
        # Only malformed rows can be dropped; other problems, such as an unsuitable template, concern all rows.
        if problem.reason == "malformed" and self._options.malformed == "drop":
            report.dropped["malformed"] += 1
            return
        drop = "; fix the row, or pass data.malformed=drop to skip such rows" if problem.reason == "malformed" else ""
        raise DataError(f"{self._source.key}: {self._source.rows.where(row)}: {problem}{drop}")


def _cut(item: _Example, spans: list[tuple[int, int]], head: int) -> list[tuple[Array, Array]]:
    """Return ids and mask of spans of an example; those that do not start at 0 get its first `head` tokens (the BOS)."""
    fitted: list[tuple[Array, Array]] = []
    for start, stop in spans:
        part, mask = item.ids[start:stop], item.mask[start:stop]
        if start and head:
            part, mask = np.concatenate([item.ids[:1], part]), np.concatenate([[0], mask]).astype(np.uint8)
        mask[:1] = 0  # the first token has no predecessor that could predict it
        fitted.append((part, mask))
    return fitted


def _with_short_prompt(item: _Example, most: int, limit: int, head: int, policy: Overlong) -> tuple[Array, Array]:
    """Return ids and mask of one side of a pair: up to `most` tokens of its prompt, then the answer, `limit` tokens at most.

    keep_start keeps the start of the prompt; keep_end its end, after its first `head` tokens (the BOS).
    """
    prompt = int(item.mask.argmax()) if item.mask.any() else len(item.ids)
    if prompt <= most:
        kept = np.arange(prompt)
    elif policy is Overlong.keep_start:
        kept = np.arange(most)
    else:
        kept = np.concatenate([np.arange(head), np.arange(prompt - max(0, most - head), prompt)])[:most]
    chosen = np.concatenate([kept, np.arange(prompt, len(item.ids))])[:limit]
    mask = item.mask[chosen]
    mask[:1] = 0  # the first token has no predecessor that could predict it
    return item.ids[chosen], mask


def _assemble(parts: list[tuple[int, Array, Array]]) -> Chunk:
    lengths = np.array([len(ids) for _, ids, _ in parts], dtype=np.int32)
    ids = np.concatenate([np.empty(0, np.int32), *(ids for _, ids, _ in parts)])
    mask = np.concatenate([np.empty(0, np.uint8), *(mask for _, _, mask in parts)])
    return Chunk(ids, mask, lengths, np.array([row for row, _, _ in parts], dtype=np.int64))


def _without_unsupervised(chunk: Chunk, report: RowReport) -> Chunk:
    """Return the parts with supervised tokens; count rows without any as dropped, and tokens of other removed parts as lost."""
    trained = chunk.supervised > 0
    if trained.all():
        return chunk
    of_kept_rows = np.isin(chunk.rows, chunk.rows[trained])
    if not of_kept_rows.all():
        report.dropped["no_supervised_token"] += len(np.unique(chunk.rows[~of_kept_rows]))
    report.tokens_lost += int(chunk.lengths[of_kept_rows & ~trained].sum())
    tokens = np.repeat(trained, chunk.lengths)
    return Chunk(chunk.ids[tokens], chunk.mask[tokens], chunk.lengths[trained], chunk.rows[trained])


def _with_counts(chunk: Chunk, report: RowReport) -> Chunk:
    """Count the examples of the chunk in the report, and return the chunk."""
    report.kept = len(chunk.lengths)
    report.tokens, report.supervised_tokens = len(chunk.ids), int(chunk.mask.sum())
    report.max_token_id = int(chunk.ids.max()) if len(chunk.ids) else -1
    return chunk


def _value_or_problem(read: Any, row: Row, *more: Any) -> Any:
    try:
        return read(row, *more)
    except RowProblem as problem:
        return problem


def _answers_or_problem(row: Row, options: PrepareOptions) -> tuple[list[Any], list[int], float]:
    """Return the conversations of a row, their labels and the margin of a pair; or its problem."""
    try:
        found = read_unpaired(row) if options.labelled else zip(read_preference(row), (1, 0), strict=True)
        chats, labels = zip(*found, strict=True)
        margin = read_margin(row) if options.margins else math.nan
    except RowProblem as problem:
        return [problem], [], math.nan
    return list(chats), list(labels), margin


def _read_tokens(row: Row, vocabulary: int) -> _Example:
    """Return the example of a pre-tokenized row, with ids below `vocabulary`; labels are aligned with the ids, not shifted."""
    ids, labels = row.get("input_ids"), row.get("labels")
    if not isinstance(ids, list) or not ids or not all(type(token) is int and 0 <= token < 2**31 for token in ids):
        raise malformed(
            f"process=false requires 'input_ids', a list of token ids; got the columns {listed(sorted(row))}"
        )
    tokens = np.array(ids, dtype=np.int32)
    highest = int(tokens.argmax())
    if tokens[highest] >= vocabulary:
        raise malformed(
            f"input_ids[{highest}] is {tokens[highest]}, but the tokenizer has {vocabulary} tokens; expected ids of this run's "
            f"tokenizer"
        )
    masks = ("attention_mask",) if labels is not None else _MASKS
    if hidden := [name for name in masks if isinstance(mask := row.get(name), list) and 0 in mask]:
        or_labels = "" if labels is not None else f", and labels with {IGNORE_INDEX} for what is not trained on"
        raise malformed(f"{hidden[0]} has a 0, expected input_ids without padding{or_labels}")
    if labels is None:
        return _Example(tokens, np.ones(len(ids), dtype=np.uint8), [], [])
    if not isinstance(labels, list) or len(labels) != len(ids):
        raise malformed(f"labels must be a list of the same length as input_ids ({len(ids)})")
    mask = np.array([label != IGNORE_INDEX for label in labels], dtype=np.uint8)
    for index in np.flatnonzero(mask):
        if labels[index] != ids[index]:
            raise malformed(
                f"labels[{index}] is {labels[index]}, but input_ids[{index}] is {ids[index]}; expected {IGNORE_INDEX} "
                f"or the same id (labels are not shifted)"
            )
    return _Example(tokens, mask, [], [])
