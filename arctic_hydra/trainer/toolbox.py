"""The toolbox: the objects of a run that its trainer uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra import distributed
from arctic_hydra.checkpoint.base import CheckpointEngine, TrainingState
from arctic_hydra.converter.base import ModelConverter
from arctic_hydra.data.base import Loader
from arctic_hydra.display import Display
from arctic_hydra.generation.answers import continue_greedily, stop_tokens
from arctic_hydra.generation.prompts import PromptEncoder
from arctic_hydra.metrics import MetricsFile
from arctic_hydra.model.base import ModelFactory
from arctic_hydra.stopping import StopRequest
from arctic_hydra.tracking.base import Tracker

if TYPE_CHECKING:
    import deepspeed
    import torch


@dataclass(kw_only=True)
class Toolbox:
    """The objects that the runner builds and the trainer uses."""

    world: distributed.World
    device: torch.device
    run_dir: Path
    loader: Loader
    eval_loader: Loader | None
    model_factory: ModelFactory
    converters: list[ModelConverter]
    engine: deepspeed.DeepSpeedEngine
    engine_config: dict[str, Any]
    scheduler: torch.optim.lr_scheduler.LRScheduler
    state: TrainingState
    checkpoints: list[CheckpointEngine]
    trackers: list[Tracker]
    metrics_file: MetricsFile | None
    display: Display
    stop: StopRequest
    log_interval: int
    flops_shape: tuple[float, float, int, int]
    """FLOPs of the body per token and of the head per supervised token, layers, attention width: arguments of `model_flops`."""
    packed: bool
    """Whether a row may contain several documents."""
    create_model: Callable[[str | None], torch.nn.Module]
    """Creates the run's model once more, converted and with the weights that the run starts from, or with those of a
    path like `init_from`. Collective; at ZeRO-3 its parameters are partitioned."""
    evaluates: bool = False
    """Whether the model has the weights of a checkpoint that is only evaluated, instead of those that the run starts from."""
    cache_directory: Path | None = None
    """Directory in which prepared data is cached, if it is."""

    def scores_directory(self, chosen: str | None) -> Path:
        """Return the directory of stored scores: the one that `scores_dir` names, or else that of the data cache."""
        folder = Path(chosen).absolute() if chosen else self.cache_directory
        assert folder is not None, "checked for every config"
        return folder

    def stop_tokens(self) -> list[int]:
        """Return the ids of the tokens at which generation stops, as in an export."""
        return stop_tokens(self.engine.module, self.state.tokenizer, self.state.stop_tokens())

    def complete(self, prompt: str, as_chat: bool, max_new_tokens: int) -> str:
        """Return what the model most probably writes after a prompt, which is a user's message if `as_chat`.

        Collective at ZeRO-3, where every rank holds a part of the weights. Raises RenderLimitError if the chat template exceeds
        the limits of `data.encode.limits`.
        """
        prompts = PromptEncoder(self.state.tokenizer)
        chat = as_chat and prompts.has_template
        ids = prompts.chat([{"role": "user", "content": prompt}]) if chat else prompts.text(prompt)
        made = continue_greedily(self.engine, self.device, ids, self.stop_tokens(), max_new_tokens)
        return str(self.state.tokenizer.decode(made, skip_special_tokens=True))
