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
    """A tokenizer by hub id or local directory; by default the model's own."""

    name_or_path: str | None = None
    """Hub id or local directory; `model.name_or_path` when unset."""
    revision: str | None = None
    """Branch, tag or commit on the hub; defaults to `model.revision` if `name_or_path` is unset too."""
    chat_template: str | None = None
    """Path of a Jinja chat template, or the template itself; by default the tokenizer's own."""
    trust_remote_code: bool = False
    """Run Python code from the tokenizer's repository."""

    def check_environment(self) -> Iterator[str]:
        """Yield a problem if a local path is missing or contains no tokenizer."""
        yield from environment_problems(self.name_or_path, self.chat_template)

    def create_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the fast tokenizer with a pad token; raises ModelError if it cannot be loaded."""
        if not self.name_or_path:
            raise ConfigError(
                "tokenizer.name_or_path: not set, and the model has no tokenizer of its own to load; expected a hub id or a "
                "local directory; pass tokenizer.name_or_path=<id or directory>, or tokenizer=bundled"
            )
        tokenizer = load_tokenizer(
            self.name_or_path, self.chat_template, revision=self.revision, trust_remote_code=self.trust_remote_code
        )
        return self.extend(tokenizer)
