# ruff: noqa: E501 (tables of templates and messages)
"""What is trained on, decoded, is each answer and its stop token: for every template, on every odd chat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.assets.build_assets import CHAT_TEMPLATE
from arctic_hydra.data.masks import Chat, ChatEncoder, Encoded, TurnChoice
from arctic_hydra.data.messages import RowProblem
from arctic_hydra.distributed import World
from arctic_hydra.errors import FieldError
from tests.data.samples import (
    CHATML_TAGS_WITH_HEADER,
    CHATML_TAGS_WITHOUT_STOP,
    CHATML_UNTAGGED,
    DEEPSEEK,
    DEEPSEEK_TOOLS,
    GEMMA,
    GEMMA_TOOLS,
    LLAMA_3,
    LLAMA_3_TOOLS,
    MISTRAL,
    MISTRAL_TOOLS,
    NO_STOP,
    NOT_A_PREFIX,
    PHI,
    PHI_TOOLS,
    PLAIN,
    PLAIN_TOOLS,
    QWEN_THINK,
    QWEN_TOOLS,
    chat,
    factory,
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
TRIMMING = ("llama 3", "gemma")
TEMPLATES: dict[str, tuple[str, str, str]] = {
    # template, what stands before the answer and is generated too, stop token
    "bundled": (CHAT_TEMPLATE, "", "<|im_end|>"),
    "chatml": (CHATML_UNTAGGED, "", "<|im_end|>"),
    "tags without stop": (CHATML_TAGS_WITHOUT_STOP, "", "<|im_end|>"),
    "tags with header": (CHATML_TAGS_WITH_HEADER, "", "<|im_end|>"),
    "llama 3": (LLAMA_3, "", "<|eot_id|>"),
    "mistral": (MISTRAL, " ", "</s>"),
    "qwen think": (QWEN_THINK, "", "<|im_end|>"),
    "gemma": (GEMMA, "", "<end_of_turn>"),
    "phi": (PHI, "", "<|end|>"),
    "deepseek": (DEEPSEEK, "", "<｜end▁of▁sentence｜>"),
    "plain": (PLAIN, "", "</s>"),
}


def encode(template: str, row: dict[str, Any], **options: Any) -> tuple[Any, Encoded | RowProblem]:
    tokenizer = make_tokenizer(template, **{"eos_token": "</s>"} | options)
    return tokenizer, ChatEncoder(tokenizer).encode([Chat(row["messages"])])[0]


@pytest.mark.parametrize("chat_name", CHATS)
@pytest.mark.parametrize("template_name", TEMPLATES)
def test_pitfall_07_b2_w4_supervised_tokens_are_answer_and_stop(template_name: str, chat_name: str) -> None:
    """ArcticTraining looks for the answer's text from the start of the chat, so repeated or short ones are masked wrongly."""
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


@pytest.mark.parametrize("template_name", sorted(TEMPLATES.keys() - {"deepseek"}))  # its stop token holds the mark
def test_pitfall_07_tokenizers_that_write_spaces_as_a_mark(template_name: str) -> None:
    template, before, stop = TEMPLATES[template_name]
    tokenizer = make_llama_2_tokenizer(template)
    for contents in CHATS.values():
        (encoded,) = ChatEncoder(tokenizer).encode([Chat(chat(*contents)["messages"])])
        assert isinstance(encoded, Encoded), encoded
        for (first, last), answer in zip(encoded.spans, contents[1::2], strict=True):
            got = tokenizer.decode(encoded.ids[first:last]).removeprefix("<think>\n\n</think>\n\n")
            expected = before + (answer.strip() if template_name in TRIMMING else answer) + stop
            assert got.lstrip(" ") == expected.lstrip(" "), "its decoder drops the space at the start of a text"


@pytest.mark.parametrize("template_name", TEMPLATES)
def test_pitfall_10_exactly_one_bos(template_name: str) -> None:
    for adds_bos in (False, True):
        template = TEMPLATES[template_name][0]
        tokenizer, encoded = encode(template, chat("hello", "world"), adds_bos=adds_bos)
        assert isinstance(encoded, Encoded)
        expected = 1 if adds_bos or "bos_token" in template else 0
        assert (encoded.ids == tokenizer.bos_token_id).sum() == expected
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
        ("{% for %}", "the chat template fails: TemplateSyntaxError: "),
        (
            "{{ raise_exception('no such role') }}",
            "the chat template fails: TemplateError: no such role; correct it, or pass tokenizer.chat_template=<file>",
        ),
    ],
)
def test_templates_that_cannot_be_masked_say_why(template: str, message: str) -> None:
    _, problem = encode(template, chat("HOW?", "Fine", "AND?", "Fine"))
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


def test_a_template_that_writes_the_date_gives_the_same_tokens_on_every_day() -> None:
    """As gpt-oss's does, in a macro: a run could not be resumed after midnight."""
    template = "{% macro today() %}{{ strftime_now('%Y-%m-%d') }}{% endmacro %}{{ today() }}" + CHATML_UNTAGGED
    tokenizer, encoded = encode(template, chat("hello", "world"))
    assert isinstance(encoded, Encoded)
    assert tokenizer.decode(encoded.ids).startswith("2024-07-26")


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rom"}}}],
}
TOOL_CHAT = [
    {"role": "user", "content": "Sunny?"},
    CALL,
    {"role": "tool", "content": '{"sky": "blue"}'},
    {"role": "assistant", "content": "Sunny."},
    {"role": "user", "content": "Sunny?"},
    {"role": "assistant", "content": "Sunny."},
]


CALLED = '{"name": "weather", "arguments": {"city": "Rom"}}'
TOOL_TEMPLATES: dict[str, tuple[str, str, str, str]] = {
    # template, the call as it is written, what stands before an answer and is generated too, stop token
    "bundled": (CHAT_TEMPLATE, '<tool_call>{"function": ' + CALLED + "}</tool_call>", "", "<|im_end|>"),
    "qwen": (QWEN_TOOLS, f"\n<tool_call>\n{CALLED}\n</tool_call>", "", "<|im_end|>"),
    "llama 3": (LLAMA_3_TOOLS, CALLED, "", "<|eot_id|>"),
    "mistral": (MISTRAL_TOOLS, "[TOOL_CALLS] " + CALLED, " ", "</s>"),
    "deepseek": (DEEPSEEK_TOOLS, f"```json\n{CALLED}\n```", "", "<｜end▁of▁sentence｜>"),
    "phi": (PHI_TOOLS, CALLED, "", "<|end|>"),
    "gemma": (GEMMA_TOOLS, CALLED, "", "<end_of_turn>"),
    "plain": (PLAIN_TOOLS, CALLED, "", "</s>"),
}


@pytest.mark.parametrize("name", TOOL_TEMPLATES)
def test_pitfall_07_tool_calls_are_answers(name: str) -> None:
    template, call, before, stop = TOOL_TEMPLATES[name]
    tokenizer = make_tokenizer(template, eos_token="</s>")
    (encoded,) = ChatEncoder(tokenizer).encode([Chat(TOOL_CHAT, TOOLS)])
    assert isinstance(encoded, Encoded), encoded
    texts = [tokenizer.decode(encoded.ids[first:last]) for first, last in encoded.spans]
    assert texts == [call + stop, before + "Sunny." + stop, before + "Sunny." + stop]


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - {"bundled"}))
def test_b1_templates_that_know_no_tools_refuse_calls_rather_than_lose_them(name: str) -> None:
    _, problem = encode(TEMPLATES[name][0], {"messages": TOOL_CHAT})
    assert isinstance(problem, RowProblem) and problem.reason == "template"
    assert "message 1: the chat template leaves this assistant turn out" in str(problem)


def trained(choice: TurnChoice, chat: Chat, template: str = CHATML_UNTAGGED) -> list[str]:
    tokenizer = make_tokenizer(template)
    (encoded,) = ChatEncoder(tokenizer, choice).encode([chat])
    assert isinstance(encoded, Encoded), encoded
    return [tokenizer.decode(encoded.ids[first:last]) for first, last in encoded.spans]


@pytest.mark.parametrize(
    "template", [CHATML_UNTAGGED, CHAT_TEMPLATE, CHATML_TAGS_WITH_HEADER], ids=["no tags", "tags", "wide tags"]
)
def test_turns_are_chosen_by_place_role_and_weight(template: str) -> None:
    messages = chat("q1", "a1", "q2", "a2", "q3", "a3")["messages"]
    ends = [f"a{number}<|im_end|>" for number in (1, 2, 3)]
    assert trained(TurnChoice(), Chat(messages), template) == ends
    assert trained(TurnChoice(last_only=True), Chat(messages), template) == ends[-1:]
    assert trained(TurnChoice(), Chat(messages, weights=[1, 0, 1, 1, 1, 0]), template) == ends[1:2]
    assert trained(TurnChoice(last_only=True), Chat(messages, weights=[1, 1, 1, 1, 1, 0]), template) == []
    both = trained(TurnChoice(("user", "assistant")), Chat(messages), template)
    assert both == [f"{who}{number}<|im_end|>" for number in (1, 2, 3) for who in "qa"]


def test_empty_thoughts_may_be_left_out() -> None:
    messages = chat("q", "a")["messages"]
    assert trained(TurnChoice(), Chat(messages), QWEN_THINK) == ["<think>\n\n</think>\n\na<|im_end|>"]
    assert trained(TurnChoice(ignore_empty_think=True), Chat(messages), QWEN_THINK) == ["a<|im_end|>"]
    full = [messages[0], {"role": "assistant", "content": "a", "reasoning_content": "hm"}]
    thought = ["<think>\nhm\n</think>\n\na<|im_end|>"]
    assert trained(TurnChoice(ignore_empty_think=True), Chat(full), QWEN_TOOLS) == thought


@pytest.mark.parametrize(
    ("template", "tools", "message"),
    [
        (CHATML_UNTAGGED.replace("in messages %}", "in messages if m.role != 'system' %}", 1), None, "message 0: the chat template leaves this system turn out"),
        (CHATML_UNTAGGED.replace("in messages %}", "in messages[-2:] %}", 1), None, "message 0: the chat template leaves this system turn out"),
        (CHATML_UNTAGGED.replace("in messages %}", "in messages | reverse %}", 1), None, "message 3: the chat template leaves this user turn out, or changes or moves it; got 'more'"),
        (CHATML_UNTAGGED, TOOLS, "the chat template leaves the tools out"),
    ],
)  # fmt: skip
def test_templates_that_drop_or_reorder_turns_are_refused(template: str, tools: Any, message: str) -> None:
    messages = [{"role": "system", "content": "rules"}, *chat("hello", "world", "more", "again")["messages"]]
    (problem,) = ChatEncoder(make_tokenizer(template)).encode([Chat(messages, tools)])
    assert isinstance(problem, RowProblem) and problem.reason == "template"
    assert message in str(problem)


@pytest.mark.parametrize(("eos", "warned"), [("<|im_end|>", False), ("</s>", True)])
def test_a_stop_token_that_generation_does_not_know_is_warned_of(
    eos: str, warned: bool, small_chats: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = make_tokenizer(CHATML_UNTAGGED, eos_token=eos)
    for _ in ("built", "from the cache"):
        caplog.clear()
        factory(small_chats).process("train", tokenizer, World())
        said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert [
            ("answers are trained to end in '<|im_end|>', but tokenizer.eos_token is '</s>'" in text) for text in said
        ] == [True] * warned


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_roles": ["gpt"]}, "train_roles: got 'gpt', expected one or more of system"),
        ({"train_roles": []}, "train_roles: got none"),
        (
            {"mask_inputs": False, "train_on": "last"},
            "mask_inputs: got false, which trains on every token, beside train_on",
        ),
    ],
)
def test_refused_choices(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        factory(Path("x"), **fields)
