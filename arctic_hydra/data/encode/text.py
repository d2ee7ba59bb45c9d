"""Encodes plain texts with an answer at the end as token ids and supervised spans."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from arctic_hydra.data.arrays import Array
from arctic_hydra.data.encode.bpe_cache import Encoding, WordTokenizer
from arctic_hydra.data.encode.spans import Encoded, added_text, decode_mismatch, token_span
from arctic_hydra.data.formats.messages import PlainText, RowProblem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextEncoder:
    """Tokenizes plain texts: a BOS if the tokenizer adds one, the text, and an eos token if the tokenizer has one.

    Supervision starts at the first token of the answer. If a token spans the border between prompt and answer, the two are
    tokenized separately, as at generation. If that does not decode to the text (a tokenizer that adds a prefix space would
    insert one between them), the text is tokenized as a whole, and the token across the border is supervised too.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        self._backend.no_truncation()
        self._backend.no_padding()
        self._word_cache = WordTokenizer.of(self._backend)
        bos = tokenizer.bos_token_id
        adds_bos = bos is not None and self._backend.encode("a", add_special_tokens=True).ids[:1] == [bos]
        self._bos = np.array([bos] if adds_bos else [], np.int32)
        eos = tokenizer.eos_token_id
        self._eos = np.array([] if eos is None else [eos], np.int32)
        self._unk_id = tokenizer.unk_token_id

    def encode(self, texts: Sequence[PlainText]) -> list[Encoded | RowProblem]:
        """Return the ids of each text and the span from its `start` to its end, eos included, which decodes to the answer."""
        found: Sequence[Encoding | None] = [None] * len(texts)
        if self._word_cache:
            found = self._word_cache.encode([item.text for item in texts], [[item.start] for item in texts])
        whole = iter(
            self._encode_with_tokenizer([item for item, cached in zip(texts, found, strict=True) if cached is None])
        )
        results: list[Encoded | RowProblem] = []
        for cached in found:
            result = next(whole) if cached is None else (cached[0], cached[1][0])
            results.append(result if isinstance(result, RowProblem) else self._finish(*result))
        return results

    def _encode_with_tokenizer(self, texts: Sequence[PlainText]) -> Iterator[tuple[Array, int] | RowProblem]:
        """Yield the ids and the first token of the answer, without the word cache."""
        encodings = self._backend.encode_batch([item.text for item in texts], add_special_tokens=False)
        firsts = [
            token_span(encoding, item.text, (item.start, len(item.text)))[0] if item.start else 0
            for item, encoding in zip(texts, encodings, strict=True)
        ]
        answers = [encoding.ids[first:] for first, encoding in zip(firsts, encodings, strict=True) if first]
        decoded = iter(self._backend.decode_batch(answers, skip_special_tokens=False))
        for item, encoding, first in zip(texts, encodings, firsts, strict=True):
            ids = np.array(encoding.ids, np.int32)
            matches = (next(decoded) if first else None) == item.text[item.start :]
            yield (ids, first) if matches or item.start == 0 else self._split_at_answer(item, ids, first)

    def _split_at_answer(self, item: PlainText, ids: Array, first: int) -> tuple[Array, int] | RowProblem:
        """Return the ids and the first token of an answer, if the tokens from `first` on do not decode to it."""
        answer, added = _nfc(item.text[item.start :]), self._added(ids, first)
        if added == answer:  # some decoders drop the space at the start of a text
            return ids, first
        texts = (item.text[: item.start], item.text[item.start :])
        before, after = (self._backend.encode(text, add_special_tokens=False).ids for text in texts)
        parts = np.array(before + after, np.int32)
        if self._decode(parts) == self._decode(ids) and self._added(parts, len(before)) == answer:
            return parts, len(before)
        if added.endswith(answer) or (self._unk_id is not None and self._unk_id in ids[first:]):
            return ids, first
        return decode_mismatch(answer, added)

    def _added(self, ids: Array, first: int) -> str:
        """Return what the tokens from `first` on add to the text of those before them; empty if they change that text."""
        return added_text(self._decode(ids[:first]), self._decode(ids))

    def _decode(self, ids: Array) -> str:
        return _nfc(str(self._backend.decode(ids.tolist(), skip_special_tokens=False)))

    def _finish(self, ids: Array, first: int) -> Encoded:
        """Return the example with exactly one BOS and one eos token, as far as the tokenizer has them."""
        while len(self._bos) and ids[:1].tolist() == self._bos.tolist():  # a text may begin with it
            ids, first = ids[1:], max(0, first - 1)
        if len(self._eos) and ids[-1:].tolist() == self._eos.tolist():
            ids = ids[:-1]
        whole = np.concatenate([self._bos, ids, self._eos])
        return Encoded(whole, [(first + len(self._bos), len(whole))], [])


def _nfc(text: str) -> str:
    """Return the text in Unicode NFC, since some tokenizers normalize."""
    return unicodedata.normalize("NFC", text)
