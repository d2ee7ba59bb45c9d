"""A word-level cache for byte-level BPE: the token ids are identical to the tokenizer's.

A byte-level BPE tokenizer splits a text at its added tokens, splits the rest into words by a regular expression, and
encodes each word on its own. Texts repeat their words, so each distinct word is encoded once. Many texts are looked up at
once, in segments between two spaces.

The words must be split exactly as the tokenizer splits them: the expression is the tokenizer's own, it is compared with
the tokenizer on generated texts first, and each non-ASCII character is compared before a text that contains it is cached.
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import regex
from tokenizers import models, pre_tokenizers

from arctic_hydra.data.arrays import Array, to_numpy

_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Digits are split off first, and the parts between them are split separately, so a number ends a text too.
_GPT_2_DIGITS = {True: r"\p{N}|", False: r"\p{N}+|"}
_GPT_2_BETWEEN_DIGITS = _GPT_2.replace(r" ?\p{N}+|", "").replace(r"(?!\S)", r"(?![^\s\p{N}])")
_ASCII_CLASSES = {"L": "a-zA-Z", "N": "0-9", "Lu": "A-Z", "Ll": "a-z", "Lt": "", "Lm": "", "Lo": "", "M": ""}
_CLASS = re.compile(r"\\p\{(\w+)\}|\\.|[\[\]]")
_PROBE = " {0} a{0}a A{0}A A{0}a a{0}A {0}Aa A{0}Aa {0}{0}Aa 1{0}1 .{0}. \n{0}\n'{0} a'{0}a {0}{0}\t{0}"

BATCH_CHARACTERS = 1 << 20
"""Characters that are looked up at once; bounds the memory."""
MAX_SEGMENTS, MAX_IDS = 1 << 19, 1 << 23
"""Size at which the table of segments is emptied; bounds its memory."""
_END = "\0"
"""The segment between two texts; it has no ids."""
_LOSSY = 1
"""Number of all segments with a word whose tokens do not decode to it; it has no ids."""

Encoding = tuple[Array, list[int]]
"""Token ids of a text, and the index of the token that starts at each requested position."""


class WordTokenizer:
    """Tokenizes texts through the cache; the ids equal those of the wrapped tokenizer."""

    @classmethod
    def of(cls, backend: Any) -> WordTokenizer | None:
        """Return a cache for a byte-level BPE tokenizer of a supported kind; None for any other tokenizer."""
        pattern = _word_pattern(backend)
        if pattern is None:
            return None
        try:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):
                made = cls(backend, pattern)
        except (re.error, regex.error):  # an expression in a syntax that Python does not support
            return None
        return made if made._matches_tokenizer() else None

    def __init__(self, backend: Any, pattern: str) -> None:
        self._backend = backend
        self._added = {token.content: index for index, token in backend.get_added_tokens_decoder().items()}
        longest_first = sorted(self._added, key=lambda token: (-len(token), token))
        pieces = "|".join(map(re.escape, [_END, *longest_first]))
        self._delimiters = re.compile(f"({pieces})".encode())
        ascii_pattern = _ascii_pattern(pattern)
        self._split: Callable[[str], list[str]] = _splitter(regex.compile(pattern))
        self._split_ascii = _splitter(re.compile(ascii_pattern, re.ASCII)) if ascii_pattern else self._split
        self._table = _WordTable(backend, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        self._segments = _Segments(self._added, lambda text: map(self._table.__getitem__, self._words(text)))
        self._token_offsets: dict[tuple[int, int], int | None] = {}
        self._supported = {chr(code) for code in range(1, 128)}
        self._unsupported = {_END}

    def encode(self, texts: Sequence[str], positions: Sequence[Sequence[int]]) -> list[Encoding | None]:
        """Return the ids (int32) of each text and the tokens that start at its `positions`.

        None for a text with a position within a word, or whose words may be split differently by the tokenizer.
        """
        results: list[Encoding | None] = [None] * len(texts)
        batch: list[int] = []
        waiting = 0
        for index, text in enumerate(texts):
            if self._is_supported(text):
                batch.append(index)
                waiting += len(text)
            if batch and (waiting >= BATCH_CHARACTERS or index == len(texts) - 1):
                found = self._encode([texts[i] for i in batch], [positions[i] for i in batch])
                for i, encoding in zip(batch, found, strict=True):
                    results[i] = encoding
                batch, waiting = [], 0
        return results

    def _encode(self, texts: list[str], positions: list[Sequence[int]]) -> Iterator[Encoding | None]:
        """Yield the result for each of a batch of supported texts."""
        if self._segments.is_full():
            self._table.clear()
            self._segments.clear()
            self._token_offsets.clear()
        encoded = [text.encode() for text in texts]
        starts = np.cumsum([0, *(len(text) + 1 for text in encoded)])
        data = _END.encode().join([*encoded, b"", b""])
        boundaries = self._boundaries(data)
        numbers = self._numbers(data, boundaries)
        ids, before = self._segments.joined(numbers)
        wanted = [
            start + (position if len(text) == len(raw) else len(text[:position].encode()))
            for text, raw, start, own in zip(texts, encoded, starts.tolist(), positions, strict=False)
            for position in own
        ]
        left = iter(self._tokens_before(np.array(wanted, np.int64), data, boundaries, numbers, before))
        bounds = np.searchsorted(boundaries, starts)
        is_lossy = np.logical_or.reduceat(numbers == _LOSSY, bounds[:-1]).tolist()
        for lossy, own, (first, last) in zip(is_lossy, positions, pairwise(before[bounds].tolist()), strict=True):
            found = [next(left) - first for _ in own]
            yield None if lossy or any(token < 0 for token in found) else (ids[first:last], found)

    def _numbers(self, data: bytes, boundaries: Array) -> Array:
        """Return the number of each segment; each distinct segment is looked up once."""
        segments = pa.LargeStringArray.from_buffers(len(boundaries) - 1, pa.py_buffer(boundaries), pa.py_buffer(data))
        numbered = segments.dictionary_encode()
        distinct: list[str] = numbered.dictionary.to_pylist()
        numbers = np.fromiter(map(self._segments.__getitem__, distinct), np.int64, len(distinct))
        found: Array = numbers[to_numpy(numbered.indices)]
        return found

    def _tokens_before(
        self, positions: Array, data: bytes, boundaries: Array, numbers: Array, before: Array
    ) -> list[int]:
        """Return the number of tokens before each position in the data; -1 for a position within a word."""
        segment_of = np.searchsorted(boundaries, positions, side="right") - 1
        inside = positions - boundaries[segment_of]
        tokens: list[int] = before[segment_of].tolist()
        for index in np.flatnonzero(inside).tolist():
            segment, position = int(segment_of[index]), int(inside[index])
            key = (int(numbers[segment]), position)
            if key not in self._token_offsets:
                self._token_offsets[key] = self._tokens_within(
                    data[boundaries[segment] : boundaries[segment + 1]].decode(), position
                )
            within = self._token_offsets[key]
            tokens[index] = -1 if within is None else tokens[index] + within
        return tokens

    def _boundaries(self, data: bytes) -> Array:
        """Return the starts of segments, and the end: at added tokens, at ends of texts, and at spaces between words."""
        raw = np.frombuffer(data, np.uint8)
        spaces = np.flatnonzero(raw == ord(" "))
        splits = _MAY_END[raw[spaces - 2], raw[spaces - 1]] & _MAY_BEGIN[raw[spaces + 1], raw[spaces + 2]]
        is_boundary = np.zeros(len(data) + 1, bool)
        is_boundary[spaces[splits]] = True
        bounds = np.cumsum([0, *map(len, self._delimiters.split(data))])
        if any(" " in token for token in self._added):
            for first, last in zip(bounds[1:-1:2], bounds[2::2], strict=True):
                is_boundary[first:last] = False
        is_boundary[bounds] = True
        return np.flatnonzero(is_boundary)

    def _words(self, text: str) -> list[str]:
        return (self._split_ascii if text.isascii() else self._split)(text)

    def _tokens_within(self, segment: str, position: int) -> int | None:
        """Return the number of tokens before a byte within a segment; None for a byte within a word."""
        if segment in self._added or self._segments[segment] == _LOSSY:
            return None
        tokens = 0
        for word in self._words(segment):
            if position <= 0:
                break
            position -= len(word.encode())
            tokens += len(self._table[word]) // 4
        return tokens if position == 0 else None

    def _is_supported(self, text: str) -> bool:
        """Whether the tokenizer splits words at every character of a text as this cache does."""
        if text.isascii():
            return _END not in text
        characters = set(text)
        for new in characters - self._supported - self._unsupported:
            (self._supported if self._is_split_alike(new) else self._unsupported).add(new)
        if self._backend.normalizer is not None and not unicodedata.is_normalized("NFC", text):
            return False
        return characters <= self._supported

    def _is_split_alike(self, character: str) -> bool:
        if unicodedata.category(character) in ("Cn", "Cs"):  # unassigned: its class may differ between Unicode versions
            return False
        probe = _PROBE.format(character)
        normalizer = self._backend.normalizer
        if normalizer is not None and normalizer.normalize_str(probe) != probe:
            return False
        expected = [probe[first:last] for _, (first, last) in self._backend.pre_tokenizer.pre_tokenize_str(probe)]
        return bool(self._split(probe) == expected)

    def _matches_tokenizer(self) -> bool:
        """Whether the ids equal the tokenizer's on generated texts of all ASCII characters."""
        draw = random.Random(0)
        common = [
            "  ",
            "\n",
            "\n\n",
            "1",
            "22",
            "'s",
            "'",
            "'LL",
            "word",
            "Word",
            "A",
            "...",
            "\t",
            " (",
            "x_y",
            *self._added,
        ]
        alphabet = [*map(chr, range(1, 128)), *common * 8]
        texts = ["".join(draw.choices(alphabet, k=40)) for _ in range(250)]
        expected = [encoding.ids for encoding in self._backend.encode_batch(texts, add_special_tokens=False)]
        own = self.encode(texts, [[]] * len(texts))
        return all(one is not None and one[0].tolist() == ids for one, ids in zip(own, expected, strict=True))


class _LossyWordError(Exception):
    """A word whose tokens do not decode to it."""


class _WordTable(dict[str, bytes]):
    """Maps words to their token ids, as int32 bytes; the model of the tokenizer encodes missing words."""

    def __init__(self, backend: Any, to_bytes: Any) -> None:
        super().__init__()
        self._backend, self._to_bytes = backend, to_bytes

    def __missing__(self, word: str) -> bytes:
        ((written, _),) = self._to_bytes.pre_tokenize_str(word)
        ids = [token.id for token in self._backend.model.tokenize(written)]
        if self._backend.decode(ids, skip_special_tokens=False) != word:
            raise _LossyWordError
        self[word] = found = array("i", ids).tobytes()
        return found


class _Segments(dict[str, int]):
    """Maps segments of text to numbers; the ids of all segments are stored one after another."""

    def __init__(self, added: dict[str, int], words: Callable[[str], Iterable[bytes]]) -> None:
        super().__init__()
        self._added, self._words = added, words
        self.clear()

    def __missing__(self, segment: str) -> int:
        try:
            self._ids.frombytes(b"".join(self._words(segment)))
        except _LossyWordError:
            self[segment] = _LOSSY
            return _LOSSY
        self[segment] = number = self._close()
        return number

    def is_full(self) -> bool:
        """Whether the table has reached its maximum size."""
        return len(self) > MAX_SEGMENTS or len(self._ids) > MAX_IDS

    def clear(self) -> None:
        """Remove all but the added tokens."""
        super().clear()
        self._ids, self._ends = array("i"), array("q", [0, 0])  # number 1, _LOSSY, has no ids
        self[_END] = self._close()
        for token, index in self._added.items():
            self._ids.append(index)
            self[token] = self._close()

    def _close(self) -> int:
        self._ends.append(len(self._ids))
        return len(self._ends) - 1

    def joined(self, numbers: Array) -> tuple[Array, Array]:
        """Return the concatenated ids of segments, and how many precede each segment and the end."""
        all_ids, ends = np.frombuffer(self._ids, np.int32), np.frombuffer(self._ends, np.int64)
        first = ends[numbers - 1]
        counts = ends[numbers] - first
        before = np.concatenate([[0], np.cumsum(counts)])
        return all_ids[np.repeat(first - before[:-1], counts) + np.arange(before[-1])], before


def _non_space_bytes() -> tuple[Array, Array]:
    """Return two tables: whether two bytes before a position, or two bytes after it, are certain to contain no white space.

    Two bytes are needed to distinguish the white space characters of UTF-8 from letters that end in the same byte.
    """
    ends, begins = np.ones((2, 256, 256), bool)
    for space in filter(str.isspace, map(chr, range(0x3001))):
        written = space.encode()
        ends[written[-2] if len(written) > 1 else slice(None), written[-1]] = False
        begins[written[0], written[1] if len(written) > 1 else slice(None)] = False
    return ends, begins


_MAY_END, _MAY_BEGIN = _non_space_bytes()


def _splitter(expression: Any) -> Callable[[str], list[str]]:
    """Return a function that splits a text; raises re.error for an expression with groups, which findall would return."""
    if expression.groups:
        raise re.error("groups", expression.pattern)
    found: Callable[[str], list[str]] = expression.findall
    return found


def _word_pattern(backend: Any) -> str | None:
    """Return the expression by which the tokenizer splits words; None if it is not of a supported kind."""
    plain_tokens = all(
        not (token.lstrip or token.rstrip or token.single_word or token.normalized)
        for token in backend.get_added_tokens_decoder().values()
    )
    is_plain_bpe = isinstance(backend.model, models.BPE) and not backend.model.dropout
    if not (plain_tokens and is_plain_bpe) or backend.pre_tokenizer is None or backend.encode_special_tokens:
        return None
    kinds = [_description(part)["type"] for part in (backend.normalizer, backend.decoder) if part is not None]
    if kinds not in (["ByteLevel"], ["NFC", "ByteLevel"]):
        return None
    steps = _description(backend.pre_tokenizer)
    match steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]:
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return _GPT_2
        case [
            {"type": "Digits", "individual_digits": bool(single)},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        ]:
            return _GPT_2_DIGITS[single] + _GPT_2_BETWEEN_DIGITS
        case [
            {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return pattern
    return None


def _description(part: Any) -> dict[str, Any]:
    return dict(json.loads(part.__getstate__()))


def _ascii_pattern(pattern: str) -> str | None:
    """Return an equivalent expression for ASCII texts, without Unicode classes, which `re` lacks and which are slow."""
    inside = False
    parts, position = [], 0
    for match in _CLASS.finditer(pattern):
        found = match.group()
        if match.group(1) is not None:
            members = _ASCII_CLASSES.get(match.group(1))
            if members is None:
                return None
            found = members if inside else f"[{members}]" if members else "(?!)"
        elif found in "[]":
            inside = found == "["
        parts += [pattern[position : match.start()], found]
        position = match.end()
    return "".join(parts) + pattern[position:]
