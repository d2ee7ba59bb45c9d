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

from arctic_hydra.data.encode.chat import Chat, ChatEncoder, TurnChoice
from arctic_hydra.data.encode.turns import Turn
from arctic_hydra.data.formats.messages import RowProblem
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


def write_again(written: WrittenChats, one: Chat, wanted: Sequence[int]) -> tuple[str, list[Turn]] | None:
    """Return what is written of a chat whose roles came before."""
    written.write(one, wanted)
    return written.write(one, wanted)


def both_ways(encoder: ChatEncoder, *contents: str, system: str = "") -> tuple[Any, Any]:
    """Return text and turns of a chat as they are written, and as running the template gives them."""
    messages = [{"role": "system", "content": system}] * bool(system) + chat(*contents)["messages"]
    wanted = TurnChoice().of(Chat(messages))
    return write_again(encoder._written, Chat(messages), wanted), encoder._run(Chat(messages), wanted)


class Writer:
    """Writes chats with a template that has this in the place of each content, and runs it."""

    def __init__(self, contents: str) -> None:
        template = "{% for m in messages %}[{{ m.role }}]" + contents + "[/]{% endfor %}"
        self._compiled = chat_template_utils._compile_jinja_template(template)
        self._written = WrittenChats(template, self._compiled, {}, self.run)

    def run(self, one: Chat, wanted: Sequence[int] = ()) -> tuple[str, list[Turn]]:
        return self._compiled.render(messages=one.messages, tools=None), []

    def texts(self, *contents: str) -> tuple[str | None, str]:
        """Return the text of a chat as it is written, and as the template writes it."""
        one = Chat(chat(*contents or ("x one ", "two", "three", " 4\n5 "))["messages"])
        written = write_again(self._written, one, [])
        return written and written[0], self.run(one)[0]


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
    encoder.encode([Chat(chat("one", "two")["messages"])] * 2)
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
    "escaped": "{% autoescape true %}{{ m.content }}{% endautoescape %}",
    "escaped by its neighbour": "{{ m.content + ('' | e) }}",
    "name in a namespace": "{% set names = namespace(x='!') %}{{ names[m.content] }}{{ m.content }}",
    "name in the loop": "{{ loop[m.content] }}{{ m.content }}",
    "drawn by chance": "{{ [1] | random }}{{ m.content }}",
    "words drawn by chance": "{{ lipsum(0) }}{{ m.content }}",
    "spaces and line breaks left out, each at one end": "{{ m.content.lstrip().rstrip('\n') }}",
    "only spaces left out": "{{ m.content.strip(' ') }}",
}


@pytest.mark.parametrize("looks", LOOKS.values(), ids=LOOKS.keys())
def test_a_template_that_looks_at_contents_is_run_for_each(looks: str) -> None:
    assert Writer(looks).texts()[0] is None


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
    written, run = Writer(sees).texts()
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
    "{{ '!' if 'x' in m.text | default(m.content) }}{{ m.content }}": True,
    "{{ '!' if '' | default(m.content, true) == 'x' }}{{ m.content }}": True,
    "{{ m.content.replace('x', 'y', 1) }}": False,
}


@pytest.mark.parametrize(("asks", "is_written"), ASKS.items())
def test_what_holds_a_text_that_is_looked_for_is_left_to_the_template(asks: str, is_written: bool) -> None:
    for first, then in (("two", "x"), ("x", "two")):
        writer = Writer(asks)
        for answer in (first, then):
            written, run = writer.texts("one", answer)
            if answer == "x" or not is_written:
                assert written is None
            elif answer == first:
                assert written == run


def test_a_form_is_learned_from_a_chat_that_it_does_not_fit_too() -> None:
    encoder = ChatEncoder(make_tokenizer(QWEN_3, eos_token="</s>"))
    thought = Chat(chat("a", "<think>b</think>c")["messages"])
    assert write_again(encoder._written, thought, [1]) is None
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
    assert write_again(encoder._written, Chat(messages), [1]) is not None
    assert write_again(encoder._written, Chat(messages, tools=[{"name": "f"}]), [1]) is None
    for more in ("name", "reasoning_content"):
        assert write_again(encoder._written, Chat([messages[0], {**messages[1], more: "x"}]), [1]) is None


def test_keys_of_messages_in_another_order_are_another_form() -> None:
    writer = Writer("{% for key, value in m.items() %}{{ key }}:{{ value }};{% endfor %}")
    messages = chat("one", "two")["messages"]
    for one in (Chat(messages), Chat([dict(reversed(message.items())) for message in messages])):
        assert write_again(writer._written, one, []) == writer.run(one)


def test_roles_that_come_once_cost_no_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ChatEncoder(make_tokenizer(CHATML_UNTAGGED, eos_token="</s>"))
    monkeypatch.setattr(WrittenChats, "_learned", lambda *_: pytest.fail("learned"))
    encoder.encode([Chat(chat(*["a", "b"] * turns)["messages"]) for turns in range(1, 9)])


BLANK_BETWEEN = (
    "{% for m in messages %}"
    "{{ m.content + '</s>' if m.role == 'assistant' else m.content.rstrip() + '\n' }}"
    "{% endfor %}"
)
HEADER_WITH_SPACE = (
    "{% for m in messages %}{{ 'Bot:' + m.content + '</s>' if m.role == 'assistant' else m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Bot: {% endif %}"
)


@pytest.mark.parametrize("template", [BLANK_BETWEEN, HEADER_WITH_SPACE], ids=["blank between", "header with space"])
@pytest.mark.parametrize("contents", [("a\n", "b"), ("a", " b"), ("a\n", "\nb"), ("Bot:", "\nb")])
def test_turns_are_the_same_where_contents_begin_or_end_in_white_space(
    template: str, contents: tuple[str, ...]
) -> None:
    encoder = ChatEncoder(make_tokenizer(template, eos_token="</s>"))
    both_ways(encoder, "a", "b")
    written, run = both_ways(encoder, *contents)
    assert written in (None, run)


def test_a_generation_block_around_a_question_too_is_judged_by_what_the_question_says() -> None:
    question = "{{ '#' if loop.last else '#' + messages[loop.index].content }}"
    template = (
        "{% for m in messages %}{% if loop.first %}{{ m.content }}!{% elif m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}\n" + question + "{% endgeneration %}{% endif %}{% endfor %}"
    )
    encoder = ChatEncoder(make_tokenizer(template, eos_token="</s>"))
    both_ways(encoder, "a", "b", "c", "d")
    with pytest.raises(RowProblem, match="changes the answer"):
        both_ways(encoder, "a", "b", "c</s>", "d")
    assert encoder._written.write(Chat(chat("a", "b", "c</s>", "d")["messages"]), [1, 3]) is None
