"""An optimizer and models that extend those of arctic_hydra, and callbacks."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import time
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.callback.base import Callback
from arctic_hydra.component import component
from arctic_hydra.human_numbers import HumanInt, integer
from arctic_hydra.model.tiny import TinyModelFactory
from arctic_hydra.optimizer.adamw import AdamWFactory
from my_lab import acting as acting
from my_lab import sources as sources

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
        self._append(trainer, "moments.jsonl", {"exception": str(facts["error"])}, facts["run_dir"])

    def _append(self, trainer: Trainer, name: str, value: Any, run_dir: Path | None = None) -> None:
        with ((run_dir or trainer.tools.run_dir) / f"{name}.rank{trainer.world.rank}").open("a") as handle:
            handle.write(json.dumps(value) + "\n")


@component(group="callback", name="witness")
class Witness(Callback):
    """Appends a line per rank and moment to `events.rank<n>` in the working directory: what happens, where and when."""

    def on_init_start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        self._note(trainer, "start", 0)

    def on_train_start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        self._note(trainer, "train", trainer.global_step)

    def on_step_start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        examples = [batch.example_ids for batch in facts["window"].micro_batches]
        self._note(trainer, "step", trainer.global_step + 1, examples=examples)

    def on_step_end(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        self._note(trainer, "between steps", trainer.global_step + 1)

    def on_evaluate_start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        self._note(trainer, "evaluation", trainer.global_step)

    def on_evaluate_end(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        self._note(trainer, "between steps", trainer.global_step)

    def on_save_start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        self._note(trainer, "save", trainer.global_step)

    def on_save_end(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        self._note(trainer, "between steps", trainer.global_step)

    def on_epoch_end(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        self._note(trainer, "epoch end", trainer.global_step)

    def _note(self, trainer: Trainer, event: str, step: int, **more: Any) -> None:
        line = json.dumps({"event": event, "step": step, "time": time.time(), **more}) + "\n"
        with open(f"events.rank{trainer.world.rank}", "ab", buffering=0) as file:
            file.write(line.encode())  # one write, so that a kill does not tear it


@component(group="callback", name="saboteur")
class Saboteur(Callback):
    """Makes one rank fail at one moment, to see what the others do."""

    only_observes: ClassVar[bool] = False
    how: str = "raise"
    """raise, kill (SIGKILL), freeze (SIGSTOP), exit (without a word), sys_exit or none."""
    moment: str = "step"
    """Where: any moment of a run, at its start."""
    rank: int = 1
    step: int = 2
    """Steps completed before it."""
    pause_seconds: float = 0.0
    """How long every rank rests before each step."""

    def on_step_start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        time.sleep(self.pause_seconds)
        self._act(trainer, "step")

    def on_backward_start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        self._act(trainer, "backward")

    def on_evaluate_start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        self._act(trainer, "evaluate")

    def on_save_start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        self._act(trainer, "save")

    def _act(self, trainer: Trainer, moment: str) -> None:
        if (trainer.world.rank, trainer.global_step, moment) != (self.rank, self.step, self.moment):
            return
        sabotage(self.how)


def sabotage(how: str) -> None:
    """Let this process fail as `Saboteur.how` says."""
    if how == "raise":
        raise ZeroDivisionError("sabotage")
    if how == "sys_exit":
        raise SystemExit(4)
    if how == "exit":
        os._exit(3)
    if how != "none":
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}[how])


@component(group="model", name="shallow")
class ShallowModelFactory(TinyModelFactory):
    """The tiny model with one layer: another config, the same way to make a model of it."""

    def create_config(self) -> Any:
        config = super().create_config()
        config.num_hidden_layers = 1
        return config


@component(group="model", name="silent")
class SilentModelFactory(TinyModelFactory):
    """The tiny model with a head of zeros: the same config, another way to make a model of it."""

    def create_model(self, config: Any) -> Any:
        model = super().create_model(config)
        model.get_output_embeddings().weight.data.zero_()
        return model


@component(group="callback", name="courier")
class Courier(Callback):
    """Shows that a secret has reached the run, by its hash."""

    password: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def on_train_start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        held = self.password
        if self.options:
            held += json.dumps(self.options, sort_keys=True)
            print(self.options)
            logging.getLogger(__name__).warning("got %s", self.options)
            if trainer.tools.run_dir.parent.name == "fails":
                raise RuntimeError(f"cannot deliver {self.options}")
        digest = hashlib.sha256(held.encode()).hexdigest()
        (trainer.tools.run_dir / "courier.txt").write_text(digest)
