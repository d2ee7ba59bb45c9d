"""`loss` is enough for an evaluation: it is averaged over the same units."""

from __future__ import annotations

import pytest
import torch

from arctic_hydra.callback.base import Callback
from arctic_hydra.checkpoint.deepspeed import DeepSpeedCheckpoint
from arctic_hydra.distributed import World
from arctic_hydra.errors import ConfigError
from arctic_hydra.trainer.base import Trainer
from arctic_hydra.trainer.sft import SFTTrainer
from tests.ranks import run_ranks
from tests.trainer.loop import MemoryLoader, batch_of, documents, make_trainer

DATA = documents([12] * 5, [4, 1, 7, 3, 2])


class LossOnly(SFTTrainer):
    """An SFT trainer with the evaluation of the base."""

    evaluation_sums = Trainer.evaluation_sums


class OnMain(Callback):
    """Adds a metric to evaluations, on the main rank only."""

    def on_evaluate_end(self, trainer, facts):
        """Add it."""
        return {**facts["metrics"], "eval/mine": 1.0} if trainer.world.is_main else None


def _evaluated(folder, stage):
    trainer = make_trainer(DATA, folder, stage=stage, eval_data=DATA, micro_batch_size=2)
    expected = trainer.evaluate()
    trainer.__class__, trainer._loop.evaluated_at = LossOnly, -1
    found = trainer.evaluate()
    batch = batch_of(DATA)
    batch.source_K = torch.arange(batch.num_supervised) % 3
    trainer.set_callbacks([OnMain()], trainer.world)
    trainer.attach(trainer)
    trainer.tools.checkpoints.append(DeepSpeedCheckpoint(keep_best=1, best_metric="eval/mine"))
    trainer._loop.evaluated_at = -1
    assert trainer.evaluate().get("eval/mine") == (1.0 if trainer.world.is_main else None)
    with torch.no_grad():
        return expected, found, trainer.evaluation_sums(batch, 3), SFTTrainer.evaluation_sums(trainer, batch, 3)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 3)])
def test_the_loss_alone_gives_the_same_evaluation_without_accuracy(ranks, stage, tmp_path):
    for expected, found, by_source, wanted in run_ranks(ranks, _evaluated, tmp_path, stage):
        assert set(found) == {"step", "eval/loss"}
        assert found["eval/loss"] == pytest.approx(expected["eval/loss"], rel=1e-6)
        assert torch.allclose(by_source[:, [0, 2]], wanted[:, [0, 2]], rtol=1e-6)
        assert by_source[:, 1].isnan().all()


class OwnUnits(LossOnly):
    """A trainer over documents."""

    def units(self, batch):
        return len(batch.document_lengths)


class TwoSources(MemoryLoader):
    """A loader of two data sources."""

    source_names = ("one", "other")


def _refused(folder):
    two_sources = TwoSources(DATA, 1, 1, World())
    with pytest.raises(ConfigError, match="so the 2 evaluation sources cannot be told apart"):  # before any step
        make_trainer(DATA, folder, trainer_class=OwnUnits, eval_data=lambda _: two_sources)
    trainer = make_trainer(DATA, folder, trainer_class=OwnUnits, eval_data=DATA)
    with pytest.raises(
        ConfigError, match="OwnUnits counts its own units and has no `evaluation_sums`, so the 2 evaluation"
    ):
        trainer.evaluation_sums(batch_of(DATA), 2)
    trainer.tools.checkpoints.append(DeepSpeedCheckpoint(keep_best=1, best_metric="eval/acuracy"))
    with pytest.raises(ConfigError, match=r"best_metric: got eval/acuracy, expected one of eval/loss"):
        trainer.evaluate()


def test_units_and_metrics_that_an_evaluation_cannot_have_are_refused(tmp_path):
    run_ranks(1, _refused, tmp_path)
