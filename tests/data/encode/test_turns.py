# ruff: noqa: E501 (templates and messages)
"""Locating turns in a rendered chat: headers, stop tokens, tool calls, reasoning, and the errors when a turn is not found."""

from __future__ import annotations

import pytest

from arctic_hydra.assets.build_assets import CHAT_TEMPLATE
from arctic_hydra.data.encode.chat import ChatEncoder
from arctic_hydra.data.encode.spans import Encoded
from arctic_hydra.data.formats.messages import Chat, RowProblem, check_chat
from tests.data.encode.samples import (
    CALL,
    CALLED,
    TOOL_CHAT,
    TOOL_TEMPLATES,
    TOOLS,
    ask,
    encode,
    encoder_of,
    say,
    supervised,
)
from tests.data.samples import (
    CHATML_UNTAGGED,
    DEEPSEEK,
    DEEPSEEK_THINK,
    DEEPSEEK_THINK_TAGS,
    GPT_OSS,
    LLAMA_3,
    LLAMA_3_ALWAYS,
    LLAMA_3_TOOLS,
    NO_STOP,
    NUMBERED,
    QWEN_3,
    QWEN_TOOLS,
    chat,
    make_tokenizer,
)


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


@pytest.mark.parametrize("name", TOOL_TEMPLATES)
def test_tool_calls_are_supervised(name: str) -> None:
    template, call, before, stop = TOOL_TEMPLATES[name]
    tokenizer = make_tokenizer(template, eos_token="</s>")
    (encoded,) = ChatEncoder(tokenizer).encode([Chat(TOOL_CHAT, TOOLS)])
    assert isinstance(encoded, Encoded), encoded
    texts = [tokenizer.decode(encoded.ids[first:last]) for first, last in encoded.spans]
    assert texts == [call + stop, before + "Sunny." + stop, before + "Sunny." + stop]


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
def test_a_leading_answer_is_supervised_in_full(template: str, before: str, stop: str) -> None:
    """ShareGPT conversations may begin with an answer; what the template writes before it is not supervised."""
    found = supervised(template, check_chat([say("a"), ask("q"), say("b"), ask("r")]).messages)
    assert found == [f"{before}{answer}{stop}" for answer in ("a", "b")]


def test_a_leading_answer_that_cannot_be_located_is_refused() -> None:
    headless = CHATML_UNTAGGED.replace("'<|im_start|>' + m", "('' if loop.first else '<|im_start|>') + m")
    (problem,) = ChatEncoder(make_tokenizer(headless)).encode([check_chat([say("a"), ask("q"), say("b")])])
    assert isinstance(problem, RowProblem) and "message 0: the chat template renders the start" in str(problem)


@pytest.mark.parametrize("with_tools", [False, True])
def test_a_header_after_every_chat_is_excluded_from_the_answer(with_tools: bool) -> None:
    """The first template of Llama 3 wrote the generation prompt after every chat."""
    template = LLAMA_3_TOOLS.replace("{% if add_generation_prompt %}", "").removesuffix("{% endif %}")
    called = TOOL_TEMPLATES["llama 3"][1]
    tools = TOOLS if with_tools else None
    messages = TOOL_CHAT if tools else [ask("q"), say("a"), ask("r"), say("")]
    expected = supervised(LLAMA_3_TOOLS, check_chat(messages).messages, tools)
    assert supervised(template, check_chat(messages).messages, tools) == expected
    assert expected[0] == (f"{called}<|eot_id|>" if tools else "a<|eot_id|>")


def test_an_answer_followed_by_a_separate_tool_call_message() -> None:
    """ShareGPT writes them as gpt and function_call."""
    messages = [TOOL_CHAT[0], say("Let me look."), *TOOL_CHAT[1:4]]
    for template, called in ((CHAT_TEMPLATE, TOOL_TEMPLATES["bundled"][1]), (QWEN_TOOLS, TOOL_TEMPLATES["qwen"][1])):
        found = supervised(template, check_chat(messages).messages, TOOLS)
        assert found == ["Let me look.<|im_end|>", f"{called}<|im_end|>", "Sunny.<|im_end|>"]


BYE = {"role": "user", "content": "Bye"}


def test_templates_that_write_the_last_turn_differently() -> None:
    """Qwen3 and gpt-oss: a chat that is cut after an answer does not render to a prefix of the whole chat."""
    called = f"<tool_call>\n{CALLED}\n</tool_call><|im_end|>"
    empty = "<think>\n\n</think>\n\n"
    assert supervised(QWEN_3, TOOL_CHAT[:4], TOOLS) == [called, f"{empty}Sunny.<|im_end|>"]
    talks = [TOOL_CHAT[0], {**CALL, "content": "Let me."}, *TOOL_CHAT[2:]]
    assert supervised(QWEN_3, talks, TOOLS) == [f"Let me.\n{called}", "Sunny.<|im_end|>", f"{empty}Sunny.<|im_end|>"]
    thinks = [
        {**message, "reasoning_content": "Hm"} if message["role"] == "assistant" else message for message in TOOL_CHAT
    ]
    assert supervised(QWEN_3, thinks[:4], TOOLS) == [
        f"<think>\nHm\n</think>\n\n{rest}" for rest in (called, "Sunny.<|im_end|>")
    ]
    assert supervised(QWEN_3, thinks, TOOLS) == [
        called,
        "Sunny.<|im_end|>",
        "<think>\nHm\n</think>\n\nSunny.<|im_end|>",
    ]
    steps = [*thinks[:3], *thinks[1:]]  # two calls, one after the other
    assert supervised(QWEN_3, steps, TOOLS)[:3] == [called, called, "Sunny.<|im_end|>"]
    start = " to=weather<|channel|>commentary<|message|>"
    final = "<|channel|>final<|message|>Sunny."
    assert supervised(GPT_OSS, TOOL_CHAT, TOOLS) == [
        start + '{"city": "Rom"}<|call|>',
        f"{final}<|end|>",
        f"{final}<|return|>",
    ]
    thought = "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant"
    assert supervised(GPT_OSS, thinks, TOOLS)[-1] == f"{thought}{final}<|return|>"


def test_reasoning_within_the_content_of_an_answer() -> None:
    answer = "<think>\nHm\n</think>\n\nSunny."
    messages = chat("Sunny?", answer, "Sunny?", answer)["messages"]
    assert supervised(QWEN_3, messages[:2]) == [f"{answer}<|im_end|>"]
    problem = supervised(QWEN_3, messages)
    assert "message 1: the chat template changes the answer (it removes the reasoning; " in problem
    assert "data.train_on=last trains on that turn only" in problem
    assert supervised(QWEN_3, messages, last_only=True) == [f"{answer}<|im_end|>"]
    opened = QWEN_3.replace(
        "'<|im_start|>assistant\n' }}{% endif %}", "'<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    assert supervised(opened, messages[:2]) == [f"{answer}<|im_end|>"], "header and answer open the same thinking block"
    assert "removes the reasoning" in supervised(DEEPSEEK_THINK, messages[:2])
    assert supervised(DEEPSEEK_THINK_TAGS, messages) == [f"{answer}<｜end▁of▁sentence｜>"] * 2


def test_a_token_that_opens_the_next_turn_is_not_a_stop_token() -> None:
    bare = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    for contents in (("a", "b", "c"), ("a", "b", "c", "d")):
        assert "message 1: the chat template writes no stop token after the answer" in supervised(
            bare, chat(*contents)["messages"]
        )


def test_a_turn_that_cannot_be_located_is_refused() -> None:
    numbered_calls = NUMBERED.replace("m['content']", "(m.content or '') ~ (m.tool_calls or '')")
    problem = supervised(numbered_calls, [*TOOL_CHAT, BYE])
    assert (
        "message 1: the chat template renders the start of this conversation differently when more messages follow, so "
        "the span of this tool call cannot be determined; pass tokenizer.chat_template=<file> with `{% gen"
    ) in problem


BLANK_BETWEEN = "{% for m in messages %}{{ m.content + '</s>' if m.role == 'assistant' else m.content.rstrip() + '\n' }}{% endfor %}"


HEADER_WITH_SPACE = (
    "{% for m in messages %}{{ 'Bot:' + m.content + '</s>' if m.role == 'assistant' else m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Bot: {% endif %}"
)


@pytest.mark.parametrize("template", [BLANK_BETWEEN, HEADER_WITH_SPACE], ids=["blank between", "header with space"])
@pytest.mark.parametrize("contents", [("a\n", "b"), ("a", " b"), ("a", "\nb"), ("Bot:", "\nb")])
def test_leading_white_space_belongs_to_the_answer(template: str, contents: tuple[str, str]) -> None:
    assert supervised(template, chat(*contents)["messages"]) == [f"{contents[1]}</s>"]


def test_a_generation_block_that_includes_the_next_question() -> None:
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


def test_eot_tokens_end_a_turn() -> None:
    """As in Axolotl; GLM ends an answer with the token that opens the next turn."""
    glm = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    messages = chat("q", "a", "r", "", "s")["messages"]
    assert "writes no stop token after the answer" in supervised(glm, messages)
    assert supervised(glm, messages, eot_tokens=("<|user|>",)) == ["a<|user|>", "<|user|>"]
    tagged = glm.replace(
        "m.content }}",
        "'' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + ' .' }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}",
    )
    tokenizer = make_tokenizer(tagged)
    ordinary = tokenizer.decode(tokenizer.encode(" .", add_special_tokens=False)[:1])
    assert supervised(tagged, messages[:2], eot_tokens=(ordinary,)) == ["a ."]
    assert supervised(tagged, messages[:2], eot_tokens=(ordinary,), train_on_eot=False) == ["a"]
