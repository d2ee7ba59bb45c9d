# ruff: noqa: E501 (tables of templates and messages)
"""What is trained on, decoded, is each answer and its stop token: for every template, on every odd chat."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from arctic_hydra.assets.build_assets import CHAT_TEMPLATE
from arctic_hydra.data.encode.chat import Chat, ChatEncoder, TurnChoice
from arctic_hydra.data.encode.encoder import ExampleEncoder
from arctic_hydra.data.encode.spans import Encoded
from arctic_hydra.data.formats.messages import RowProblem, check_chat
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError, FieldError
from tests.data.samples import (
    CHATML_TAGS_WITH_HEADER,
    CHATML_TAGS_WITHOUT_STOP,
    CHATML_UNTAGGED,
    COHERE_2,
    COHERE_2_TAGS,
    DEEPSEEK,
    DEEPSEEK_THINK,
    DEEPSEEK_THINK_TAGS,
    DEEPSEEK_TOOLS,
    DEEPSEEK_V3_TOOLS,
    GEMMA,
    GEMMA_TOOLS,
    GPT_OSS,
    LFM_2,
    LFM_2_CALLS,
    LLAMA_3,
    LLAMA_3_ALWAYS,
    LLAMA_3_TOOLS,
    MISTRAL,
    MISTRAL_TOOLS,
    NO_STOP,
    NUMBERED,
    PHI,
    PHI_TAGS,
    PHI_TOOLS,
    PLAIN,
    PLAIN_TOOLS,
    QWEN_2_5_TAGS,
    QWEN_3,
    QWEN_THINK,
    QWEN_TOOLS,
    chat,
    factory,
    make_llama_2_tokenizer,
    make_tokenizer,
    write_lines,
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
# As the makers of models write them.
MAKERS: dict[str, tuple[str, str, str]] = {
    "cohere 2": (COHERE_2, "", "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    "cohere 2 tags": (COHERE_2_TAGS, "", "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    "deepseek think": (DEEPSEEK_THINK, "", "<｜end▁of▁sentence｜>"),
    "deepseek think tags": (DEEPSEEK_THINK_TAGS, "", "<｜end▁of▁sentence｜>"),
    "gpt oss": (GPT_OSS, "<|channel|>final<|message|>", "<|end|>"),
    "phi tags": (PHI_TAGS, "", "<|end|>"),
    "qwen 2.5 tags": (QWEN_2_5_TAGS, "", "<|im_end|>"),
    "numbered turns": (NUMBERED, "", "<|im_end|>"),
}
# What the last turn ends in, where that is something else.
LAST_STOP = {"gpt oss": "<|return|>", "phi tags": "<|end|>\n</s>"}


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


@pytest.mark.parametrize(
    "template_name", [name for name in TEMPLATES if "deepseek" not in name]
)  # its stop token holds the mark
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


def ask(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def say(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def test_the_template_decides_about_the_order_of_roles() -> None:
    rows: list[tuple[list[dict[str, Any]], list[str]]] = [
        ([ask("q"), ask("r"), say("a")], ["a"]),
        ([say("a"), ask("q"), {"role": "system", "content": "s"}, say("b"), say("c")], ["a", "b", "c"]),
        (
            [ask([{"type": "text", "text": "q"}, {"type": "text", "text": "r"}]), say([{"type": "text", "text": "a"}])],
            ["a"],
        ),
        ([ask("q"), say("a", tool_calls=[])], ["a"]),
    ]
    for template in (CHATML_UNTAGGED, CHAT_TEMPLATE):
        for messages, answers in rows:
            assert results(template, check_chat(messages).messages) == [f"{answer}<|im_end|>" for answer in answers]
    strict = CHATML_UNTAGGED.replace(
        "in messages %}",
        "in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('in turn!') }}{% endif %}",
        1,
    )
    (problem,) = ChatEncoder(make_tokenizer(strict)).encode([check_chat(rows[0][0])])
    assert isinstance(problem, RowProblem) and problem.reason == "malformed", "so data.malformed=drop leaves it out"
    assert (
        "message 1: role 'user' after 'user', which this chat template may not take (the chat template fails: TemplateError: in turn!)"
        in str(problem)
    )
    for messages, where in (
        ([say("a"), ask("q"), say("b")], "message 0: role 'assistant' at the start"),
        ([{"role": "system", "content": "s"}, say("a")], "message 1: role 'assistant' after 'system'"),
    ):
        (problem,) = ChatEncoder(make_tokenizer(strict)).encode([check_chat(messages)])
        assert isinstance(problem, RowProblem) and problem.reason == "malformed" and where in str(problem)


@pytest.mark.parametrize(
    ("template", "before", "stop"),
    [
        (f"{{{{ '<|im_start|>system\\nBe good.<|im_end|>\\n' }}}}{CHATML_UNTAGGED}", "", "<|im_end|>"),  # Qwen 2.5
        (LLAMA_3, "", "<|eot_id|>"),
        (LLAMA_3_ALWAYS, "", "<|eot_id|>"),
        (DEEPSEEK, "", "<｜end▁of▁sentence｜>"),
        (GPT_OSS.replace("{{ '<|start|>system", "{{ '<|start|>system<|message|>I am.<|end|>' }}{{ '<|start|>system"),
         "<|channel|>final<|message|>", "<|end|>"),
    ],
)  # fmt: skip
def test_an_answer_that_comes_first_is_all_of_its_turn(template: str, before: str, stop: str) -> None:
    """ShareGPT's conversations may begin with an answer; what the template writes before it is not the model's."""
    found = results(template, check_chat([say("a"), ask("q"), say("b"), ask("r")]).messages)
    assert found == [f"{before}{answer}{stop}" for answer in ("a", "b")]


def test_an_answer_that_comes_first_and_cannot_be_located_is_refused() -> None:
    headless = CHATML_UNTAGGED.replace("'<|im_start|>' + m", "('' if loop.first else '<|im_start|>') + m")
    (problem,) = ChatEncoder(make_tokenizer(headless)).encode([check_chat([say("a"), ask("q"), say("b")])])
    assert isinstance(problem, RowProblem) and "message 0: the chat template writes the beginning" in str(problem)


@pytest.mark.parametrize("with_tools", [False, True])
def test_the_header_that_a_template_always_writes_last_is_no_part_of_an_answer(with_tools: bool) -> None:
    """As Llama 3's first template did: an answer is asked for after every chat."""
    template = LLAMA_3_TOOLS.replace("{% if add_generation_prompt %}", "").removesuffix("{% endif %}")
    called = TOOL_TEMPLATES["llama 3"][1]
    tools = TOOLS if with_tools else None
    messages = TOOL_CHAT if tools else [ask("q"), say("a"), ask("r"), say("")]
    expected = results(LLAMA_3_TOOLS, check_chat(messages).messages, tools)
    assert results(template, check_chat(messages).messages, tools) == expected
    assert expected[0] == (f"{called}<|eot_id|>" if tools else "a<|eot_id|>")


def test_an_answer_beside_its_call_in_a_turn_of_its_own() -> None:
    """As ShareGPT's gpt followed by function_call."""
    messages = [TOOL_CHAT[0], say("Let me look."), *TOOL_CHAT[1:4]]
    for template, called in ((CHAT_TEMPLATE, TOOL_TEMPLATES["bundled"][1]), (QWEN_TOOLS, TOOL_TEMPLATES["qwen"][1])):
        found = results(template, check_chat(messages).messages, TOOLS)
        assert found == ["Let me look.<|im_end|>", f"{called}<|im_end|>", "Sunny.<|im_end|>"]


def test_a_list_of_no_calls_is_no_call() -> None:
    """gpt-oss's template takes a message with the key for a call, and fails."""
    strict = GPT_OSS.replace("{% if m.tool_calls %}", "{% if 'tool_calls' in m %}")
    messages = check_chat([ask("q"), say("a", tool_calls=[])]).messages
    assert results(strict, messages) == ["<|channel|>final<|message|>a<|return|>"]


def without(message: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != key}


@pytest.mark.parametrize("call", [{"content": None}, {}])
def test_a_call_without_content_is_one_with_an_empty_content(call: dict[str, Any]) -> None:
    """DeepSeek-V3.1's template adds to what is not null, and a key that is not there is undefined."""
    template = DEEPSEEK_TOOLS.replace("(m.content or '')", "m.content")
    messages = check_chat([TOOL_CHAT[0], without(CALL, "content") | call, *TOOL_CHAT[2:4]])
    assert results(template, messages.messages, TOOLS) == results(DEEPSEEK_TOOLS, TOOL_CHAT[:4], TOOLS)


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


QUESTIONS_FIRST = (
    "{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>' }}{% for m in messages if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% for m in messages if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}{{ m.content + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}{% endfor %}"
)
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
    "deepseek v3": (
        DEEPSEEK_V3_TOOLS,
        '<｜tool▁calls▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Rom"}\n```<｜tool▁calls▁end｜>',
        "",
        "<｜end▁of▁sentence｜>",
    ),
    "phi": (PHI_TOOLS, CALLED, "", "<|end|>"),
    "gemma": (GEMMA_TOOLS, CALLED, "", "<end_of_turn>"),
    "plain": (PLAIN_TOOLS, CALLED, "", "</s>"),
    "lfm 2": (LFM_2_CALLS, "<|tool_call_start|>[weather(city=Rom)]<|tool_call_end|>", "", "<|im_end|>"),
}


@pytest.mark.parametrize("name", TOOL_TEMPLATES)
def test_pitfall_07_tool_calls_are_answers(name: str) -> None:
    template, call, before, stop = TOOL_TEMPLATES[name]
    tokenizer = make_tokenizer(template, eos_token="</s>")
    (encoded,) = ChatEncoder(tokenizer).encode([Chat(TOOL_CHAT, TOOLS)])
    assert isinstance(encoded, Encoded), encoded
    texts = [tokenizer.decode(encoded.ids[first:last]) for first, last in encoded.spans]
    assert texts == [call + stop, before + "Sunny." + stop, before + "Sunny." + stop]


def test_chats_with_tools_take_the_template_that_the_tokenizer_has_for_them() -> None:
    """Command R's and Hermes 2 Pro's tokenizers have several, by name."""
    tokenizer = make_tokenizer(CHATML_UNTAGGED, eos_token="</s>")
    tokenizer.chat_template = {"default": CHATML_UNTAGGED, "tool_use": QWEN_TOOLS}
    plain = Chat(chat("Sunny?", "Yes.")["messages"])
    encoded = ExampleEncoder(tokenizer, TurnChoice()).encode([plain, Chat(TOOL_CHAT, TOOLS), plain])
    assert [tokenizer.decode(item.ids) for item in encoded if isinstance(item, Encoded)] == [
        tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        for messages, tools in ((plain.messages, None), (TOOL_CHAT, TOOLS), (plain.messages, None))
    ]


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - {"bundled"}))
def test_b1_templates_that_know_no_tools_refuse_calls_rather_than_lose_them(name: str) -> None:
    _, problem = encode(TEMPLATES[name][0], {"messages": TOOL_CHAT})
    assert isinstance(problem, RowProblem) and problem.reason == "template"
    assert "message 1: the chat template leaves this assistant turn out" in str(problem)


def call(content: str = "", name: str = "weather", **arguments: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"function": {"name": name, "arguments": arguments}}],
    }


def results(template: str, messages: list[Any], tools: Any = None, **choice: Any) -> list[str] | str:
    """Return what is trained on, or what is wrong."""
    tokenizer = make_tokenizer(template, eos_token="</s>")
    (encoded,) = ChatEncoder(tokenizer, TurnChoice(**choice)).encode([Chat(messages, tools)])
    if isinstance(encoded, RowProblem):
        return str(encoded)
    return [tokenizer.decode(encoded.ids[first:last]) for first, last in encoded.spans]


@pytest.mark.parametrize("content", ["", "Let me look."])
@pytest.mark.parametrize(
    "template", [LFM_2, CHATML_TAGS_WITHOUT_STOP.replace("{% for", "{{ tools | tojson }}{% for", 1)]
)
def test_a_call_that_the_template_drops_is_refused_though_the_list_of_tools_names_it(
    template: str, content: str
) -> None:
    """The whole text holds the name; what the model would learn is to say nothing at once."""
    messages = [TOOL_CHAT[0], {**CALL, "content": content}, *TOOL_CHAT[2:]]
    problem = results(template, messages, TOOLS)
    assert (
        "message 1: the chat template leaves this assistant turn out, or changes or moves it; expected the call of 'weather'"
        in problem
    )
    assert "with a template that writes `tool_calls`" in problem


@pytest.mark.parametrize(
    ("template", "arguments", "missing"),
    [
        (QWEN_TOOLS, {"city": "Rom", "days": [1, {"late": True}], "scale": 1e-7, "none": None, "text": 'a\n"b" é \\'}, None),
        (LFM_2_CALLS, {"city": "Rom\n"}, None),
        (QWEN_TOOLS.replace("c.function | tojson", "c.function.name"), {"city": "Rom"}, "the argument 'city' of the call of 'weather'"),
        (QWEN_TOOLS.replace("c.function | tojson", "c.function.name ~ (c.function.arguments.keys() | list)"), {"city": "Rom"}, "the argument 'Rom' of the call of 'weather'"),
        (QWEN_TOOLS.replace("c.function | tojson", "c.function.arguments | tojson"), {"city": "Rom"}, "the call of 'weather'"),
    ],
)  # fmt: skip
def test_arguments_of_calls_are_looked_for_in_their_turn(template: str, arguments: Any, missing: str | None) -> None:
    messages = [{"role": "user", "content": "Is city Rom sunny? Ask weather."}, call(**arguments), *TOOL_CHAT[2:]]
    found = results(template, messages, TOOLS)
    assert len(found) == 3 if missing is None else f"expected {missing}, rendered " in found


def test_a_second_call_that_the_template_drops_is_refused() -> None:
    twice = {**CALL, "tool_calls": CALL["tool_calls"] * 2}
    assert len(results(QWEN_TOOLS, [TOOL_CHAT[0], twice, *TOOL_CHAT[2:]], TOOLS)) == 3
    assert "expected the call of 'weather'" in results(LLAMA_3_TOOLS, [TOOL_CHAT[0], twice, *TOOL_CHAT[2:]], TOOLS)


BYE = {"role": "user", "content": "Bye"}


def test_templates_that_write_a_turn_differently_once_others_follow() -> None:
    """As Qwen3's and gpt-oss's: what comes before and after an answer is no prefix of the whole chat."""
    called = f"<tool_call>\n{CALLED}\n</tool_call><|im_end|>"
    empty = "<think>\n\n</think>\n\n"
    assert results(QWEN_3, TOOL_CHAT[:4], TOOLS) == [called, f"{empty}Sunny.<|im_end|>"]
    talks = [TOOL_CHAT[0], {**CALL, "content": "Let me."}, *TOOL_CHAT[2:]]
    assert results(QWEN_3, talks, TOOLS) == [f"Let me.\n{called}", "Sunny.<|im_end|>", f"{empty}Sunny.<|im_end|>"]
    thinks = [
        {**message, "reasoning_content": "Hm"} if message["role"] == "assistant" else message for message in TOOL_CHAT
    ]
    assert results(QWEN_3, thinks[:4], TOOLS) == [
        f"<think>\nHm\n</think>\n\n{rest}" for rest in (called, "Sunny.<|im_end|>")
    ]
    assert results(QWEN_3, thinks, TOOLS) == [called, "Sunny.<|im_end|>", "<think>\nHm\n</think>\n\nSunny.<|im_end|>"]
    steps = [*thinks[:3], *thinks[1:]]  # two calls, one after the other
    assert results(QWEN_3, steps, TOOLS)[:3] == [called, called, "Sunny.<|im_end|>"]
    start = " to=weather<|channel|>commentary<|message|>"
    final = "<|channel|>final<|message|>Sunny."
    assert results(GPT_OSS, TOOL_CHAT, TOOLS) == [
        start + '{"city": "Rom"}<|call|>',
        f"{final}<|end|>",
        f"{final}<|return|>",
    ]
    thought = "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant"
    assert results(GPT_OSS, thinks, TOOLS)[-1] == f"{thought}{final}<|return|>"


def test_thoughts_in_the_text_of_an_answer() -> None:
    answer = "<think>\nHm\n</think>\n\nSunny."
    messages = chat("Sunny?", answer, "Sunny?", answer)["messages"]
    assert results(QWEN_3, messages[:2]) == [f"{answer}<|im_end|>"]
    problem = results(QWEN_3, messages)
    assert "message 1: the chat template changes the answer (it takes the thoughts out; " in problem
    assert "data.train_on=last trains on that one" in problem
    assert results(QWEN_3, messages, last_only=True) == [f"{answer}<|im_end|>"]
    opened = QWEN_3.replace(
        "'<|im_start|>assistant\n' }}{% endif %}", "'<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    assert results(opened, messages[:2]) == [f"{answer}<|im_end|>"], (
        "the header opens the thought that the answer opens"
    )
    assert "takes the thoughts out" in results(DEEPSEEK_THINK, messages[:2])
    assert results(DEEPSEEK_THINK_TAGS, messages) == [f"{answer}<｜end▁of▁sentence｜>"] * 2


def test_what_opens_the_next_turn_is_no_stop_token() -> None:
    bare = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    for contents in (("a", "b", "c"), ("a", "b", "c", "d")):
        assert "message 1: the chat template writes no stop token after the answer" in results(
            bare, chat(*contents)["messages"]
        )


def test_a_turn_that_cannot_be_located_says_so() -> None:
    numbered_calls = NUMBERED.replace("m['content']", "(m.content or '') ~ (m.tool_calls or '')")
    problem = results(numbered_calls, [*TOOL_CHAT, BYE])
    assert (
        "message 1: the chat template writes the beginning of this conversation differently once more messages follow"
        in problem
    )
    assert (
        "no header or content tells for sure where this tool call begins and ends; pass tokenizer.chat_template=<file> with `{% gen"
        in problem
    )


EVERY = {
    **{name: template for name, (template, *_) in (TEMPLATES | MAKERS).items()},
    **{f"{name}, tools": template for name, (template, *_) in TOOL_TEMPLATES.items()},
    "qwen 3": QWEN_3,
}
CONTENTS = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    st.sampled_from(["Zqc1qZ", " Zqc0qZ\n", "<|im_end|>", "</s>", "{{ 1 }}", "[/INST]", "<thi", "\x0b a \x85", "1s1"]),
)


@functools.cache
def encoder_of(template: str) -> tuple[Any, ChatEncoder]:
    tokenizer = make_tokenizer(template, eos_token="</s>")
    return tokenizer, ChatEncoder(tokenizer)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(EVERY)), st.lists(CONTENTS, min_size=2, max_size=6), st.one_of(st.just(""), CONTENTS))
def test_a_chat_is_encoded_the_same_after_others_of_its_roles(name: str, contents: list[str], system: str) -> None:
    """What the roles tell is kept from one chat to the next; what the contents say may change what the template does."""
    tokenizer, encoder = encoder_of(EVERY[name])
    messages = [{"role": "system", "content": system}] * bool(system) + chat(*contents)["messages"]
    one = Chat(messages[: len(messages) - len(contents) % 2])
    (after,) = encoder.encode([one])
    encoder._finder._outlines.clear()
    (alone,) = encoder.encode([one])
    if isinstance(after, RowProblem) or isinstance(alone, RowProblem):
        assert str(after) == str(alone)
        return
    assert (after.ids.tolist(), after.spans) == (alone.ids.tolist(), alone.spans)
    assert tokenizer.decode(after.ids) == tokenizer.apply_chat_template(one.messages, tokenize=False)


@pytest.mark.parametrize(
    "looks",
    [
        "{% if m.content == messages[0].content %}!{% endif %}{{ m.content }}",
        "{% if '</think>' in '<' + m.content %}!{% endif %}{{ m.content }}",
        "{{ {'x': '!'}[m.content] }}{{ m.content }}",
        "{{ m.content | length }}{{ m.content }}",
        "{{ m.content[5:] }}{{ m.content }}",
        "{{ '!' if loop.changed(m.content) }}{{ m.content }}",
        "{{ '!' if m.content.startswith('x') }}{{ m.content }}",
        "{{ m.content + m.content }}",
        "{% autoescape true %}{{ m.content }}{% endautoescape %}",
    ],
)
def test_answers_of_a_template_that_looks_at_contents(looks: str) -> None:
    template = f"{{% for m in messages %}}[{{{{ m.role }}}}]{looks}<|im_end|>{{% endfor %}}"
    tokenizer, encoder = encoder_of(template + "{% if add_generation_prompt %}[assistant]{% endif %}")
    for contents in (("one", "two", "x", "three"), ("x", "x", "one", " 4\n5 "), ("one", "y", "y", "x")):
        (encoded,) = encoder.encode([Chat(chat(*contents)["messages"])])
        assert isinstance(encoded, Encoded), encoded
        found = [tokenizer.decode(encoded.ids[first:last]) for first, last in encoded.spans]
        assert found == [f"{answer}<|im_end|>" for answer in contents[1::2]]


@pytest.mark.parametrize("changes", ["m.content | replace('x', 'y')", "m.content.split('x')[0]"])
def test_an_answer_that_the_template_changes_is_refused_whatever_came_before_it(changes: str) -> None:
    template = f"{{% for m in messages %}}[{{{{ m.role }}}}]{{{{ {changes} }}}}<|im_end|>{{% endfor %}}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    for answers in (("two", "x"), ("x", "two")):
        encoder = ChatEncoder(make_tokenizer(template, eos_token="</s>"))
        found = [encoder.encode([Chat(chat("one", answer)["messages"])])[0] for answer in answers]
        assert [isinstance(item, RowProblem) for item in found] == [answer == "x" for answer in answers]


BLANK_BETWEEN = "{% for m in messages %}{{ m.content + '</s>' if m.role == 'assistant' else m.content.rstrip() + '\n' }}{% endfor %}"
HEADER_WITH_SPACE = (
    "{% for m in messages %}{{ 'Bot:' + m.content + '</s>' if m.role == 'assistant' else m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Bot: {% endif %}"
)


@pytest.mark.parametrize("template", [BLANK_BETWEEN, HEADER_WITH_SPACE], ids=["blank between", "header with space"])
@pytest.mark.parametrize("contents", [("a\n", "b"), ("a", " b"), ("a", "\nb"), ("Bot:", "\nb")])
def test_white_space_that_an_answer_begins_with_is_its_own(template: str, contents: tuple[str, str]) -> None:
    assert results(template, chat(*contents)["messages"]) == [f"{contents[1]}</s>"]


def test_the_answer_that_its_tokens_do_not_give_is_the_one_that_is_named() -> None:
    tokenizer: Any = make_tokenizer(CHATML_UNTAGGED, eos_token="</s>")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    (problem,) = ChatEncoder(tokenizer).encode([Chat(chat("Hm", "so", "And?", "No")["messages"])])
    assert isinstance(problem, RowProblem) and problem.reason == "tokenizer"
    assert "the tokens of an answer do not decode to its text: expected 'No<|im_end|>', got 'no<|im_end|>'" in str(
        problem
    )


def test_a_generation_block_around_a_question_too_is_judged_by_what_the_question_says() -> None:
    question = "{{ '#' if loop.last else '#' + messages[loop.index].content }}"
    template = (
        "{% for m in messages %}{% if loop.first %}{{ m.content }}!{% elif m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}\n" + question + "{% endgeneration %}{% endif %}{% endfor %}"
    )
    _, encoder = encoder_of(template)
    asked = [Chat(chat("a", "b", question, "d")["messages"]) for question in ("c", "c</s>")]
    fine, problem = encoder.encode(asked)
    assert isinstance(fine, Encoded) and isinstance(problem, RowProblem)
    assert "changes the answer" in str(problem)


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
        (CHATML_UNTAGGED.replace("in messages %}", "in messages | reverse %}", 1), None, "message 2: the chat template leaves this assistant turn out, or changes or moves it; got 'world'"),
        (QUESTIONS_FIRST, None, "message 3: the chat template leaves this user turn out, or changes or moves it; got 'more'"),
        (QUESTIONS_FIRST + "{{ tools | tojson }}", TOOLS, "message 3: the chat template leaves this user turn out, or changes or moves it; got 'more'"),
        (CHATML_UNTAGGED.replace("in messages %}", "in messages[:5] + messages[6:] %}", 1), None, "message 5: the chat template leaves this user turn out, or changes or moves it; got 'or'"),
        (CHATML_UNTAGGED, TOOLS, "the chat template leaves the tools out"),
    ],
)  # fmt: skip
def test_templates_that_drop_or_reorder_turns_are_refused(template: str, tools: Any, message: str) -> None:
    messages = [
        {"role": "system", "content": "rules"},
        *chat("hello", "world", "more", "again", "or", "for")["messages"],
    ]
    (problem,) = ChatEncoder(make_tokenizer(template)).encode([Chat(messages, tools)])
    assert isinstance(problem, RowProblem) and problem.reason == "template"
    assert message in str(problem)


def test_tokens_that_end_a_turn_may_be_named() -> None:
    """As Axolotl's eot_tokens and train_on_eot: GLM ends an answer with what opens the next turn."""
    glm = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    messages = chat("q", "a", "r", "", "s")["messages"]
    assert "writes no stop token after the answer" in results(glm, messages)
    assert results(glm, messages, eot_tokens=("<|user|>",)) == ["a<|user|>", "<|user|>"]
    tagged = glm.replace(
        "m.content }}",
        "'' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + ' .' }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}",
    )
    tokenizer = make_tokenizer(tagged)
    ordinary = tokenizer.decode(tokenizer.encode(" .", add_special_tokens=False)[:1])
    assert results(tagged, messages[:2], eot_tokens=(ordinary,)) == ["a ."]
    assert results(tagged, messages[:2], eot_tokens=(ordinary,), train_on_eot=False) == ["a"]


@pytest.mark.parametrize("template", [CHATML_UNTAGGED, CHAT_TEMPLATE, CHATML_TAGS_WITHOUT_STOP, COHERE_2])
def test_the_tokens_that_end_a_turn_may_be_left_out_of_the_loss(template: str) -> None:
    messages = chat("q", "a b", "r", "", "s", " c ")["messages"]
    assert results(template, messages, train_on_eot=False) == ["a b", "", " c "]
    both = [
        ChatEncoder(make_tokenizer(template), TurnChoice(train_on_eot=on)).encode([Chat(messages)])[0]
        for on in (True, False)
    ]
    assert all(isinstance(item, Encoded) for item in both)
    assert both[0].turn_ends == both[1].turn_ends, "a turn is over after its stop token all the same"  # type: ignore[union-attr]


def test_a_stop_token_that_is_not_trained_on_is_not_warned_of(
    small_chats: Path, caplog: pytest.LogCaptureFixture
) -> None:
    factory(small_chats, train_on_eot=False).process(
        "train", make_tokenizer(CHATML_UNTAGGED, eos_token="</s>"), World()
    )
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_an_end_of_turn_that_is_no_token_is_refused(small_chats: Path) -> None:
    with pytest.raises(
        DataError, match=r"data\.eot_tokens: got '<\|nope\|>', which is \d+ tokens of the tokenizer, expected one"
    ):
        factory(small_chats, eot_tokens=["<|nope|>"]).process("train", make_tokenizer(CHATML_UNTAGGED), World())


def test_thoughts_that_the_template_leaves_out_are_counted_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The template of Llama 3 knows none: the row is trained without them, and that is said, once and not in each row."""
    rows = [{"messages": [ask("q"), say("a", reasoning_content=f"hm {index}")]} for index in range(3)] + [
        chat("q", "a")
    ]
    for template, count in ((LLAMA_3, 3), (QWEN_TOOLS, 0)):
        path = write_lines(tmp_path / "thoughts.jsonl", rows)
        for _ in range(2):  # prepared, then from the cache
            caplog.clear()
            store = factory(path).process(
                "train", make_tokenizer(template, eos_token="<|eot_id|>" if count else "<|im_end|>"), World()
            )
            said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
            assert store.report["mine"]["thoughts_left_out"] == count
            assert [
                f"data.sources.mine: the reasoning (reasoning_content, reasoning or thinking) of {count} supervised turns is dropped by the chat template"
                in text
                for text in said
            ] == [True] * bool(count)


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
        ({"eot_tokens": [""]}, "eot_tokens: got '', expected tokens of the tokenizer"),
        (
            {"mask_inputs": False, "train_on_eot": False},
            "mask_inputs: got false, which trains on every token, together with .* train_on_eot",
        ),
        (
            {"mask_inputs": False, "train_on": "last"},
            "mask_inputs: got false, which trains on every token, together with train_on",
        ),
    ],
)
def test_refused_choices(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        factory(Path("x"), **fields)
