"""Byte-level BPE one distinct word at a time: the tokens of the tokenizer itself, looked up instead of worked out again.

A byte-level BPE tokenizer cuts a text at its added tokens, cuts what lies between into words by a regular expression, and
encodes each word by itself. Texts repeat their words, so the words are cut here and looked up in a table that the
tokenizer fills. That holds only where the words are cut alike: the expression is taken from the tokenizer, compared with
it on made-up texts first, and each character beyond ASCII is compared with it once before a text that holds it is taken.
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Digits are cut out first, and the rest as if each stretch stood alone: there a number ends a text too.
_GPT_2_DIGITS = {True: r"\p{N}|", False: r"\p{N}+|"}
_GPT_2_BETWEEN_DIGITS = _GPT_2.replace(r" ?\p{N}+|", "").replace(r"(?!\S)", r"(?![^\s\p{N}])")
_ASCII_CLASSES = {"L": "a-zA-Z", "N": "0-9", "Lu": "A-Z", "Ll": "a-z", "Lt": "", "Lm": "", "Lo": "", "M": ""}
_CLASS = re.compile(r"\\p\{(\w+)\}|\\.|[\[\]]")
_PROBE = " {0} a{0}a A{0}A A{0}a a{0}A 1{0}1 .{0}. \n{0}\n'{0} a'{0}a {0}{0}\t{0}"
MOST_WORDS = 1 << 20
"""Words in the table before it is emptied: bounds its memory."""


class WordTokenizer:
    """Token ids of texts, equal to those of the tokenizer it is made of."""

    @classmethod
    def of(cls, backend: Any) -> WordTokenizer | None:
        """Return one for a byte-level BPE tokenizer whose words can be cut here; None for any other."""
        pattern = _word_pattern(backend)
        if pattern is None:
            return None
        made = cls(backend, pattern)
        return made if made._agrees() else None

    def __init__(self, backend: Any, pattern: str) -> None:
        import regex
        from tokenizers import pre_tokenizers

        self._backend = backend
        added = {token.content: index for index, token in backend.get_added_tokens_decoder().items()}
        longest_first = sorted(added, key=lambda token: (-len(token), token))
        self._added = re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")
        ascii_pattern = _ascii_pattern(pattern)
        self._cut: Callable[[str], list[str]] = regex.compile(pattern).findall
        self._cut_ascii = re.compile(ascii_pattern, re.ASCII).findall if ascii_pattern else self._cut
        self._table = _Table(backend, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        self._first = {token: np.array([index], np.int32).tobytes() for token, index in added.items()}
        self._table.update(self._first)
        self._same = {chr(code) for code in range(128)}
        self._other: set[str] = set()

    def encode(self, text: str, places: Sequence[int]) -> tuple[Array, list[int]] | None:
        """Return the ids (int32) and, for ascending places in the text, the tokens that begin there.

        None where a place lies within a word, or where the text's words are not sure to be cut alike.
        """
        cut = self._cut_ascii
        if not text.isascii():
            cut = self._cut
            if not self._is_known(text):
                return None
        if len(self._table) > MOST_WORDS:
            self._table.clear()
            self._table.update(self._first)
        words: list[str] = []
        marks: list[int] = []
        waiting, offset = iter([*places, len(text) + 1]), 0
        place = next(waiting)
        for index, piece in enumerate(self._added.split(text)):
            if not piece:
                continue
            found = [piece] if index % 2 else cut(piece)
            while place < offset + len(piece):
                at, number = offset, 0
                while at < place:
                    at += len(found[number])
                    number += 1
                if at != place:
                    return None
                marks.append(len(words) + number)
                place = next(waiting)
            words += found
            offset += len(piece)
        marks += [len(words)] * (len(places) - len(marks))  # places at the very end
        return self._join(words, marks)

    def _join(self, words: list[str], marks: list[int]) -> tuple[Array, list[int]] | None:
        look = self._table.__getitem__
        parts: list[bytes] = []
        starts, start, length = [], 0, 0
        try:
            for mark in marks:
                parts.append(b"".join(map(look, words[start:mark])))
                length += len(parts[-1])
                starts.append(length // 4)
                start = mark
            parts.append(b"".join(map(look, words[start:])))
        except _LossyWordError:
            return None
        return np.frombuffer(b"".join(parts), dtype=np.int32), starts

    def _is_known(self, text: str) -> bool:
        characters = set(text)
        for new in characters - self._same - self._other:
            (self._same if self._is_cut_alike(new) else self._other).add(new)
        if self._backend.normalizer is not None and not unicodedata.is_normalized("NFC", text):
            return False
        return characters <= self._same

    def _is_cut_alike(self, character: str) -> bool:
        if unicodedata.category(character) in ("Cn", "Cs"):  # not assigned: its class may change with Unicode's version
            return False
        probe = _PROBE.format(character)
        normalizer = self._backend.normalizer
        if normalizer is not None and normalizer.normalize_str(probe) != probe:
            return False
        wanted = [probe[first:last] for _, (first, last) in self._backend.pre_tokenizer.pre_tokenize_str(probe)]
        return bool(self._cut(probe) == wanted)

    def _agrees(self) -> bool:
        """Whether the ids are the tokenizer's own on made-up texts of every ASCII character."""
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
            *self._first,
        ]
        alphabet = [*map(chr, range(128)), *common * 8]
        texts = ["".join(draw.choices(alphabet, k=40)) for _ in range(1500)]
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        for text, encoding in zip(texts, encodings, strict=True):
            mine = self.encode(text, [])
            if mine is None or mine[0].tolist() != encoding.ids:
                return False
        return True


class _LossyWordError(Exception):
    """A word that its tokens do not give back."""


class _Table(dict[str, bytes]):
    """Words to their token ids, as int32 bytes; a word that is missing is encoded by the tokenizer's model."""

    def __init__(self, backend: Any, to_bytes: Any) -> None:
        super().__init__()
        self._backend, self._to_bytes = backend, to_bytes

    def __missing__(self, word: str) -> bytes:
        ((written, _),) = self._to_bytes.pre_tokenize_str(word)
        ids = [token.id for token in self._backend.model.tokenize(written)]
        if self._backend.decode(ids, skip_special_tokens=False) != word:
            raise _LossyWordError
        self[word] = found = np.array(ids, np.int32).tobytes()
        return found


def _word_pattern(backend: Any) -> str | None:
    """Return the expression by which the tokenizer cuts words; None where it works in another way."""
    from tokenizers import models

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
    """Return the same expression for ASCII texts without Unicode classes, which `re` lacks and which are slow."""
    inside = False
    parts, place = [], 0
    for match in _CLASS.finditer(pattern):
        found = match.group()
        if match.group(1) is not None:
            members = _ASCII_CLASSES.get(match.group(1))
            if members is None:
                return None
            found = members if inside else f"[{members}]" if members else "(?!)"
        elif found in "[]":
            inside = found == "["
        parts += [pattern[place : match.start()], found]
        place = match.end()
    return "".join(parts) + pattern[place:]
