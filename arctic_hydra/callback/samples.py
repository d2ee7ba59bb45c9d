"""Samples: what the model generates from fixed prompts while it trains."""

from __future__ import annotations

import json
import os
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.callback.base import Callback
from arctic_hydra.component import component
from arctic_hydra.files.state_file import APPEND, open_regular, replace_text
from arctic_hydra.human_numbers import HumanInt, integer
from arctic_hydra.metrics import read_samples
from arctic_hydra.redaction import mask

if TYPE_CHECKING:
    from arctic_hydra.trainer.base import Trainer

FILE = "samples.jsonl"
"""File in the run directory: a line with `step`, `prompt` and `completion` per sample."""


@component(group="callback", name="samples")
class Samples(Callback):
    """Generates from fixed prompts at each evaluation, into `samples.jsonl`, the report and the trackers.

    The most probable token is chosen each time, so that samples differ between evaluations only as the weights do. Every token
    takes a forward pass over the text so far, without a cache of keys and values, which works for any model and attention.
    """

    prompts: list[str] = field(
        default_factory=lambda: ["A farmer has 12 cows and buys 5 more. How many cows are there now?"]
    )
    """The prompts; each is the message of a user if the tokenizer has a chat template."""
    as_chat: bool = True
    """Whether to render the prompts with the tokenizer's chat template, if it has one; false continues them as plain text."""
    max_new_tokens: HumanInt = integer(64, minimum=1, maximum=100_000)
    """Maximum number of tokens to generate per prompt."""

    needs_evaluation: ClassVar[bool] = True
    generates: ClassVar[bool] = True

    def validate(self) -> None:
        if not self.prompts or not all(isinstance(prompt, str) and prompt for prompt in self.prompts):
            raise ValueError(
                f"prompts: got {self.prompts}, expected at least one text, such as ['What is a neural network?']"
            )

    def on_train_start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Drop the samples of steps that a resumed run repeats."""
        path = trainer.tools.run_dir / FILE
        if trainer.world.is_main and path.exists():
            last = int(trainer.last_evaluation.get("step", -1))
            kept = [json.dumps(row) for row in read_samples(path) if row["step"] <= last]
            replace_text(path, "".join(f"{line}\n" for line in kept))

    def on_evaluate_end(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Generate; collective at ZeRO-3, where every rank holds a part of the weights."""
        if trainer.zero_stage != 3 and not trainer.world.is_main:
            return
        made = {prompt: trainer.tools.complete(prompt, self.as_chat, self.max_new_tokens) for prompt in self.prompts}
        if not trainer.world.is_main:
            return
        self._write(trainer.tools.run_dir / FILE, trainer.global_step, made)

    def _write(self, path: Path, step: int, made: dict[str, str]) -> None:
        with os.fdopen(open_regular(path, APPEND), "a", encoding="utf-8") as file:
            for prompt, completion in made.items():
                row = {"step": step, "prompt": mask(prompt), "completion": mask(completion)}
                file.write(json.dumps(row) + "\n")
