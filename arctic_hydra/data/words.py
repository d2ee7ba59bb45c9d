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
"""Entries of the tables before they are emptied: bounds their memory."""
LONGEST_STRETCH = 24
"""Characters of the longest stretch that is worth an entry: longer ones hardly come again."""
_SPACE_AFTER_SPACE = re.compile(r"\s ").search
_CUT_BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)").split


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
        self._spaced, self._unspaced = (_Stretches(before, self._words) for before in (" ", ""))
        self._same = {chr(code) for code in range(128)}
        self._other: set[str] = set()

    def encode(self, text: str, places: Sequence[int]) -> tuple[Array, list[int]] | None:
        """Return the ids (int32) and, for ascending places in the text, the tokens that begin there.

        None where a place lies within a word, or where the text's words are not sure to be cut alike.
        """
        if not text.isascii() and not self._is_known(text):
            return None
        self._make_room()
        parts: list[bytes] = []
        starts: list[int] = []
        waiting, offset, length = iter([*places, len(text) + 1]), 0, 0
        place = next(waiting)
        try:
            for index, piece in enumerate(self._added.split(text)):
                end = offset + len(piece)
                while place < end:
                    before = self._before(piece, place - offset, added=bool(index % 2))
                    if before is None:
                        return None
                    starts.append((length + before) // 4)
                    place = next(waiting)
                parts.append(self._first[piece] if index % 2 else self._joined(piece))
                length += len(parts[-1])
                offset = end
        except _LossyWordError:
            return None
        starts += [length // 4] * (len(places) - len(starts))  # places at the very end
        return np.frombuffer(b"".join(parts), dtype=np.int32), starts

    def _joined(self, piece: str) -> bytes:
        """Return the ids of a text without added tokens."""
        first, *others = _stretches(piece)
        return b"".join([self._unspaced[first], *map(self._spaced.__getitem__, others)])

    def _words(self, text: str) -> bytes:
        return b"".join(map(self._table.__getitem__, self._cut_of(text)(text)))

    def _before(self, piece: str, place: int, *, added: bool) -> int | None:
        """Return the bytes of the ids before a place in a piece of text; None where a word goes over it."""
        if place == 0:
            return 0
        if added:
            return None
        length = at = 0
        for number, stretch in enumerate(_stretches(piece)):
            text = f" {stretch}" if number else stretch
            if at + len(text) <= place:
                length += len((self._spaced if number else self._unspaced)[stretch])
                at += len(text)
                continue
            for word in self._cut_of(text)(text):
                if at >= place:
                    return length if at == place else None
                length += len(self._table[word])
                at += len(word)
        return length if at == place else None

    def _cut_of(self, text: str) -> Callable[[str], list[str]]:
        return self._cut_ascii if text.isascii() else self._cut

    def _make_room(self) -> None:
        if len(self._table) + len(self._spaced) + len(self._unspaced) > MOST_WORDS:
            for table in (self._table, self._spaced, self._unspaced):
                table.clear()

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


def _stretches(text: str) -> list[str]:
    """Return a text cut at spaces that surely begin a word: those after anything but white space."""
    return _CUT_BETWEEN_WORDS(text) if _SPACE_AFTER_SPACE(text) else text.split(" ")


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


class _Stretches(dict[str, bytes]):
    """Stretches of text to the ids of their words and of what stands `before` them, a space or nothing."""

    def __init__(self, before: str, words: Callable[[str], bytes]) -> None:
        super().__init__()
        self._before, self._words = before, words

    def __missing__(self, stretch: str) -> bytes:
        found = self._words(self._before + stretch)
        if len(stretch) <= LONGEST_STRETCH:
            self[stretch] = found
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
