"""Examples of all kinds are encoded in order, each by the encoder and the template for its kind."""

from __future__ import annotations

from arctic_hydra.data.encode.chat import TurnChoice
from arctic_hydra.data.encode.encoder import ExampleEncoder
from arctic_hydra.data.encode.spans import Encoded
from arctic_hydra.data.formats.messages import Chat, PlainText, RowProblem
from tests.data.encode.samples import TOOL_CHAT, TOOLS
from tests.data.samples import CHATML_UNTAGGED, QWEN_TOOLS, chat, make_tokenizer


def test_chats_with_tools_use_the_tool_template_of_the_tokenizer() -> None:
    """The tokenizers of Command R and Hermes 2 Pro have several named templates."""
    tokenizer = make_tokenizer(CHATML_UNTAGGED, eos_token="</s>")
    tokenizer.chat_template = {"default": CHATML_UNTAGGED, "tool_use": QWEN_TOOLS}
    plain = Chat(chat("Sunny?", "Yes.")["messages"])
    encoded = ExampleEncoder(tokenizer, TurnChoice()).encode([plain, Chat(TOOL_CHAT, TOOLS), plain])
    assert [tokenizer.decode(item.ids) for item in encoded if isinstance(item, Encoded)] == [
        tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        for messages, tools in ((plain.messages, None), (TOOL_CHAT, TOOLS), (plain.messages, None))
    ]


def test_examples_of_all_kinds_keep_their_order() -> None:
    tokenizer = make_tokenizer(CHATML_UNTAGGED)
    talk, problem = Chat(chat("q", "a")["messages"]), RowProblem("malformed", "no messages")
    found = ExampleEncoder(tokenizer, TurnChoice()).encode([PlainText("one"), talk, problem, PlainText("two"), talk])
    assert found[2] is problem
    decoded = [tokenizer.decode(item.ids) for item in found if isinstance(item, Encoded)]
    rendered = tokenizer.apply_chat_template(talk.messages, tokenize=False)
    assert decoded == ["one<|im_end|>", rendered, "two<|im_end|>", rendered]


def test_texts_need_no_chat_template() -> None:
    (found,) = ExampleEncoder(make_tokenizer(None), TurnChoice()).encode([PlainText("one")])
    assert isinstance(found, Encoded)
