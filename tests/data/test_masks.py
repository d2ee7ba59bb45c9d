"""What is trained on, decoded, is each answer and its stop token: for every template, on every odd chat."""

from __future__ import annotations

from typing import Any

import pytest

from arctic_hydra.assets.build_assets import CHAT_TEMPLATE
from arctic_hydra.data.masks import Chat, ChatEncoder, Encoded
from arctic_hydra.data.messages import RowProblem
from tests.data.samples import (
    CHATML_TAGS_WITH_HEADER,
    CHATML_TAGS_WITHOUT_STOP,
    CHATML_UNTAGGED,
    LLAMA_3,
    MISTRAL,
    NO_STOP,
    NOT_A_PREFIX,
    QWEN_THINK,
    chat,
    make_llama_2_tokenizer,
    make_tokenizer,
)

CHATS = {
    "plain": ("What is 1 + 1?", "It is 2."),
    "answer repeats the question": ("yes", "yes", "yes", "yes"),
    "answer stands in the system text": ("Say ok", "ok", "ok?", "ok"),
    "one letter": ("a", "a", "b", "a"),
    "empty": ("Say nothing", "", "Now speak", "I did"),
    "spaces": ("Hm", "   ", "Go", "  padded  "),
    "newlines": ("Hm", "\n\nStarts and ends\n\n", "Go", "\n"),
    "emoji": ("😀?", "😀👩‍👩‍👧 fine 🎉", "🎉", "🎉"),
    "chinese": ("你好", "你好，世界。", "再见", "再见"),
    "the role's name": ("assistant", "assistant\n", "user", "user"),
    "digits": ("1234", "1234567 #### 12"),
}
TEMPLATES: dict[str, tuple[str, str, str]] = {
    # template, what stands before the answer and is generated too, stop token
    "bundled": (CHAT_TEMPLATE, "", "<|im_end|>"),
    "chatml": (CHATML_UNTAGGED, "", "<|im_end|>"),
    "tags without stop": (CHATML_TAGS_WITHOUT_STOP, "", "<|im_end|>"),
    "tags with header": (CHATML_TAGS_WITH_HEADER, "", "<|im_end|>"),
    "llama 3": (LLAMA_3, "", "<|eot_id|>"),
    "mistral": (MISTRAL, " ", "</s>"),
    "qwen think": (QWEN_THINK, "", "<|im_end|>"),
}


def encode(template: str, row: dict[str, Any], **options: Any) -> tuple[Any, Encoded | RowProblem]:
    tokenizer = make_tokenizer(template, **{"eos_token": "</s>"} | options)
    return tokenizer, ChatEncoder(tokenizer).encode([Chat(row["messages"])])[0]


@pytest.mark.parametrize("chat_name", CHATS)
@pytest.mark.parametrize("template_name", TEMPLATES)
def test_pitfall_07_supervised_tokens_are_answer_and_stop(template_name: str, chat_name: str) -> None:
    template, before, stop = TEMPLATES[template_name]
    row = chat(*CHATS[chat_name])
    tokenizer, encoded = encode(template, row)
    assert isinstance(encoded, Encoded), encoded
    answers = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
    expected = [before + (answer.strip() if template_name == "llama 3" else answer) + stop for answer in answers]
    if template_name == "qwen think":
        expected[-1] = "<think>\n\n</think>\n\n" + expected[-1]
    assert [tokenizer.decode(encoded.ids[first:last]) for first, last in encoded.spans] == expected
    whole = tokenizer.apply_chat_template(row["messages"], tokenize=False)
    assert tokenizer.decode(encoded.ids) == whole


@pytest.mark.parametrize("template_name", TEMPLATES)
def test_pitfall_07_tokenizers_that_write_spaces_as_a_mark(template_name: str) -> None:
    template, before, stop = TEMPLATES[template_name]
    tokenizer = make_llama_2_tokenizer(template)
    for contents in CHATS.values():
        (encoded,) = ChatEncoder(tokenizer).encode([Chat(chat(*contents)["messages"])])
        assert isinstance(encoded, Encoded), encoded
        for (first, last), answer in zip(encoded.spans, contents[1::2], strict=True):
            got = tokenizer.decode(encoded.ids[first:last]).removeprefix("<think>\n\n</think>\n\n")
            expected = before + (answer.strip() if template_name == "llama 3" else answer) + stop
            assert got.lstrip(" ") == expected.lstrip(" "), "its decoder drops the space at the start of a text"


@pytest.mark.parametrize("template_name", TEMPLATES)
def test_pitfall_10_exactly_one_bos(template_name: str) -> None:
    for adds_bos in (False, True):
        template = TEMPLATES[template_name][0]
        tokenizer, encoded = encode(template, chat("hello", "world"), adds_bos=adds_bos)
        assert isinstance(encoded, Encoded)
        expected = 1 if adds_bos or "bos_token" in template else 0
        assert encoded.ids.count(tokenizer.bos_token_id) == expected
        assert tokenizer.decode(encoded.ids[slice(*encoded.spans[0])]).strip().startswith(("world", "<think>"))


def test_pitfall_10_a_template_that_writes_bos_twice_keeps_one() -> None:
    tokenizer, encoded = encode("{{ bos_token }}" + LLAMA_3, chat("hello", "world"), adds_bos=True)
    assert isinstance(encoded, Encoded)
    assert encoded.ids[0] == tokenizer.bos_token_id != encoded.ids[1]
    assert tokenizer.decode(encoded.ids[slice(*encoded.spans[0])]) == "world<|eot_id|>"


def test_pitfall_23_pad_equal_to_eos_stays_supervised() -> None:
    tokenizer, encoded = encode(MISTRAL, chat("hello", "world"), pad_token="</s>")
    assert isinstance(encoded, Encoded)
    last = encoded.spans[0][1] - 1
    assert encoded.ids[last] == tokenizer.eos_token_id == tokenizer.pad_token_id


def test_pitfall_09_system_and_tool_turns_keep_their_order() -> None:
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


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (NOT_A_PREFIX, "writes the beginning of this conversation differently once more messages follow"),
        (NO_STOP, "writes no stop token after the answer"),
        (
            CHATML_UNTAGGED.replace("m['content']", "m['content'] | upper"),
            "changes the answer; expected 'Fine', rendered 'FINE'",
        ),
        (
            CHAT_TEMPLATE.replace("'assistant' %}{% gen", "'assistant' and loop.last %}{% gen"),
            "marks 1 generation blocks for 2",
        ),
        ("{{ raise_exception('no such role') }}", "the chat template fails: TemplateError: no such role"),
    ],
)
def test_templates_that_cannot_be_masked_say_why(template: str, message: str) -> None:
    _, problem = encode(template, chat("How?", "Fine", "And?", "Fine"))
    assert isinstance(problem, RowProblem)
    assert message in str(problem)


def test_one_failing_chat_does_not_hide_the_others() -> None:
    template = "{% if messages[0]['content'] == 'bad' %}{{ raise_exception('bad') }}{% endif %}" + CHATML_UNTAGGED
    chats = [Chat(chat(text, "answer")["messages"]) for text in ("good", "bad", "good")]
    results = ChatEncoder(make_tokenizer(template)).encode(chats)
    assert [isinstance(item, RowProblem) for item in results] == [False, True, False]


def test_llama_date_is_fixed() -> None:
    template = "{% if not date_string is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}{{ date_string }}" + LLAMA_3
    tokenizer, encoded = encode(template, chat("hello", "world"))
    assert isinstance(encoded, Encoded)
    assert tokenizer.decode(encoded.ids).startswith("26 Jul 2024")
