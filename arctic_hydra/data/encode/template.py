"""The chat template of a tokenizer: selection, rendering, and conversion of messages to the format it expects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from transformers.utils import chat_template_utils

from arctic_hydra.data.encode.limits import BoundedEnvironment, RenderLimitError, too_large
from arctic_hydra.data.encode.spans import Span
from arctic_hydra.data.formats.messages import REASONING_KEYS, Chat, Message, RowProblem, malformed, unusual_turn
from arctic_hydra.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# transformers compiles templates in this class, and caches them itself.
chat_template_utils.ImmutableSandboxedEnvironment = BoundedEnvironment

TOOL_TEMPLATE = "tool_use"
"""The name under which transformers looks up the template for chats with tools, if a tokenizer has several."""
GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Some templates, such as Llama 3.1's, write today's date by default. A training set must not change at midnight.
FIXED_DATE = datetime(2024, 7, 26)
_PROBE_NAME, _PROBE_KEY = "zqcallqz", "zqkeyqz"


def template_of(tokenizer: PreTrainedTokenizerBase, with_tools: bool = False) -> str:
    """Return the chat template, or `with_tools` the one for tools if it exists; raises DataError if there is no template."""
    try:
        return str(tokenizer.get_chat_template(tools=[] if with_tools else None))
    except ValueError as error:
        named = tokenizer.chat_template  # Command R's tokenizer has several, one of them for tools
        what = (
            f"several chat templates ({', '.join(named)}) and none of them is the default"
            if named
            else "no chat template"
        )
        raise DataError(
            f"tokenizer.chat_template: the tokenizer {tokenizer.name_or_path!r} has {what}, which conversations need; pass "
            f"tokenizer.chat_template=<file with a Jinja template>"
        ) from error


def template_problem(chat: Chat, error: Exception) -> RowProblem:
    """Return the problem of a chat for which the template raises: `malformed` if its roles are in an unusual order."""
    if isinstance(error, RenderLimitError | MemoryError):
        what = error.what if isinstance(error, RenderLimitError) else too_large()
        remedy = "shorten the row, or pass tokenizer.chat_template=<file with another>"
        return RowProblem("template", f"the chat template {what} for this row; {remedy}")
    text = f"the chat template fails: {type(error).__name__}: {error}"
    unusual = unusual_turn(chat.messages)
    if unusual is None:
        return RowProblem("template", f"{text}; correct it, or pass tokenizer.chat_template=<file>")
    before = f"after {chat.messages[unusual - 1]['role']!r}" if unusual else "at the start"
    return malformed(
        f"message {unusual}: role {chat.messages[unusual]['role']!r} {before}, which this chat template may not "
        f"support ({text}); expected user and assistant in turn, or tokenizer.chat_template=<file> with a template that "
        f"supports this order"
    )


@contextmanager
def suppress_template_errors() -> Iterator[None]:
    """Suppress the exceptions of a template, which may be of any type, except those of its limits."""
    try:
        yield
    except (RenderLimitError, MemoryError):
        raise
    except Exception:
        pass


def freeze_globals(template: str) -> None:
    """Fix the date of a compiled template and flatten its globals.

    Jinja copies the globals at each rendering; from its chain of dictionaries, that takes a quarter of the time. The date
    function cannot be passed as a variable, since transformers accepts only plain data there.
    """
    with suppress_template_errors():  # a private API; and a template that does not compile fails at rendering
        compiled = chat_template_utils._compile_jinja_template(template)
        compiled.globals = {**compiled.globals, "strftime_now": FIXED_DATE.strftime}


def rename_reasoning(message: Message, known: str) -> Message:
    """Return the message with its reasoning under the key that the template reads."""
    other = next((key for key in REASONING_KEYS if key in message), None)
    if other in (None, known):
        return message
    return {known if key == other else key: value for key, value in message.items()}


@dataclass(frozen=True)
class ToolCallFormat:
    """The format of tool calls in a message."""

    arguments_as_json: bool = False
    """Arguments as a JSON string instead of an object; the call then also has a `type`."""
    null_content: bool = False
    """Null instead of empty content."""

    def apply(self, message: Message) -> Message:
        """Return the message with its tool calls in this format; a message without tool calls is returned unchanged."""
        calls = message.get("tool_calls")
        if not calls:
            return message
        changed = dict(message)
        if self.null_content and not changed.get("content"):
            changed["content"] = None
        if self.arguments_as_json:
            functions = [call.get("function", call) for call in calls]
            texts = [json.dumps(function.get("arguments") or {}, ensure_ascii=False) for function in functions]
            changed["tool_calls"] = [
                {"type": "function", **call, "function": {**function, "arguments": text}}
                for call, function, text in zip(calls, functions, texts, strict=True)
            ]
        return changed


_CALL_FORMATS = (
    ToolCallFormat(),
    ToolCallFormat(null_content=True),
    ToolCallFormat(arguments_as_json=True),
    ToolCallFormat(arguments_as_json=True, null_content=True),
)


@dataclass(frozen=True)
class Rendered:
    """One rendered conversation."""

    text: str
    answers: list[Span]
    """The spans of characters within `{% generation %}`; empty for templates without it."""


class ChatTemplate:
    """The chat template of a tokenizer: renders conversations as transformers does.

    Templates differ in the key of the reasoning (`REASONING_KEYS`) and in the format of tool calls (`ToolCallFormat`);
    messages are converted to what the template expects.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, with_tools: bool = False) -> None:
        """Take the default template, or with `with_tools` the one for tools; raises DataError if there is none."""
        self._source = template_of(tokenizer, with_tools)
        freeze_globals(self._source)
        self._variables: dict[str, Any] = dict(tokenizer.special_tokens_map)
        if "date_string" in self._source:
            self._variables["date_string"] = FIXED_DATE.strftime("%d %b %Y")
        known = [key for key in REASONING_KEYS if re.search(rf"\b{key}\b", self._source)]
        self._reasoning_key = known[0] if len(known) == 1 else None
        self.marks_answers = bool(GENERATION_TAG.search(self._source))
        """Whether the template marks answers with `{% generation %}`."""
        self._call_format = ToolCallFormat()
        if "tool_calls" in self._source:
            self._call_format = self._detect_call_format()

    def render(
        self, conversations: list[list[Message]], tools: list[Any] | None = None, generate: bool = False
    ) -> list[Rendered]:
        """Render each conversation, all with the same tools; `generate` adds the generation prompt.

        Raises whatever the template raises.
        """
        if (known := self._reasoning_key) is not None:
            conversations = [[rename_reasoning(message, known) for message in messages] for messages in conversations]
        if self._call_format != ToolCallFormat():
            conversations = [[self._call_format.apply(message) for message in messages] for messages in conversations]
        marks = self.marks_answers and not generate
        texts, spans = chat_template_utils.render_jinja_template(
            conversations=conversations,
            tools=tools,
            chat_template=self._source,
            return_assistant_tokens_mask=marks,
            add_generation_prompt=generate,
            **self._variables,
        )
        return [Rendered(*both) for both in zip(texts, spans if marks else [[] for _ in texts], strict=True)]

    def _detect_call_format(self) -> ToolCallFormat:
        """Return the first format in which the template writes the name and arguments of a call, or the default one."""
        call = {"type": "function", "function": {"name": _PROBE_NAME, "arguments": {_PROBE_KEY: "1"}}}
        messages: list[Message] = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        for call_format in _CALL_FORMATS:
            with suppress_template_errors():
                text = self.render([[call_format.apply(message) for message in messages]])[0].text
                if _PROBE_NAME in text and _PROBE_KEY in text:
                    return call_format
        return ToolCallFormat()
