"""Encodes prompts as training does: rendered by the same code, with the same BOS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_hydra.data.formats.messages import Chat, Message
from arctic_hydra.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from arctic_hydra.data.encode.template import ChatTemplate


class PromptEncoder:
    """Encodes texts and conversations up to the next answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        self._templates: dict[bool, ChatTemplate] = {}
        self._bos = tokenizer.bos_token_id
        self._adds_bos = self._bos is not None and self._tokenizer("a")["input_ids"][:1] == [self._bos]

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(self._tokenizer.chat_template)

    def text(self, text: str) -> list[int]:
        """Return the tokens of a text that the model continues."""
        return self._with_one_bos(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def chat(self, messages: list[Message], tools: list[Any] | None = None) -> list[int]:
        """Return the tokens of a conversation, rendered by the chat template up to the next answer.

        Raises DataError if the template cannot render it, as with a system message that it does not support.
        """
        from arctic_hydra.data.encode.limits import RenderLimitError, render_limits
        from arctic_hydra.data.encode.template import template_problem

        try:
            with render_limits():
                template = self._template(tools is not None)
                text = template.render([messages], tools, generate=True)[0].text
        except RenderLimitError:
            raise
        except Exception as error:  # a template may raise any exception
            raise DataError(str(template_problem(Chat(messages), error))) from error
        return self._with_one_bos(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _template(self, with_tools: bool) -> ChatTemplate:
        from arctic_hydra.data.encode.template import TOOL_TEMPLATE, ChatTemplate

        named = self._tokenizer.chat_template
        special = with_tools and isinstance(named, dict) and TOOL_TEMPLATE in named
        if special not in self._templates:
            self._templates[special] = ChatTemplate(self._tokenizer, special)
        return self._templates[special]

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        """Return the tokens with exactly one BOS at their start if the tokenizer or the template writes one."""
        if self._bos is None:
            return ids
        while ids[:2] == [self._bos, self._bos]:
            ids = ids[1:]
        return [self._bos, *ids] if self._adds_bos and ids[:1] != [self._bos] else ids
