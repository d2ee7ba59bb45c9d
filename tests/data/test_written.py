"""Chats that are written without running their template are those that it would write; one that looks is always run."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils import chat_template_utils

from arctic_hydra.data.masks import Chat, ChatEncoder, TurnChoice
from arctic_hydra.data.messages import RowProblem
from arctic_hydra.data.turns import Turn
from arctic_hydra.data.written import WrittenChats
from tests.data.samples import CHATML_UNTAGGED, LLAMA_3, QWEN_3, chat, make_tokenizer
from tests.data.test_masks import CHATS, MAKERS, TEMPLATES, TOOL_TEMPLATES

EVERY = {
    **{name: template for name, (template, *_) in (TEMPLATES | MAKERS).items()},
    **{f"{name}, tools": template for name, (template, *_) in TOOL_TEMPLATES.items()},
    "qwen 3": QWEN_3,
}


@functools.cache
def encoder_of(template: str) -> ChatEncoder:
    return ChatEncoder(make_tokenizer(template, eos_token="</s>"))


def both_ways(encoder: ChatEncoder, *contents: str, system: str = "") -> tuple[Any, Any]:
    """Return text and turns of a chat as they are written, and as running the template gives them."""
    messages = [{"role": "system", "content": system}] * bool(system) + chat(*contents)["messages"]
    wanted = TurnChoice().of(Chat(messages))
    return encoder._written.write(Chat(messages), wanted), encoder._run(Chat(messages), wanted)


def texts_both_ways(contents: str, *chat_contents: str) -> tuple[str | None, str]:
    """Return the text of a chat as it is written, and as its template writes it with this in the place of contents."""
    template = "{% for m in messages %}<{{ m.role }}>" + contents + "</>{% endfor %}"
    compiled = chat_template_utils._compile_jinja_template(template)

    def run(chat: Chat, wanted: Sequence[int]) -> tuple[str, list[Turn]]:
        return compiled.render(messages=chat.messages, tools=None), []

    one = Chat(chat(*chat_contents or ("x one ", "two", "three", " 4\n5 "))["messages"])
    written = WrittenChats(template, compiled, {}, run).write(one, [])
    return written and written[0], run(one, [])[0]


@pytest.mark.parametrize("name", EVERY)
def test_what_is_written_is_what_the_template_writes(name: str) -> None:
    encoder = encoder_of(EVERY[name])
    for contents in (("a", "b"), ("a", "b", "c", "d"), *CHATS.values()):
        written, run = both_ways(encoder, *contents)
        is_usual = all(content.strip() for content in contents)
        assert written == (run if is_usual else None), contents


CONTENTS = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
    st.sampled_from(["Zqc1qZ", " Zqc0qZ\n", "<|im_end|>", "</s>", "{{ 1 }}", "[/INST]", "<thi", "\x0b a \x85", "1s1"]),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(EVERY)), st.lists(CONTENTS, min_size=2, max_size=6), st.one_of(st.just(""), CONTENTS))
def test_whatever_the_contents_say(name: str, contents: list[str], system: str) -> None:
    encoder = encoder_of(EVERY[name])
    with suppress(RowProblem):  # some of these are refused by running
        written, run = both_ways(encoder, *contents[: len(contents) // 2 * 2], system=system)
        assert written in (None, run)


def test_the_template_is_not_run_for_chats_whose_roles_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of(LLAMA_3)
    encoder.encode([Chat(chat("one", "two")["messages"])])
    runs: list[Any] = []
    monkeypatch.setattr(encoder, "_render", lambda conversations, *_: runs.append(conversations) or [])
    encoder.encode([Chat(chat(f" {number} ", "yes\n")["messages"]) for number in range(5)])
    assert runs == [[]], "no conversation is left to render"


LOOKS = {
    "other characters stripped": "{{ m.content.strip('x') }}",
    "another content": "{% if m.content == messages[0].content %}!{% endif %}{{ m.content }}",
    "each word": "{{ m.content.split() | first }}",
    "a macro's text": "{% macro write(text) %}{{ text }}{% endmacro %}{{ write(m.content) | length }}{{ m.content }}",
    "a captured text": "{% set text %}{{ m.content }}{% endset %}{{ text | upper }}",
    "put together by tilde": "{{ ('x' ~ m.content) | length }}{{ m.content }}",
    "tag in what is put together": "{% if '</think>' in '<' + m.content %}!{% endif %}{{ m.content }}",
    "order": "{% if m.content < 'x' %}!{% endif %}{{ m.content }}",
    "key": "{{ {'x': '!'}[m.content] }}{{ m.content }}",
    "in a literal": "{% if m.content in 'xyz' %}!{% endif %}{{ m.content }}",
    "length": "{{ m.content | length }}{{ m.content }}",
    "first character": "{{ m.content[0] }}{{ m.content }}",
    "its end": "{{ m.content[5:] }}{{ m.content }}",
    "each character": "{% for letter in m.content %}.{% endfor %}{{ m.content }}",
    "a method": "{{ m.content.upper() }}",
    "a filter": "{{ m.content | upper }}",
    "put into a literal": "{{ 'abc'.replace('b', m.content) }}",
    "cut": "{{ m.content | truncate(300) }}",
    "as JSON": "{{ m.content | tojson }}",
    "message as JSON": "{{ m | tojson }}",
    "message": "{{ m }}",
    "formatted": "{{ '%.3s' | format(m.content) }}",
    "by percent": "{{ '%s' % m.content }}",
    "by braces": "{{ '{}'.format(m.content) }}",
    "repeated": "{{ m.content * 2 }}",
    "joined": "{{ [m.content, 'x'] | join(' ') }}",
    "filter block": "{% filter upper %}{{ m.content }}{% endfilter %}",
    "a test by name": "{{ '!' if m.content is lower }}{{ m.content }}",
    "changed": "{{ '!' if loop.changed(m.content) }}{{ m.content }}",
    "sorted": "{% for one in messages | sort(attribute='content') %}{{ one.role }}{% endfor %}{{ m.content }}",
    "grouped": "{% for one in messages | groupby('content') %}.{% endfor %}{{ m.content }}",
    "selected": "{{ messages | selectattr('content', 'equalto', 'x') | list | length }}{{ m.content }}",
    "equal messages": "{{ '!' if m == messages[-1] }}{{ m.content }}",
    "written twice": "{{ m.content + m.content }}",
}


@pytest.mark.parametrize("looks", LOOKS.values(), ids=LOOKS.keys())
def test_a_template_that_looks_at_contents_is_run_for_each(looks: str) -> None:
    assert texts_both_ways(looks)[0] is None


@pytest.mark.parametrize(
    "sees",
    [
        "{% if m.content is string and m.content is not none %}{{ m.content }}{% endif %}",
        "{% if m.content %}{{ m.content }}{% endif %}",
        "{{ m.content or '' }}",
        "{{ m.content if m.content != '' }}",
        "{{ m['content'] | default('') | trim }}",
        "{{ m.get('content').lstrip() }}",
        "{% set text = m.content %}{% if '</think>' in text %}{% set text = text.split('</think>')[-1] %}{% endif %}{{ text }}",
        "{% set ns = namespace(text='a') %}{% set ns.text = '(' + m.content %}{{ ns.text + ')' }}",
        "{{ '' if m.content.startswith('<tool_response>') else m.content }}",
        "{{ m.content.strip('\n') }}",
        "{{ ('(' ~ m.content ~ ' ') | trim + ')' }}",
        "{% set text %} {{ m.content }}.{% endset %}{{ text.rstrip() }}",
        "{% macro write(text) %}{{ text }}{% endmacro %}{{ write(m.content) | trim ~ loop.index }}",
        "{% for one in messages[loop.index0:] | selectattr('role', 'equalto', m.role) | list %}{{ one.content if loop.first }}{% endfor %}",
    ],
)
def test_what_follows_from_the_roles_alone_is_no_look(sees: str) -> None:
    written, run = texts_both_ways(sees)
    assert written == run


ASKS = {
    "{{ '!' if 'x' in m.content }}{{ m.content }}": True,
    "{{ '!' if m.content == 'x' }}{{ m.content }}": True,
    "{{ '!' if m.content != 'x' }}{{ m.content }}": True,
    "{{ '!' if m.content in ['v', 'x'] }}{{ m.content }}": True,
    "{{ '!' if m.content.startswith('x') or m.content.endswith('x') }}{{ m.content }}": True,
    "{{ m.content | replace('x', 'y') }}": True,
    "{{ m.content.split('x')[0] }}": True,
    "{{ m.content.strip().replace('x', '') }}": True,
    "{{ '!' if '' in m.content }}{{ m.content }}": False,
    "{{ '!' if m.content in 'xyz' }}{{ m.content }}": False,
    "{{ m.content.replace('x', 'y', 1) }}": False,
}


@pytest.mark.parametrize(("asks", "is_written"), ASKS.items())
def test_what_holds_a_text_that_is_looked_for_is_left_to_the_template(asks: str, is_written: bool) -> None:
    written, run = texts_both_ways(asks, "one", "two")
    assert written == (run if is_written else None)
    assert texts_both_ways(asks, "one", "x")[0] is None


def test_a_form_is_learned_from_a_chat_that_it_does_not_fit_too() -> None:
    encoder = ChatEncoder(make_tokenizer(QWEN_3, eos_token="</s>"))
    thought = Chat(chat("a", "<think>b</think>c")["messages"])
    assert encoder._written.write(thought, [1]) is None
    written, run = both_ways(encoder, "a", "b")
    assert written == run
    assert encoder._written.write(thought, [1]) is None


@pytest.mark.parametrize("content", ["", " \n"])
def test_blank_contents_are_left_to_the_template(content: str) -> None:
    encoder = encoder_of(CHATML_UNTAGGED)
    assert both_ways(encoder, "a", "b")[0] is not None
    assert both_ways(encoder, "a", content)[0] is None


def test_more_than_roles_and_contents_is_left_to_the_template() -> None:
    encoder = encoder_of(CHATML_UNTAGGED)
    messages = chat("a", "b")["messages"]
    assert encoder._written.write(Chat(messages), [1]) is not None
    assert encoder._written.write(Chat(messages, tools=[{"name": "f"}]), [1]) is None
    assert encoder._written.write(Chat([messages[0], {**messages[1], "name": "x"}]), [1]) is None
    assert encoder._written.write(Chat([messages[0], {**messages[1], "reasoning_content": "x"}]), [1]) is None
