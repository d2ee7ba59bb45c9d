"""An optimizer that extends one of arctic_hydra's, and a callback."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from arctic_hydra.callback.base import Callback
from arctic_hydra.component import component
from arctic_hydra.human_numbers import HumanInt, integer
from arctic_hydra.optimizer.adamw import AdamWFactory

if TYPE_CHECKING:
    from arctic_hydra.trainer.base import Trainer


@component(group="optimizer", name="soap")
class SoapFactory(AdamWFactory):
    """AdamW with one more field."""

    precondition_every_steps: HumanInt = integer(10, minimum=1)
    """Optimizer steps between preconditioner updates."""


@component(group="callback", name="recorder")
class Recorder(Callback):
    """Writes the examples of every step and the name of every moment into the run directory."""

    def on_step_start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        batches = [batch.example_ids for batch in facts["window"].micro_batches]
        self._append(trainer, "examples.jsonl", batches)

    def on_create_model_end(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        self.model_was_made = True

    def on_train_end(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        self._append(trainer, "moments.jsonl", {"train_end": trainer.global_step, "model": self.model_was_made})

    def on_exception(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        self._append(trainer, "moments.jsonl", {"exception": str(facts["error"])})

    def _append(self, trainer: Trainer, name: str, value: Any) -> None:
        with (trainer.tools.run_dir / f"{name}.rank{trainer.world.rank}").open("a") as handle:
            handle.write(json.dumps(value) + "\n")
