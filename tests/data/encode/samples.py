"""Templates with their expected spans, chats, and functions that encode them, for the tests of encoding."""

from __future__ import annotations

import functools
from typing import Any

from arctic_hydra.assets.build_assets import CHAT_TEMPLATE
from arctic_hydra.data.encode.chat import ChatEncoder, TurnChoice
from arctic_hydra.data.encode.spans import Encoded
from arctic_hydra.data.formats.messages import Chat, RowProblem
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
    LFM_2_CALLS,
    LLAMA_3,
    LLAMA_3_TOOLS,
    MISTRAL,
    MISTRAL_TOOLS,
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
    make_tokenizer,
)

CHATS = {
    "plain": ("What is 1 + 1?", "It is 2."),
    "answer repeats the question": ("yes", "yes", "yes", "yes"),
    "answer occurs in the first question": ("Say ok", "ok", "ok?", "ok"),
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
    # template, generated text before the answer, stop token
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


# Constructs from the templates of released models that are harder to mask.
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
    # template, rendered tool call, generated text before an answer, stop token
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


EVERY = {
    **{name: template for name, (template, *_) in (TEMPLATES | MAKERS).items()},
    **{f"{name}, tools": template for name, (template, *_) in TOOL_TEMPLATES.items()},
    "qwen 3": QWEN_3,
}


def ask(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def say(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def encode(template: str, row: dict[str, Any], **options: Any) -> tuple[Any, Encoded | RowProblem]:
    tokenizer = make_tokenizer(template, **{"eos_token": "</s>"} | options)
    return tokenizer, ChatEncoder(tokenizer).encode([Chat(row["messages"])])[0]


@functools.cache
def encoder_of(template: str) -> tuple[Any, ChatEncoder]:
    tokenizer = make_tokenizer(template, eos_token="</s>")
    return tokenizer, ChatEncoder(tokenizer)


def supervised(template: str, messages: list[Any], tools: Any = None, **choice: Any) -> list[str] | str:
    """Return what is trained on, or what is wrong."""
    tokenizer = make_tokenizer(template, eos_token="</s>")
    (encoded,) = ChatEncoder(tokenizer, TurnChoice(**choice)).encode([Chat(messages, tools)])
    if isinstance(encoded, RowProblem):
        return str(encoded)
    return [tokenizer.decode(encoded.ids[first:last]) for first, last in encoded.spans]
