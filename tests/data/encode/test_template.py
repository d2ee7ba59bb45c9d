"""Chat templates: orders of roles, forms of tool calls, and the fixed date."""

from __future__ import annotations

from typing import Any

import pytest

from arctic_hydra.assets.build_assets import CHAT_TEMPLATE
from arctic_hydra.data.encode.chat import ChatEncoder
from arctic_hydra.data.encode.spans import Encoded
from arctic_hydra.data.formats.messages import RowProblem, check_chat
from tests.data.encode.samples import CALL, TOOL_CHAT, TOOLS, ask, encode, say, supervised
from tests.data.samples import CHATML_UNTAGGED, DEEPSEEK_TOOLS, GPT_OSS, LLAMA_3, chat, make_tokenizer


def test_the_template_decides_which_orders_of_roles_are_valid() -> None:
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
            assert supervised(template, check_chat(messages).messages) == [f"{answer}<|im_end|>" for answer in answers]
    strict = CHATML_UNTAGGED.replace(
        "in messages %}",
        "in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('in turn!') }}{% endif %}",
        1,
    )
    (problem,) = ChatEncoder(make_tokenizer(strict)).encode([check_chat(rows[0][0])])
    assert isinstance(problem, RowProblem) and problem.reason == "malformed", "so data.malformed=drop leaves it out"
    assert (
        "message 1: role 'user' after 'user', which this chat template may not support (the chat template fails: TemplateError: in turn!)"
        in str(problem)
    )
    for messages, where in (
        ([say("a"), ask("q"), say("b")], "message 0: role 'assistant' at the start"),
        ([{"role": "system", "content": "s"}, say("a")], "message 1: role 'assistant' after 'system'"),
    ):
        (problem,) = ChatEncoder(make_tokenizer(strict)).encode([check_chat(messages)])
        assert isinstance(problem, RowProblem) and problem.reason == "malformed" and where in str(problem)


def test_an_empty_list_of_tool_calls_is_ignored() -> None:
    """The template of gpt-oss treats any message with this key as a tool call, and raises."""
    strict = GPT_OSS.replace("{% if m.tool_calls %}", "{% if 'tool_calls' in m %}")
    messages = check_chat([ask("q"), say("a", tool_calls=[])]).messages
    assert supervised(strict, messages) == ["<|channel|>final<|message|>a<|return|>"]


def without(message: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != key}


@pytest.mark.parametrize("call", [{"content": None}, {}])
def test_a_tool_call_without_content_renders_like_one_with_empty_content(call: dict[str, Any]) -> None:
    """The template of DeepSeek-V3.1 concatenates content that is not null, and a missing key is undefined."""
    template = DEEPSEEK_TOOLS.replace("(m.content or '')", "m.content")
    messages = check_chat([TOOL_CHAT[0], without(CALL, "content") | call, *TOOL_CHAT[2:4]])
    assert supervised(template, messages.messages, TOOLS) == supervised(DEEPSEEK_TOOLS, TOOL_CHAT[:4], TOOLS)


def test_the_date_of_llama_templates_is_fixed() -> None:
    template = "{% if not date_string is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}{{ date_string }}" + LLAMA_3
    tokenizer, encoded = encode(template, chat("hello", "world"))
    assert isinstance(encoded, Encoded)
    assert tokenizer.decode(encoded.ids).startswith("26 Jul 2024")


def test_templates_that_call_strftime_now_give_the_same_tokens_every_day() -> None:
    """The template of gpt-oss writes the date in a macro; with the real date, no run could resume after midnight."""
    template = "{% macro today() %}{{ strftime_now('%Y-%m-%d') }}{% endmacro %}{{ today() }}" + CHATML_UNTAGGED
    tokenizer, encoded = encode(template, chat("hello", "world"))
    assert isinstance(encoded, Encoded)
    assert tokenizer.decode(encoded.ids).startswith("2024-07-26")
