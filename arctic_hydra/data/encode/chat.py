"""Encodes conversations as token ids with a verified mask of the supervised tokens: each answer and its stop token.

If the template marks answers with `{% generation %}`, those spans are used; otherwise `turns` locates the answers. In both
cases the tokens of each span must decode to its text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from arctic_hydra.data.arrays import Array
from arctic_hydra.data.encode.bpe_cache import WordTokenizer
from arctic_hydra.data.encode.limits import RenderLimitError, TimeUpError, Watch, render_limits, too_slow
from arctic_hydra.data.encode.skeleton import reasoning_key
from arctic_hydra.data.encode.spans import Encoded, Span, added_text, decode_mismatch, pairs, token_span
from arctic_hydra.data.encode.template import ChatTemplate, template_problem
from arctic_hydra.data.encode.turns import TurnFinder
from arctic_hydra.data.formats.messages import Chat, RowProblem, check_text
from arctic_hydra.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_EMPTY_THINK = re.compile(r"<think>\s*</think>\s*")


@dataclass(frozen=True)
class TurnChoice:
    """Which turns of a conversation are trained on."""

    roles: tuple[str, ...] = ("assistant",)
    last_only: bool = False
    """Train on the last turn of these roles only."""
    ignore_empty_think: bool = False
    """Exclude empty thinking blocks at the start of an answer from the loss."""
    eot_tokens: tuple[str, ...] = ()
    """Tokens that end a turn, in addition to the tokenizer's special tokens."""
    train_on_eot: bool = True
    """Train on the tokens that end a turn."""

    def select(self, chat: Chat) -> list[int]:
        """Return the indices of the messages to train on."""
        chosen = [index for index, message in enumerate(chat.messages) if message["role"] in self.roles]
        chosen = chosen[-1:] if self.last_only else chosen
        return [index for index in chosen if chat.weights is None or chat.weights[index]]


@dataclass
class RenderedChat:
    """A rendered chat and the spans of its supervised characters."""

    text: str
    spans: list[Span]
    """Per turn, one span of answer and stop tokens; with `train_on_eot=false` two, of which only the first is supervised."""
    thoughts_left_out: int


class ChatEncoder:
    """Renders, tokenizes and masks batches of conversations."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, turns: TurnChoice | None = None, with_tools: bool = False
    ) -> None:
        self._turns = turns or TurnChoice()
        self._backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        self._backend.no_truncation()
        self._backend.no_padding()
        self._check_eot_tokens()
        specials = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        specials |= {token for token in (*tokenizer.all_special_tokens, *self._turns.eot_tokens) if token}
        with render_limits():  # both render probes
            self._template = ChatTemplate(tokenizer, with_tools)
            self._finder = TurnFinder(self._template, sorted(specials), self._turns.eot_tokens)
        self._word_cache = WordTokenizer.of(self._backend)
        self._unk_id = tokenizer.unk_token_id
        self._bos_id = tokenizer.bos_token_id
        start = self._backend.encode("a", add_special_tokens=True).ids[:1]
        self._adds_bos = self._bos_id is not None and start == [self._bos_id]

    def _check_eot_tokens(self) -> None:
        for token in self._turns.eot_tokens:
            count = len(self._backend.encode(token, add_special_tokens=False).ids)
            if count != 1:
                raise DataError(
                    f"data.eot_tokens: got {token!r}, which the tokenizer splits into {count} tokens, expected one token; "
                    f"pass a token that the chat template writes at the end of a turn"
                )

    def encode(self, chats: Sequence[Chat]) -> list[Encoded | RowProblem]:
        """Return the ids and spans of each chat, or its problem."""
        results: list[Encoded | RowProblem | None] = []
        rendered: list[RenderedChat] = []
        with render_limits() as watch:
            rendered_or_not = self._render_all(chats, watch)
        for item in rendered_or_not:
            results.append(item if isinstance(item, RowProblem) else None)
            if not isinstance(item, RowProblem):
                rendered.append(item)
        encoded = iter(self._tokenize(rendered))
        return [next(encoded) if result is None else result for result in results]

    def _tokenize(self, rendered: Sequence[RenderedChat]) -> list[Encoded | RowProblem]:
        """Return the ids and token spans of rendered chats, from the word cache where it applies."""
        positions = [[position for span in item.spans for position in span] for item in rendered]
        found = (
            self._word_cache.encode([item.text for item in rendered], positions)
            if self._word_cache
            else [None] * len(rendered)
        )
        uncached = iter(
            self._encode_with_tokenizer([item for item, cached in zip(rendered, found, strict=True) if cached is None])
        )
        results: list[Encoded | RowProblem] = []
        for item, cached in zip(rendered, found, strict=True):
            result = next(uncached) if cached is None else Encoded(cached[0], pairs(cached[1]))
            if not isinstance(result, RowProblem):
                result = self._with_one_bos(result)
                result.thoughts_left_out = item.thoughts_left_out
            results.append(result)
        return results

    def _encode_with_tokenizer(self, rendered: Sequence[RenderedChat]) -> list[Encoded | RowProblem]:
        """Return the ids and token spans without the word cache; the tokens of each span decode to its text."""
        encodings = self._backend.encode_batch([item.text for item in rendered], add_special_tokens=False)
        encoded: list[Encoded] = []
        pieces: list[list[int]] = []
        for located, encoding in zip(rendered, encodings, strict=True):
            ids = encoding.ids
            positions = [token_span(encoding, located.text, span) for span in located.spans]
            encoded.append(Encoded(np.array(ids, dtype=np.int32), positions))
            pieces += [ids[first:last] for first, last in positions]
        decoded = iter(self._backend.decode_batch(pieces, skip_special_tokens=False))
        results: list[Encoded | RowProblem] = []
        for item, located in zip(encoded, rendered, strict=True):
            text, spans = located.text, located.spans
            matches = [next(decoded) for _ in spans] == [text[first:last] for first, last in spans]
            results.append(item if matches else self._realign(item, text, spans))
        return results

    def _render_all(self, chats: Sequence[Chat], watch: Watch) -> list[RenderedChat | RowProblem]:
        # Tools are an argument of the call, so one call renders all chats without tools.
        plain = [index for index, chat in enumerate(chats) if chat.tools is None]
        try:
            texts = self._template.render([chats[index].messages for index in plain])
            rendered = dict(zip(plain, texts, strict=True))
        except (Exception, TimeUpError):  # some chat fails: render one by one below, to find which
            rendered = {}
        results: list[RenderedChat | RowProblem] = []
        for index, chat in enumerate(chats):
            watch.restart()
            try:
                found = rendered.get(index) or self._template.render([chat.messages], chat.tools)[0]
                check_text(found.text, "the rendered chat")  # it also contains tools and tool calls
                results.append(self._locate(chat, found.text, found.answers))
            except RowProblem as problem:
                results.append(problem)
            except TimeUpError:
                results.append(template_problem(chat, RenderLimitError(too_slow())))
            except Exception as error:  # a template may raise any exception
                results.append(template_problem(chat, error))
        return results

    def _locate(self, chat: Chat, text: str, marked: list[Span]) -> RenderedChat:
        selected = self._turns.select(chat)
        turns = self._finder.find(chat, text, marked, selected)
        dropped = 0
        for index, turn in zip(selected, turns, strict=True):
            message = chat.messages[index]
            if len(message) > 2 and (name := reasoning_key(message)):
                dropped += message[name].strip() not in text[turn.start : turn.body_end]
        if self._turns.ignore_empty_think:
            found = [_EMPTY_THINK.match(text, turn.start, turn.body_end) for turn in turns]
            turns = [
                replace(turn, start=empty.end()) if empty else turn for turn, empty in zip(turns, found, strict=True)
            ]
        if self._turns.train_on_eot:
            return RenderedChat(text, [(turn.start, turn.stop_end) for turn in turns], dropped)
        spans = [part for turn in turns for part in ((turn.start, turn.body_end), (turn.body_end, turn.stop_end))]
        return RenderedChat(text, spans, dropped)

    def _realign(self, encoded: Encoded, text: str, spans: list[Span]) -> Encoded | RowProblem:
        """Return ids whose tokens decode to the spans, or the problem if there are none."""
        if self._first_mismatch(encoded, text, spans) is None:
            return encoded
        # A token crosses the border of an answer (a newline merged with the header's): tokenize the parts separately, as at
        # generation, when the prompt is tokenized before the answer exists.
        bounds = sorted({0, len(text), *(position for span in spans for position in span)})
        ids: list[int] = []
        starts: dict[int, int] = {}
        for first, last in pairwise(bounds):
            starts[first] = len(ids)
            ids += self._backend.encode(text[first:last], add_special_tokens=False).ids
        starts[len(text)] = len(ids)
        parts = Encoded(np.array(ids, dtype=np.int32), [(starts[first], starts[last]) for first, last in spans])
        mismatch = self._first_mismatch(parts, text, spans)
        if mismatch is None:
            return parts
        tokens, characters = mismatch
        return decode_mismatch(text[slice(*characters)], self._decode(parts.ids[slice(*tokens)]))

    def _first_mismatch(self, encoded: Encoded, text: str, spans: list[Span]) -> tuple[Span, Span] | None:
        """Return the first span of tokens that does not decode to its span of characters, and the latter; None if all do."""
        for tokens, characters in zip(encoded.spans, spans, strict=True):
            if not self._decodes_to(encoded.ids, tokens, text[slice(*characters)]):
                return tokens, characters
        return None

    def _decodes_to(self, ids: Array, tokens: Span, expected: str) -> bool:
        first, last = tokens
        if self._decode(ids[first:last]) == expected:
            return True
        # Some decoders drop the leading space of a text, and some tokenizers normalize Unicode.
        got = added_text(self._decode(ids[:first]), self._decode(ids[:last]))
        if unicodedata.normalize("NFC", got) == unicodedata.normalize("NFC", expected):
            return True
        return self._unk_id is not None and self._unk_id in ids[first:last]

    def _decode(self, ids: Array) -> str:
        return str(self._backend.decode(ids.tolist(), skip_special_tokens=False))

    def _with_one_bos(self, encoded: Encoded) -> Encoded:
        """Return the example with exactly one BOS at its start, if the tokenizer or the template writes one."""
        bos, ids, shift = self._bos_id, encoded.ids, 0
        if bos is not None:
            while len(ids) > 1 and ids[0] == ids[1] == bos:
                ids, shift = ids[1:], shift - 1
            if self._adds_bos and (not len(ids) or ids[0] != bos):
                ids, shift = np.concatenate([np.array([bos], dtype=np.int32), ids]), 1
        spans = [(first + shift, last + shift) for first, last in encoded.spans] if shift else encoded.spans
        ends = [last for _, last in spans]
        return Encoded(ids, spans, ends) if self._turns.train_on_eot else Encoded(ids, spans[::2], ends[1::2])
