"""The bundled tokenizer: byte-level BPE with 4096 entries, trained on the bundled chats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from arctic_hydra.assets import ASSETS
from arctic_hydra.component import component
from arctic_hydra.tokenizer.base import TokenizerFactory
from arctic_hydra.tokenizer.loading import environment_problems, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@component(group="tokenizer", name="bundled")
class BundledTokenizerFactory(TokenizerFactory):
    """The bundled tokenizer; needs neither network nor model."""

    chat_template: str | None = None
    """Path of a Jinja chat template, or the template itself; by default the bundled one, similar to ChatML."""

    def check_environment(self) -> Iterator[str]:
        """Yield a problem if the template file is missing."""
        yield from environment_problems(None, self.chat_template)

    def create_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the bundled tokenizer; its pad, end and start tokens are distinct."""
        return self.extend(load_tokenizer(str(ASSETS / "tokenizer"), self.chat_template))
