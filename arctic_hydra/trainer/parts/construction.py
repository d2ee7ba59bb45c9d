"""The stages in which a run is built, as methods that a trainer can override one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_hydra import engine
from arctic_hydra.data.base import BatchGeometry, DataFactory, Loader
from arctic_hydra.model.base import ModelFactory
from arctic_hydra.optimizer.base import OptimizerFactory
from arctic_hydra.scheduler.base import SchedulerFactory
from arctic_hydra.tokenizer.base import TokenizerFactory

if TYPE_CHECKING:
    import deepspeed
    import torch
    from transformers import PreTrainedTokenizerBase


_OF_TRANSFORMERS = {
    "compute_loss": "loss(self, batch)",
    "training_step": "step(self, window, counts)",
    "prediction_step": "evaluation_sums(self, batch, num_sources)",
    "get_train_dataloader": "create_data(self, factory, tokenizer, geometry)",
}
"""Methods that subclasses of transformers' Trainer define, and those of ours."""


class Construction:
    """Builds the objects of a run from its factories; the runner calls each method once, in the order below.

    An override may call `super()`, before or after its own changes; callbacks receive each event once, from the runner.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for theirs, ours in _OF_TRANSFORMERS.items():
            if theirs in vars(cls) and ours.partition("(")[0] not in vars(cls):
                raise TypeError(
                    f"{cls.__name__}.{theirs} is a method of transformers' Trainer, which nothing calls here; define `{ours}`"
                )

    def create_tokenizer(self, factory: TokenizerFactory) -> PreTrainedTokenizerBase:
        """Return the tokenizer; every task that needs one calls this, in any process."""
        return factory.create_tokenizer()

    def create_data(
        self, factory: DataFactory, tokenizer: PreTrainedTokenizerBase, geometry: BatchGeometry
    ) -> tuple[Loader, Loader | None]:
        """Return the training loader and, if there is evaluation data, the evaluation loader. Collective."""
        return factory.build(tokenizer, geometry)

    def create_config(self, factory: ModelFactory) -> Any:
        """Return the object from which `create_model` builds the model."""
        return factory.create_config()

    def create_model(self, factory: ModelFactory, config: Any) -> torch.nn.Module:
        """Return the model before converters, weights of `init_from` and added tokens are applied.

        Every rank calls it with the same random state; at ZeRO-3, parameters may be partitioned while they are created.
        Export calls it again, in one process.
        """
        return factory.create_model(config)

    def create_optimizer(self, factory: OptimizerFactory, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer for the converted model."""
        return factory.create_optimizer(model)

    def create_scheduler(
        self, factory: SchedulerFactory, optimizer: torch.optim.Optimizer, horizon: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the learning-rate schedule for a run of `horizon` optimizer steps."""
        return factory.create_scheduler(optimizer, horizon)

    def create_engine(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]
    ) -> deepspeed.DeepSpeedEngine:
        """Return the DeepSpeed engine; `config` is its complete configuration. Collective."""
        return engine.initialize(model, optimizer, config)
