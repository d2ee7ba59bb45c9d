"""Whatever a conversation contains: its answers and their stop tokens are supervised, and nothing else."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_hydra.data.encode.chat import ChatEncoder
from arctic_hydra.data.encode.spans import Encoded
from arctic_hydra.data.formats.messages import check_chat
from tests.data.samples import (
    CHATML_TAGS_WITHOUT_STOP,
    CHATML_UNTAGGED,
    COHERE_2,
    GPT_OSS,
    chat,
    make_tokenizer,
)

PIECES = [
    "a",
    " ",
    "\n",
    "user",
    "assistant",
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "Zqc0qZ",
    "é",
    "<",
    "<|end|>",
    "1",
]


CONTENT = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)


FORMS = [  # template, supervised text before an answer, stop tokens
    (CHATML_UNTAGGED, "", "<|im_end|>"),
    (CHATML_TAGS_WITHOUT_STOP, "", "<|im_end|>"),
    (COHERE_2, "", "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    (GPT_OSS, "<|channel|>final<|message|>", "<|end|>"),
]


@cache
def encoder_of(template: str) -> tuple[Any, ChatEncoder]:
    tokenizer = make_tokenizer(template, eos_token="</s>")
    return tokenizer, ChatEncoder(tokenizer)


@settings(deadline=None, max_examples=60)
@given(contents=st.lists(CONTENT, min_size=2, max_size=6), form=st.sampled_from(FORMS))
def test_any_answer_and_its_stop_tokens_are_what_is_trained_on(contents: list[str], form: tuple[str, str, str]) -> None:
    """Answers that repeat a question, hold a header or a stop token, or are empty: each is where it is."""
    template, before, stop = form
    tokenizer, encoder = encoder_of(template)
    contents = contents[: len(contents) // 2 * 2]
    (encoded,) = encoder.encode([check_chat(chat(*contents)["messages"])])
    assert isinstance(encoded, Encoded), encoded
    expected = [before + answer + stop for answer in contents[1::2]]
    if before:
        expected[-1] = expected[-1].removesuffix(stop) + "<|return|>"
    assert [tokenizer.decode(encoded.ids[first:last]) for first, last in encoded.spans] == expected
