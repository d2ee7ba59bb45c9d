"""Examples to token ids and the token spans that are trained on, in batches: conversations and plain texts."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from arctic_hydra.data.arrow import Array
from arctic_hydra.data.masks import TOOL_TEMPLATE, ChatEncoder, Encoded, TurnChoice
from arctic_hydra.data.messages import Chat, PlainText, RowProblem
from arctic_hydra.data.rendered import short
from arctic_hydra.data.words import Encoding, WordTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ExampleEncoder:
    """Encodes what the readers of `formats` return, keeping the order."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, turns: TurnChoice) -> None:
        self._tokenizer, self._turns = tokenizer, turns
        named = tokenizer.chat_template
        self._has_tool_template = isinstance(named, dict) and TOOL_TEMPLATE in named
        # Each is made when the first example of its kind comes: texts need no template.
        self._encoders: dict[str, ChatEncoder | TextEncoder] = {}

    def encode(self, examples: Sequence[Chat | PlainText | RowProblem]) -> list[Encoded | RowProblem]:
        """Return ids and spans of each example, or what is wrong with it."""
        kinds: dict[str, list[Any]] = {}
        order = [self._kind(item) for item in examples]
        for kind, item in zip(order, examples, strict=True):
            kinds.setdefault(kind, []).append(item)
        found = {kind: iter(self._encoder(kind).encode(items) if kind else items) for kind, items in kinds.items()}
        return [next(found[kind]) for kind in order]

    def _kind(self, item: Chat | PlainText | RowProblem) -> str:
        if isinstance(item, Chat):
            return TOOL_TEMPLATE if item.tools is not None and self._has_tool_template else "chat"
        return "text" if isinstance(item, PlainText) else ""

    def _encoder(self, kind: str) -> ChatEncoder | TextEncoder:
        if kind not in self._encoders:
            self._encoders[kind] = (
                TextEncoder(self._tokenizer)
                if kind == "text"
                else ChatEncoder(self._tokenizer, self._turns, with_tools=kind == TOOL_TEMPLATE)
            )
        return self._encoders[kind]


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
        firsts = [_first_token(item, encoding) for item, encoding in zip(texts, encodings, strict=True)]
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
        return RowProblem(
            "tokenizer",
            f"the tokens of an answer do not decode to its text: expected {short(answer)}, got {short(written)}; the "
            f"tokenizer loses text; use one that does not",
        )

    def _written(self, ids: Array, first: int) -> str:
        """Return what the tokens from `first` on add to the text of those before them; empty where they change that."""
        before, upto = self._decode(ids[:first]), self._decode(ids)
        return upto[len(before) :] if upto.startswith(before) else ""

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


def _first_token(item: PlainText, encoding: Any) -> int:
    """Return the token that holds the first character of the answer, or the next one where none does."""
    for place in range(item.start, len(item.text)):  # tokenizers that trim offsets leave spaces uncovered
        token = encoding.char_to_token(place) if item.start else 0
        if token is not None:
            return int(token)
    return len(encoding.ids)


def _composed(text: str) -> str:
    """Return the text as tokenizers that normalise Unicode write it, whatever its form was."""
    return unicodedata.normalize("NFC", text)
