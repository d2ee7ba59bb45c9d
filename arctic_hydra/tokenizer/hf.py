"""Tokenizers in the Hugging Face layout, from a directory or the hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from arctic_hydra.component import component
from arctic_hydra.errors import ConfigError
from arctic_hydra.tokenizer.base import TokenizerFactory
from arctic_hydra.tokenizer.loading import environment_problems, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@component(group="tokenizer", name="hf")
class HFTokenizerFactory(TokenizerFactory):
    """A tokenizer by hub id or local directory; the model's own where none is named."""

    name_or_path: str | None = None
    """Hub id or local directory; `model.name_or_path` when unset."""
    revision: str | None = None
    """Branch, tag or commit on the hub; `model.revision` where `name_or_path` and this are unset."""
    chat_template: str | None = None
    """Path of a Jinja chat template, or the template itself; the tokenizer's own when unset."""
    trust_remote_code: bool = False
    """Run Python code that comes with the tokenizer."""

    def check_environment(self) -> Iterator[str]:
        """Yield a problem for a local path that is missing or holds no tokenizer."""
        yield from environment_problems(self.name_or_path, self.chat_template)

    def create_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the fast tokenizer, its pad token set; raises ModelError when it cannot be loaded."""
        if not self.name_or_path:
            raise ConfigError(
                "tokenizer.name_or_path: not set, and the model names none to take it from; expected a hub id or a "
                "local directory; pass tokenizer.name_or_path=<id or directory>, or tokenizer=bundled"
            )
        tokenizer = load_tokenizer(
            self.name_or_path, self.chat_template, revision=self.revision, trust_remote_code=self.trust_remote_code
        )
        return self.extend(tokenizer)
