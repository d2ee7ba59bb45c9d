"""Examples to token ids and the token spans that are trained on, in batches: conversations and plain texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from arctic_hydra.data.masks import ChatEncoder, Encoded, TurnChoice
from arctic_hydra.data.messages import Chat, PlainText, RowProblem
from arctic_hydra.data.word_tables import Array
from arctic_hydra.data.words import Encoding, WordTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ExampleEncoder:
    """Encodes what the readers of `formats` return, keeping the order."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, turns: TurnChoice) -> None:
        self._tokenizer, self._turns = tokenizer, turns
        self._chats: ChatEncoder | None = None  # made when the first chat comes: texts need no template
        self._texts: TextEncoder | None = None

    def encode(self, examples: Sequence[Chat | PlainText | RowProblem]) -> list[Encoded | RowProblem]:
        """Return ids and spans of each example, or what is wrong with it."""
        chats = [item for item in examples if isinstance(item, Chat)]
        texts = [item for item in examples if isinstance(item, PlainText)]
        if chats and self._chats is None:
            self._chats = ChatEncoder(self._tokenizer, self._turns)
        if texts and self._texts is None:
            self._texts = TextEncoder(self._tokenizer)
        encoded_chats = iter(self._chats.encode(chats) if self._chats and chats else [])
        encoded_texts = iter(self._texts.encode(texts) if self._texts and texts else [])
        results: list[Encoded | RowProblem] = []
        for item in examples:
            if isinstance(item, RowProblem):
                results.append(item)
            else:
                results.append(next(encoded_chats if isinstance(item, Chat) else encoded_texts))
        return results


class TextEncoder:
    """Tokenises plain texts: a BOS where the tokenizer writes one, the text, and its eos token where it has one."""

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

    def encode(self, texts: Sequence[PlainText]) -> list[Encoded | RowProblem]:
        """Return ids of each text and the span from its `start` to its end, eos included."""
        found: Sequence[Encoding | None] = [None] * len(texts)
        if self._words:
            found = self._words.encode([item.text for item in texts], [[item.start] for item in texts])
        whole = iter(self._encode_whole([item for item, known in zip(texts, found, strict=True) if known is None]))
        return [self._finish(*(next(whole) if known is None else (known[0], known[1][0]))) for known in found]

    def _encode_whole(self, texts: Sequence[PlainText]) -> Iterator[tuple[Array, int]]:
        """Yield ids and the first token of the answer, by the tokenizer itself."""
        encodings = self._backend.encode_batch([item.text for item in texts], add_special_tokens=False)
        for item, encoding in zip(texts, encodings, strict=True):
            ids, first = encoding.ids, self._first_token(item, encoding)
            if first is None:  # a token reaches over the border: tokenise the parts as they come when generating
                parts = (item.text[: item.start], item.text[item.start :])
                before, after = (self._backend.encode(part, add_special_tokens=False).ids for part in parts)
                ids, first = before + after, len(before)
            yield np.array(ids, np.int32), first

    def _finish(self, ids: Array, first: int) -> Encoded:
        """Return the example with one BOS, where the tokenizer writes one, and one eos token."""
        if len(self._head) and ids[:1].tolist() == self._head.tolist():
            ids, first = ids[1:], max(0, first - 1)
        if len(self._tail) and ids[-1:].tolist() == self._tail.tolist():
            ids = ids[:-1]
        whole = np.concatenate([self._head, ids, self._tail])
        return Encoded(whole, [(first + len(self._head), len(whole))], [])

    @staticmethod
    def _first_token(item: PlainText, encoding: Any) -> int | None:
        if item.start == 0:
            return 0
        if item.start >= len(item.text):
            return len(encoding.ids)
        token = encoding.char_to_token(item.start)
        return token if token is not None and encoding.offsets[token][0] == item.start else None
