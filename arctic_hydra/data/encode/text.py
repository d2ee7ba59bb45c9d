"""Plain texts to token ids and loss masks."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from arctic_hydra.data.arrays import Array
from arctic_hydra.data.encode.bpe_cache import Encoding, WordTokenizer
from arctic_hydra.data.encode.spans import Encoded, added_text, lost_text, token_span
from arctic_hydra.data.formats.messages import PlainText, RowProblem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextEncoder:
    """Tokenises plain texts: a BOS where the tokenizer writes one, the text, and its eos token where it has one.

    What is trained on begins at the first token of the answer. Where a token reaches over its border, prompt and answer
    are tokenised by themselves, as when generating, if that gives back the text; else (a tokenizer that puts a space
    before every text would put one between them) the text is tokenised as a whole, and the token that reaches over the
    border is trained on, with the end of the prompt that it holds.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        self._backend.no_truncation()
        self._backend.no_padding()
        self._words = WordTokenizer.of(self._backend)
        bos = tokenizer.bos_token_id
        adds_bos = bos is not None and self._backend.encode("a", add_special_tokens=True).ids[:1] == [bos]
        self._head = np.array([bos] if adds_bos else [], np.int32)
        eos = tokenizer.eos_token_id
        self._tail = np.array([] if eos is None else [eos], np.int32)
        self._unknown = tokenizer.unk_token_id

    def encode(self, texts: Sequence[PlainText]) -> list[Encoded | RowProblem]:
        """Return ids of each text and the span from its `start` to its end, eos included; decoded, it gives the answer."""
        found: Sequence[Encoding | None] = [None] * len(texts)
        if self._words:
            found = self._words.encode([item.text for item in texts], [[item.start] for item in texts])
        whole = iter(self._encode_whole([item for item, known in zip(texts, found, strict=True) if known is None]))
        results: list[Encoded | RowProblem] = []
        for known in found:
            result = next(whole) if known is None else (known[0], known[1][0])
            results.append(result if isinstance(result, RowProblem) else self._finish(*result))
        return results

    def _encode_whole(self, texts: Sequence[PlainText]) -> Iterator[tuple[Array, int] | RowProblem]:
        """Yield ids and the first token of the answer, by the tokenizer itself."""
        encodings = self._backend.encode_batch([item.text for item in texts], add_special_tokens=False)
        firsts = [
            token_span(encoding, item.text, (item.start, len(item.text)))[0] if item.start else 0
            for item, encoding in zip(texts, encodings, strict=True)
        ]
        answers = [encoding.ids[first:] for first, encoding in zip(firsts, encodings, strict=True) if first]
        decoded = iter(self._backend.decode_batch(answers, skip_special_tokens=False))
        for item, encoding, first in zip(texts, encodings, firsts, strict=True):
            ids = np.array(encoding.ids, np.int32)
            as_wanted = (next(decoded) if first else None) == item.text[item.start :]
            yield (ids, first) if as_wanted or item.start == 0 else self._at_border(item, ids, first)

    def _at_border(self, item: PlainText, ids: Array, first: int) -> tuple[Array, int] | RowProblem:
        """Return ids and first token of an answer that the tokens from `first` on do not give alone."""
        answer, written = _composed(item.text[item.start :]), self._written(ids, first)
        if written == answer:  # some decoders drop the space at the start of a text
            return ids, first
        texts = (item.text[: item.start], item.text[item.start :])
        before, after = (self._backend.encode(text, add_special_tokens=False).ids for text in texts)
        parts = np.array(before + after, np.int32)
        if self._decode(parts) == self._decode(ids) and self._written(parts, len(before)) == answer:
            return parts, len(before)
        if written.endswith(answer) or (self._unknown is not None and self._unknown in ids[first:]):
            return ids, first
        return lost_text(answer, written)

    def _written(self, ids: Array, first: int) -> str:
        """Return what the tokens from `first` on add to the text of those before them; empty where they change that."""
        return added_text(self._decode(ids[:first]), self._decode(ids))

    def _decode(self, ids: Array) -> str:
        return _composed(str(self._backend.decode(ids.tolist(), skip_special_tokens=False)))

    def _finish(self, ids: Array, first: int) -> Encoded:
        """Return the example with one BOS, where the tokenizer writes one, and one eos token."""
        if len(self._head) and ids[:1].tolist() == self._head.tolist():
            ids, first = ids[1:], max(0, first - 1)
        if len(self._tail) and ids[-1:].tolist() == self._tail.tolist():
            ids = ids[:-1]
        whole = np.concatenate([self._head, ids, self._tail])
        return Encoded(whole, [(first + len(self._head), len(whole))], [])


def _composed(text: str) -> str:
    """Return the text as tokenizers that normalise Unicode write it, whatever its form was."""
    return unicodedata.normalize("NFC", text)
