"""Freeze parameters by pattern."""

from __future__ import annotations

import logging
from dataclasses import field
from typing import TYPE_CHECKING, ClassVar

from arctic_hydra.component import component
from arctic_hydra.converter.base import ModelConverter, Phase
from arctic_hydra.distributed import count_numbers
from arctic_hydra.errors import ConfigError
from arctic_hydra.human_numbers import format_count
from arctic_hydra.patterns import check_patterns, matching

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


@component(group="converter", name="freeze")
class FreezeConverter(ModelConverter):
    """Freezes parameters by pattern; they have neither gradients nor optimizer state.

    Patterns are regular expressions that are searched for in names such as `model.layers.0.self_attn.q_proj.weight`.
    """

    patterns: list[str] = field(default_factory=list)
    """Parameters to freeze, such as [embed_tokens,'layers.[0-7]\\.']; the others train."""
    trainable: list[str] = field(default_factory=list)
    """The inverse: parameters to train, such as [lm_head,norm]; the others are frozen. Set one of the two fields."""

    phase: ClassVar[Phase] = Phase.trainable

    def validate(self) -> None:
        if bool(self.patterns) == bool(self.trainable):
            given = "both" if self.patterns else "neither"
            raise ValueError(
                f"patterns: got {given} of patterns and trainable, expected exactly one of them, such as patterns=[embed_tokens]"
            )
        check_patterns("patterns", self.patterns)
        check_patterns("trainable", self.trainable)

    def convert(self, model: torch.nn.Module) -> torch.nn.Module:
        """Freeze in place; a tied parameter matches by any of its names.

        Raises ConfigError for a pattern that matches nothing, and if no parameter is left to train.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        key, patterns = ("patterns", self.patterns) if self.patterns else ("trainable", self.trainable)
        chosen = {id(parameters[name]) for name in matching(f"converter.freeze.{key}", patterns, parameters)}
        for parameter in parameters.values():
            if (id(parameter) in chosen) == bool(self.patterns):
                parameter.requires_grad_(False)
        every = {id(p): (count_numbers(p), p.requires_grad) for p in parameters.values()}
        trained = sum(size for size, trains in every.values() if trains)
        if not trained:
            raise ConfigError(
                f"converter.freeze.{key}: {patterns} freezes the whole model; expected patterns that leave parameters to train"
            )
        log.info(
            "freeze: %s of %s parameters train", format_count(trained), format_count(sum(n for n, _ in every.values()))
        )
        return model
