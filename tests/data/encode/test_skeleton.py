"""Skeletons: caching them by roles never changes a result, and contents are located in any template."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_hydra.data.encode.chat import ChatEncoder
from arctic_hydra.data.encode.spans import Encoded
from arctic_hydra.data.formats.messages import Chat, RowProblem
from tests.data.encode.samples import EVERY, encoder_of
from tests.data.samples import chat, make_tokenizer

CONTENTS = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    st.sampled_from(["Zqc1qZ", " Zqc0qZ\n", "<|im_end|>", "</s>", "{{ 1 }}", "[/INST]", "<thi", "\x0b a \x85", "1s1"]),
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(EVERY)), st.lists(CONTENTS, min_size=2, max_size=6), st.one_of(st.just(""), CONTENTS))
def test_a_cached_skeleton_gives_the_same_tokens_as_a_new_one(name: str, contents: list[str], system: str) -> None:
    """Skeletons are cached by roles, although a template may also depend on the contents."""
    tokenizer, encoder = encoder_of(EVERY[name])
    messages = [{"role": "system", "content": system}] * bool(system) + chat(*contents)["messages"]
    one = Chat(messages[: len(messages) - len(contents) % 2])
    (after,) = encoder.encode([one])
    encoder._finder._skeletons.clear()
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
def test_answers_of_templates_that_depend_on_contents(looks: str) -> None:
    template = f"{{% for m in messages %}}[{{{{ m.role }}}}]{looks}<|im_end|>{{% endfor %}}"
    tokenizer, encoder = encoder_of(template + "{% if add_generation_prompt %}[assistant]{% endif %}")
    for contents in (("one", "two", "x", "three"), ("x", "x", "one", " 4\n5 "), ("one", "y", "y", "x")):
        (encoded,) = encoder.encode([Chat(chat(*contents)["messages"])])
        assert isinstance(encoded, Encoded), encoded
        found = [tokenizer.decode(encoded.ids[first:last]) for first, last in encoded.spans]
        assert found == [f"{answer}<|im_end|>" for answer in contents[1::2]]


@pytest.mark.parametrize("changes", ["m.content | replace('x', 'y')", "m.content.split('x')[0]"])
def test_a_changed_answer_is_refused_in_any_order_of_chats(changes: str) -> None:
    template = f"{{% for m in messages %}}[{{{{ m.role }}}}]{{{{ {changes} }}}}<|im_end|>{{% endfor %}}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    for answers in (("two", "x"), ("x", "two")):
        encoder = ChatEncoder(make_tokenizer(template, eos_token="</s>"))
        found = [encoder.encode([Chat(chat("one", answer)["messages"])])[0] for answer in answers]
        assert [isinstance(item, RowProblem) for item in found] == [answer == "x" for answer in answers]
