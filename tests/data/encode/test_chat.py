"""Chats to token ids: for every template and every unusual chat, exactly the answers and their stop tokens are supervised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from arctic_hydra.assets.build_assets import CHAT_TEMPLATE
from arctic_hydra.data.encode.chat import ChatEncoder, TurnChoice
from arctic_hydra.data.encode.spans import Encoded
from arctic_hydra.data.formats.messages import Chat, RowProblem, check_chat
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError
from tests.data.encode.samples import CHATS, TEMPLATES, TRIMMING, encode, encoder_of, supervised
from tests.data.samples import (
    CHATML_TAGS_WITH_HEADER,
    CHATML_TAGS_WITHOUT_STOP,
    CHATML_UNTAGGED,
    COHERE_2,
    GPT_OSS,
    LLAMA_3,
    MISTRAL,
    QWEN_THINK,
    QWEN_TOOLS,
    chat,
    factory,
    make_llama_2_tokenizer,
    make_tokenizer,
)


@pytest.mark.parametrize("chat_name", CHATS)
@pytest.mark.parametrize("template_name", TEMPLATES)
def test_supervised_tokens_are_each_answer_and_its_stop_token(template_name: str, chat_name: str) -> None:
    """ArcticTraining searches for each answer from the start of the chat, so it masks repeated and short answers wrongly."""
    template, before, stop = TEMPLATES[template_name]
    row = chat(*CHATS[chat_name])
    tokenizer, encoded = encode(template, row)
    assert isinstance(encoded, Encoded), encoded
    answers = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
    expected = [before + (answer.strip() if template_name in TRIMMING else answer) + stop for answer in answers]
    if template_name == "qwen think":
        expected[-1] = "<think>\n\n</think>\n\n" + expected[-1]
    assert [tokenizer.decode(encoded.ids[first:last]) for first, last in encoded.spans] == expected
    whole = tokenizer.apply_chat_template(row["messages"], tokenize=False)
    assert tokenizer.decode(encoded.ids) == whole


@pytest.mark.parametrize(
    "template_name", [name for name in TEMPLATES if "deepseek" not in name]
)  # its stop token contains the character for spaces
def test_sentencepiece_tokenizers_supervise_each_answer_and_its_stop_token(template_name: str) -> None:
    template, before, stop = TEMPLATES[template_name]
    tokenizer = make_llama_2_tokenizer(template)
    for contents in CHATS.values():
        (encoded,) = ChatEncoder(tokenizer).encode([Chat(chat(*contents)["messages"])])
        assert isinstance(encoded, Encoded), encoded
        for (first, last), answer in zip(encoded.spans, contents[1::2], strict=True):
            got = tokenizer.decode(encoded.ids[first:last]).removeprefix("<think>\n\n</think>\n\n")
            expected = before + (answer.strip() if template_name in TRIMMING else answer) + stop
            assert got.lstrip(" ") == expected.lstrip(" "), "its decoder drops the space at the start of a text"


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


@settings(deadline=None, max_examples=60)
@given(contents=st.lists(CONTENT, min_size=2, max_size=6), form=st.sampled_from(FORMS))
def test_any_answer_and_its_stop_tokens_are_supervised(contents: list[str], form: tuple[str, str, str]) -> None:
    """Answers that repeat a question, contain a header or a stop token, or are empty."""
    template, before, stop = form
    tokenizer, encoder = encoder_of(template)
    contents = contents[: len(contents) // 2 * 2]
    (encoded,) = encoder.encode([check_chat(chat(*contents)["messages"])])
    assert isinstance(encoded, Encoded), encoded
    expected = [before + answer + stop for answer in contents[1::2]]
    if before:
        expected[-1] = expected[-1].removesuffix(stop) + "<|return|>"
    assert [tokenizer.decode(encoded.ids[first:last]) for first, last in encoded.spans] == expected


@pytest.mark.parametrize("template_name", TEMPLATES)
def test_exactly_one_bos(template_name: str) -> None:
    for adds_bos in (False, True):
        template = TEMPLATES[template_name][0]
        tokenizer, encoded = encode(template, chat("hello", "world"), adds_bos=adds_bos)
        assert isinstance(encoded, Encoded)
        expected = 1 if adds_bos or "bos_token" in template else 0
        assert (encoded.ids == tokenizer.bos_token_id).sum() == expected
        assert tokenizer.decode(encoded.ids[slice(*encoded.spans[0])]).strip().startswith(("world", "<think>"))


def test_a_bos_written_twice_by_the_template_is_kept_once() -> None:
    tokenizer, encoded = encode("{{ bos_token }}" + LLAMA_3, chat("hello", "world"), adds_bos=True)
    assert isinstance(encoded, Encoded)
    assert encoded.ids[0] == tokenizer.bos_token_id != encoded.ids[1]
    assert tokenizer.decode(encoded.ids[slice(*encoded.spans[0])]) == "world<|eot_id|>"


def test_a_stop_token_that_is_also_the_pad_token_is_supervised() -> None:
    tokenizer, encoded = encode(MISTRAL, chat("hello", "world"), pad_token="</s>")
    assert isinstance(encoded, Encoded)
    last = encoded.spans[0][1] - 1
    assert encoded.ids[last] == tokenizer.eos_token_id == tokenizer.pad_token_id


def test_system_and_tool_turns_keep_their_order() -> None:
    messages = [
        {"role": "system", "content": "Use the tool."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}]},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "Sunny."},
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "Sunny."},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    tokenizer = make_tokenizer(CHAT_TEMPLATE)
    encoded = ChatEncoder(tokenizer).encode([Chat(messages, tools), Chat(messages[:3])])
    assert all(isinstance(item, Encoded) for item in encoded), encoded
    first = encoded[0]
    assert isinstance(first, Encoded)
    assert tokenizer.decode(first.ids) == tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    texts = [tokenizer.decode(first.ids[a:b]) for a, b in first.spans]
    assert texts[0].startswith("<tool_call>") and texts[0].endswith("</tool_call><|im_end|>")
    assert texts[1:] == ["Sunny.<|im_end|>", "Sunny.<|im_end|>"]


def test_one_failing_chat_does_not_hide_the_others() -> None:
    template = "{% if messages[0]['content'] == 'bad' %}{{ raise_exception('bad') }}{% endif %}" + CHATML_UNTAGGED
    chats = [Chat(chat(text, "answer")["messages"]) for text in ("good", "bad", "good")]
    results = ChatEncoder(make_tokenizer(template)).encode(chats)
    assert [isinstance(item, RowProblem) for item in results] == [False, True, False]


def test_the_error_shows_the_answer_that_its_tokens_do_not_decode_to() -> None:
    tokenizer: Any = make_tokenizer(CHATML_UNTAGGED, eos_token="</s>")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    (problem,) = ChatEncoder(tokenizer).encode([Chat(chat("Hm", "so", "And?", "No")["messages"])])
    assert isinstance(problem, RowProblem) and problem.reason == "tokenizer"
    assert "the tokens of an answer do not decode to its text: expected 'No<|im_end|>', got 'no<|im_end|>'" in str(
        problem
    )


def trained(choice: TurnChoice, chat: Chat, template: str = CHATML_UNTAGGED) -> list[str]:
    tokenizer = make_tokenizer(template)
    (encoded,) = ChatEncoder(tokenizer, choice).encode([chat])
    assert isinstance(encoded, Encoded), encoded
    return [tokenizer.decode(encoded.ids[first:last]) for first, last in encoded.spans]


@pytest.mark.parametrize(
    "template", [CHATML_UNTAGGED, CHAT_TEMPLATE, CHATML_TAGS_WITH_HEADER], ids=["no tags", "tags", "wide tags"]
)
def test_turns_are_chosen_by_position_role_and_weight(template: str) -> None:
    messages = chat("q1", "a1", "q2", "a2", "q3", "a3")["messages"]
    ends = [f"a{number}<|im_end|>" for number in (1, 2, 3)]
    assert trained(TurnChoice(), Chat(messages), template) == ends
    assert trained(TurnChoice(last_only=True), Chat(messages), template) == ends[-1:]
    assert trained(TurnChoice(), Chat(messages, weights=[1, 0, 1, 1, 1, 0]), template) == ends[1:2]
    assert trained(TurnChoice(last_only=True), Chat(messages, weights=[1, 1, 1, 1, 1, 0]), template) == []
    both = trained(TurnChoice(("user", "assistant")), Chat(messages), template)
    assert both == [f"{who}{number}<|im_end|>" for number in (1, 2, 3) for who in "qa"]


def test_empty_thinking_blocks_can_be_excluded_from_the_loss() -> None:
    messages = chat("q", "a")["messages"]
    assert trained(TurnChoice(), Chat(messages), QWEN_THINK) == ["<think>\n\n</think>\n\na<|im_end|>"]
    assert trained(TurnChoice(ignore_empty_think=True), Chat(messages), QWEN_THINK) == ["a<|im_end|>"]
    full = [messages[0], {"role": "assistant", "content": "a", "reasoning_content": "hm"}]
    thought = ["<think>\nhm\n</think>\n\na<|im_end|>"]
    assert trained(TurnChoice(ignore_empty_think=True), Chat(full), QWEN_TOOLS) == thought


@pytest.mark.parametrize("template", [CHATML_UNTAGGED, CHAT_TEMPLATE, CHATML_TAGS_WITHOUT_STOP, COHERE_2])
def test_stop_tokens_can_be_excluded_from_the_loss(template: str) -> None:
    messages = chat("q", "a b", "r", "", "s", " c ")["messages"]
    assert supervised(template, messages, train_on_eot=False) == ["a b", "", " c "]
    both = [
        ChatEncoder(make_tokenizer(template), TurnChoice(train_on_eot=on)).encode([Chat(messages)])[0]
        for on in (True, False)
    ]
    assert all(isinstance(item, Encoded) for item in both)
    assert both[0].turn_ends == both[1].turn_ends, "a turn is over after its stop token all the same"  # type: ignore[union-attr]


def test_an_eot_token_that_the_tokenizer_splits_is_refused(small_chats: Path) -> None:
    with pytest.raises(
        DataError, match=r"data\.eot_tokens: got '<\|nope\|>', which the tokenizer splits into \d+ tokens, expected one"
    ):
        factory(small_chats, eot_tokens=["<|nope|>"]).process("train", make_tokenizer(CHATML_UNTAGGED), World())
