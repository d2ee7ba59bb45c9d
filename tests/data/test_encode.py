"""Plain texts with an answer at their end: their tokens are looked up, and are the tokenizer's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from tokenizers import Tokenizer

from arctic_hydra.data.encode import TextEncoder
from arctic_hydra.data.masks import Encoded
from arctic_hydra.data.messages import PlainText
from tests.data.test_words import BACKENDS, TEXTS


def encoder(backend: Tokenizer, **special: int | None) -> TextEncoder:
    tokenizer: Any = SimpleNamespace(
        backend_tokenizer=backend, **{"bos_token_id": None, "eos_token_id": None, **special}
    )
    return TextEncoder(tokenizer)


@pytest.mark.parametrize("name", BACKENDS)
def test_ids_and_spans_are_those_of_the_tokenizer_looked_up_or_not(name: str) -> None:
    backend = BACKENDS[name]
    looked_up, worked_out = encoder(backend), encoder(backend)
    assert looked_up._words is not None
    worked_out._words = None

    @settings(deadline=None, max_examples=300)
    @given(TEXTS, TEXTS)
    @example("Question: 2 + 2?\n", "Answer: 4")
    @example("", " ")
    @example("a", "")
    def check(prompt: str, answer: str) -> None:
        texts = [PlainText(prompt + answer, len(prompt)), PlainText(answer), PlainText(prompt)]
        for text, found, wanted in zip(texts, looked_up.encode(texts), worked_out.encode(texts), strict=True):
            assert isinstance(found, Encoded) and isinstance(wanted, Encoded)
            assert (found.ids.tolist(), found.spans) == (wanted.ids.tolist(), wanted.spans)
            ((first, last),) = found.spans
            assert last == len(found.ids)
            if backend.normalizer is None:
                decoded = backend.decode(found.ids[first:].tolist(), skip_special_tokens=False)
                assert decoded == text.text[text.start :]

    check()


def test_begin_and_end_are_written_once() -> None:
    bos, eos = (BACKENDS["bundled"].token_to_id(token) for token in ("<|im_start|>", "<|im_end|>"))
    plain = encoder(BACKENDS["bundled"], bos_token_id=bos, eos_token_id=eos)
    twice = plain.encode([PlainText("a b"), PlainText("a b<|im_end|>")])
    assert [item.ids.tolist() for item in twice if isinstance(item, Encoded)] == [twice[0].ids.tolist()] * 2
    assert twice[0].ids[-1] == eos and twice[0].ids[0] != bos  # this tokenizer writes none at the start
