"""A callback and a converter that act on the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.callback.base import Callback
from arctic_hydra.component import component
from arctic_hydra.converter.base import ModelConverter
from arctic_hydra.human_numbers import HumanFloat, number

if TYPE_CHECKING:
    from arctic_hydra.trainer.base import Trainer


@component(group="callback", name="target")
class Target(Callback):
    """Finishes the run once the training loss is low enough."""

    loss: HumanFloat = number(1.0, minimum=0)

    only_observes: ClassVar[bool] = False

    def on_log(self, trainer: Trainer, facts: dict[str, Any]) -> dict[str, Any]:
        if facts["metrics"].get("loss", float("inf")) <= self.loss:
            trainer.stop(f"the loss has reached {self.loss:g}", finished=True)
        return {**facts["metrics"], "target": self.loss}


@component(group="converter", name="clamp")
class Clamp(ModelConverter):
    """Keeps the weights of the norms within a limit, at every ZeRO stage."""

    limit: HumanFloat = number(1.0, minimum=0)

    def convert(self, model: Any) -> Any:
        return model

    def post_optimizer_hook(self, model: Any) -> None:
        with self.trainer.weights(r"norm\.weight", writes=True) as weights:
            for weight in weights.values():
                weight.clamp_(-self.limit, self.limit)
