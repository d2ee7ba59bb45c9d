"""Supervised fine-tuning data: conversations with a loss on their answers."""

from __future__ import annotations

from dataclasses import field
from enum import Enum
from typing import TYPE_CHECKING

from arctic_hydra.component import component
from arctic_hydra.data.formats.messages import ROLES
from arctic_hydra.data.formats.reading import Reading, RowFormat
from arctic_hydra.data.tokenized import TokenizedDataFactory
from arctic_hydra.errors import DataError, FieldError

if TYPE_CHECKING:
    from arctic_hydra.data.prepare.preparer import PrepareOptions
    from arctic_hydra.data.rows.base import Rows


class TrainOn(Enum):
    """Which turns are supervised."""

    all = "all"
    last = "last"


@component(group="data", name="sft")
class SFTDataFactory(TokenizedDataFactory):
    """Conversations, rendered with the chat template; each answer and its stop token are supervised."""

    mask_inputs: bool = True
    """Train on answers only; false trains on every token."""
    train_on: TrainOn = TrainOn.all
    """Train on all turns of `train_roles`, or only on the last one of each conversation."""
    train_roles: list[str] = field(default_factory=lambda: ["assistant"])
    """Roles whose turns are trained on; messages with `weight: 0` are excluded."""
    ignore_empty_think: bool = False
    """Exclude an empty `<think></think>` at the start of an answer from the loss."""
    eot_tokens: list[str] = field(default_factory=list)
    """Tokens with which the chat template ends a turn, if they are not special tokens of the tokenizer."""
    train_on_eot: bool = True
    """Train on the tokens that end a turn; false trains on the answers only, for a model that already stops."""

    def validate(self) -> None:
        """Check the roles and the masking options, and the fields of the base class."""
        super().validate()
        unknown = [role for role in self.train_roles if role not in ROLES]
        if unknown or not self.train_roles:
            got = f"got {unknown[0]!r}" if unknown else "got none"
            raise FieldError([("train_roles", f"{got}, expected one or more of {', '.join(ROLES)}")])
        if "" in self.eot_tokens:
            raise FieldError([("eot_tokens", "got '', expected tokens of the tokenizer, such as '<|im_end|>'")])
        chosen = self.train_on is not TrainOn.all or self.train_roles != ["assistant"] or self.ignore_empty_think
        if not self.mask_inputs and (chosen or not self.train_on_eot):
            text = (
                "got false, which trains on every token, together with train_on, train_roles, ignore_empty_think or "
                "train_on_eot; remove one"
            )
            raise FieldError([("mask_inputs", text)])

    @property
    def end_of_turn_tokens(self) -> list[str]:
        """Tokens that the config names as ends of a turn, besides the tokenizer's special tokens."""
        return self.eot_tokens

    def options(self) -> PrepareOptions:
        """Return the options that determine how rows become examples; part of the cache key."""
        from arctic_hydra.data.encode.chat import TurnChoice
        from arctic_hydra.data.prepare.preparer import PrepareOptions

        turns = TurnChoice(
            tuple(self.train_roles),
            self.train_on is TrainOn.last,
            self.ignore_empty_think,
            tuple(self.eot_tokens),
            self.train_on_eot,
        )
        return PrepareOptions(self.max_length, self.mask_inputs, self.overlong.value, self.malformed.value, turns)

    def resolve(self, rows: Rows, reading: Reading) -> Reading:
        """Return the reading with its format; preferences must be declared, since only their chosen side is used here."""
        found = super().resolve(rows, reading)
        if found.detected and found.format is RowFormat.preference:
            raise DataError(
                f"{rows.where(0)}: the rows are preferences (chosen, rejected), expected conversations; set "
                f"format=preference to train on the chosen answers only"
            )
        return found
