"""Tokenizer factories."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from arctic_hydra.component import Component

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(kw_only=True)
class TokenizerFactory(Component):
    """Base of the tokenizer factories."""

    @abstractmethod
    def create_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return a fast tokenizer with a pad token; raises ModelError when it cannot be loaded."""
