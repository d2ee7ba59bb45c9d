"""Base of the tokenizer factories."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from arctic_hydra.component import Component
from arctic_hydra.errors import ConfigError
from arctic_hydra.human_numbers import bounded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(kw_only=True)
class TokenizerFactory(Component):
    """Base of the tokenizer factories."""

    add_tokens: list[str] = field(default_factory=list)
    """Tokens to add to the vocabulary; the model gets rows for them, initialized to the mean of the others."""
    add_special_tokens: list[str] = field(default_factory=list)
    """Special tokens to add, such as ['<|tool|>']; decoding can skip them."""
    pad_vocab_to_multiple_of: int = bounded(1, minimum=1, maximum=1_000_000)
    """Pad the rows of the model's embedding to a multiple of this number, such as 64; 1 disables."""

    def validate(self) -> None:
        before: list[str] = []
        for key, tokens in (("add_tokens", self.add_tokens), ("add_special_tokens", self.add_special_tokens)):
            both = [*before, *tokens]
            if "" in both or len(set(both)) < len(both):
                others = ", none of them in add_tokens" if before else ""
                raise ValueError(f"{key}: got {tokens!r}, expected distinct, non-empty tokens{others}")
            before = both
        if not 1 <= self.pad_vocab_to_multiple_of <= 1_000_000:
            raise ValueError(f"pad_vocab_to_multiple_of: got {self.pad_vocab_to_multiple_of}, expected 1 to 1,000,000")

    def extend(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """Add the configured tokens; raises ConfigError for one that the vocabulary already has."""
        from transformers import AddedToken

        known = tokenizer.get_vocab()
        for key in ("add_tokens", "add_special_tokens"):
            if there := [token for token in getattr(self, key) if token in known]:
                raise ConfigError(
                    f"tokenizer.{key}: {', '.join(map(repr, there))} is already in the vocabulary; leave it out"
                )
        tokenizer.add_tokens(list(self.add_tokens))
        special = [AddedToken(token, special=True, normalized=False) for token in self.add_special_tokens]
        tokenizer.add_tokens(special, special_tokens=True)
        return tokenizer

    def added_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return the ids of the added tokens, ascending."""
        ids = tokenizer.convert_tokens_to_ids([*self.add_tokens, *self.add_special_tokens])
        return sorted(ids)

    @abstractmethod
    def create_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return a fast tokenizer with a pad token; raises ModelError if it cannot be loaded."""
