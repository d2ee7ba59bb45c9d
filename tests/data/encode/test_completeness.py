# ruff: noqa: E501 (templates and messages)
"""Templates that drop, move or change a turn or a tool call are refused."""

from __future__ import annotations

from typing import Any

import pytest

from arctic_hydra.data.encode.chat import ChatEncoder
from arctic_hydra.data.formats.messages import Chat, RowProblem
from tests.data.encode.samples import CALL, TEMPLATES, TOOL_CHAT, TOOLS, encode, supervised
from tests.data.samples import (
    CHATML_TAGS_WITHOUT_STOP,
    CHATML_UNTAGGED,
    LFM_2,
    LFM_2_CALLS,
    LLAMA_3_TOOLS,
    QWEN_TOOLS,
    chat,
    make_tokenizer,
)

QUESTIONS_FIRST = (
    "{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>' }}{% for m in messages if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% for m in messages if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}{{ m.content + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}{% endfor %}"
)


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - {"bundled"}))
def test_tool_calls_are_refused_by_templates_that_ignore_them(name: str) -> None:
    _, problem = encode(TEMPLATES[name][0], {"messages": TOOL_CHAT})
    assert isinstance(problem, RowProblem) and problem.reason == "template"
    assert "message 1: the chat template drops, changes or moves this assistant turn" in str(problem)


def call(content: str = "", name: str = "weather", **arguments: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"function": {"name": name, "arguments": arguments}}],
    }


@pytest.mark.parametrize("content", ["", "Let me look."])
@pytest.mark.parametrize(
    "template", [LFM_2, CHATML_TAGS_WITHOUT_STOP.replace("{% for", "{{ tools | tojson }}{% for", 1)]
)
def test_a_dropped_tool_call_is_refused_even_if_the_tool_list_names_it(template: str, content: str) -> None:
    """The rendered chat contains the name, but the model would learn to generate an empty answer."""
    messages = [TOOL_CHAT[0], {**CALL, "content": content}, *TOOL_CHAT[2:]]
    problem = supervised(template, messages, TOOLS)
    assert (
        "message 1: the chat template drops, changes or moves this assistant turn; expected the call of 'weather'"
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
def test_arguments_of_tool_calls_must_be_in_their_turn(template: str, arguments: Any, missing: str | None) -> None:
    messages = [{"role": "user", "content": "Is city Rom sunny? Ask weather."}, call(**arguments), *TOOL_CHAT[2:]]
    found = supervised(template, messages, TOOLS)
    assert len(found) == 3 if missing is None else f"expected {missing}, rendered " in found


def test_a_dropped_second_tool_call_is_refused() -> None:
    twice = {**CALL, "tool_calls": CALL["tool_calls"] * 2}
    assert len(supervised(QWEN_TOOLS, [TOOL_CHAT[0], twice, *TOOL_CHAT[2:]], TOOLS)) == 3
    assert "expected the call of 'weather'" in supervised(LLAMA_3_TOOLS, [TOOL_CHAT[0], twice, *TOOL_CHAT[2:]], TOOLS)


@pytest.mark.parametrize(
    ("template", "tools", "message"),
    [
        (CHATML_UNTAGGED.replace("in messages %}", "in messages if m.role != 'system' %}", 1), None, "message 0: the chat template drops, changes or moves this system turn"),
        (CHATML_UNTAGGED.replace("in messages %}", "in messages[-2:] %}", 1), None, "message 0: the chat template drops, changes or moves this system turn"),
        (CHATML_UNTAGGED.replace("in messages %}", "in messages | reverse %}", 1), None, "message 2: the chat template drops, changes or moves this assistant turn; got 'world'"),
        (QUESTIONS_FIRST, None, "message 3: the chat template drops, changes or moves this user turn; got 'more'"),
        (QUESTIONS_FIRST + "{{ tools | tojson }}", TOOLS, "message 3: the chat template drops, changes or moves this user turn; got 'more'"),
        (CHATML_UNTAGGED.replace("in messages %}", "in messages[:5] + messages[6:] %}", 1), None, "message 5: the chat template drops, changes or moves this user turn; got 'or'"),
        (CHATML_UNTAGGED, TOOLS, "the chat template ignores the tools"),
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
