"""Training with stored scores of the reference is training with the reference, without it in memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from arctic_hydra.converter.peft.lora import LoraFactory
from arctic_hydra.errors import ArcticHydraError, CheckpointError
from arctic_hydra.trainer.preference.choices import ReferenceKind
from arctic_hydra.trainer.preference.dpo import DPOTrainer
from arctic_hydra.trainer.preference.stored_reference import StoredReference
from arctic_hydra.trainer.scoring import score_plan
from tests.ranks import run_ranks
from tests.trainer.loop import APART, batch_of, distance, make_trainer, pairs, trained
from tests.trainer.scoring.samples import loader_of

DATA = {
    "a": pairs([(3, 9), (12, 1), (5, 5), (20, 2), (4, 8), (1, 1), (7, 3)]),
    "b": pairs([(2, 6), (9, 9), (8, 3)], seed=2),
}
HELD = {"held": pairs([(4, 2), (1, 7), (6, 6)], seed=1)}
SETTINGS = {"micro_batch_size": 1, "gradient_accumulation_steps": 2, "epochs": 2, "lr": 1e-3, "ld_alpha": 0.5}
"""With ten steps."""


def trainer_of(folder, kind, **settings):
    packed = settings.get("packed", True)
    return make_trainer(
        lambda trainer: loader_of(folder / "data", DATA, trainer, packing=packed),
        folder,
        eval_data=lambda trainer: loader_of(folder / "data", HELD, trainer, packing=packed, shuffle=False),
        reference=kind,
        scores_dir=str(folder),
        **{"trainer_class": DPOTrainer, **SETTINGS, **settings},
    )


def history(folder, kind, **settings):
    trainer = trainer_of(folder, kind, **settings)
    rows, weights, moved = trained(trainer)
    assert trainer.frozen_models(trainer.tools.engine.module) == int(kind == "copy")
    assert isinstance(trainer._reference, StoredReference) == (kind == "cached")
    kept = [{name: value for name, value in row.items() if name == "loss" or "/" in name} for row in rows]
    return kept, weights, moved, trainer.state_dict()


def _equal(folder, settings):
    score_plan.BATCHES_PER_PART = 2
    return [history(folder, kind, **settings) for kind in ("copy", "cached")]


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [(1, {}), (2, {"stage": 3, "packed": False, "gradient_accumulation_steps": 1})],
    ids=["packed", "padded-zero3"],
)
def test_losses_evaluation_and_weights_are_those_with_a_copy(tmp_path, ranks, settings):
    place = SimpleNamespace(**SETTINGS, world=SimpleNamespace(size=1, rank=0))
    for data in (DATA, HELD):
        loader_of(tmp_path / "data", data, place)  # written by one process
    for (rows, weights, moved, state), (cached, ours, _, kept) in run_ranks(ranks, _equal, tmp_path, settings):
        assert len(rows) == len(cached) >= 6 and state == kept and state["reference"]
        assert distance(ours, weights) < APART * moved
        for row, other in zip(rows, cached, strict=True):
            assert row == pytest.approx(other, rel=1e-6, abs=1e-6)  # a reward is the difference of large sums
        for name, value in weights.items():
            torch.testing.assert_close(ours[name], value, atol=1e-6, rtol=0, msg=name)


def _resumed(folder):
    """Start again from the state of a checkpoint: with the scores, without them, and with other weights."""
    first = trainer_of(folder, "cached")
    state, made = first.state_dict(), []

    class Resumed(DPOTrainer):
        def setup(self, tools):
            tools.state.progress.global_step = 3
            super().setup(tools)
            create = tools.create_model
            tools.create_model = lambda path: made.append(path) or create(path)
            self.load_state_dict(state)

    def again(seed=0):
        return trainer_of(folder, "cached", trainer_class=Resumed, seed=seed)

    assert again().state_dict() == state and made == []
    parts = {path.name for path in folder.glob("scores/*/*.npy")}
    next(folder.glob("scores/*/*.npy")).unlink()
    assert again().state_dict() == state and made == [None]
    assert {path.name for path in folder.glob("scores/*/*.npy")} == parts
    next(folder.glob("scores/*/*.npy")).unlink()
    with pytest.raises(
        CheckpointError, match=r"trainer.reference: its stored scores are gone, and its weights are not"
    ):
        again(seed=1)


def test_a_resumed_run_loads_the_reference_only_if_scores_are_gone(tmp_path):
    run_ranks(1, _resumed, tmp_path)


def _adapters(folder):
    """Return the first loss with another adapter on the same model, and how many entries there are."""
    losses = []
    for rank in (2, 4):
        trainer, rows = trainer_of(folder, "cached", converters=[LoraFactory(r=rank)]), []
        trainer._record = rows.append
        trainer.train()
        losses.append([row["loss"] for row in rows if "loss" in row])
    trainer, rows = trainer_of(folder, "adapter_off", converters=[LoraFactory(r=4)]), []
    trainer._record = rows.append
    trainer.train()
    assert losses[1] == pytest.approx([row["loss"] for row in rows if "loss" in row], rel=1e-6)
    return len(list(folder.glob("scores/*/about.json")))


def test_adapters_of_one_model_share_the_scores(tmp_path):
    assert run_ranks(1, _adapters, tmp_path) == [3]  # of three sources


def test_a_batch_without_scores_is_an_error():
    with pytest.raises(ArcticHydraError, match=r"trainer.reference: a batch has no stored scores: they are incomplete"):
        StoredReference("w").token_losses(batch_of([([1, 2], [False, True])]))


def test_another_model_may_be_scored_too():
    for kind in ("auto", "cached"):
        assert DPOTrainer(reference=kind, reference_path="x").reference is ReferenceKind(kind)
    model = torch.nn.Linear(1, 1)
    counts = [
        (trainer.frozen_models(model), trainer.scoring_models(model))
        for trainer in (
            DPOTrainer(reference_path="x"),
            DPOTrainer(reference="cached"),
            DPOTrainer(reference="cached", reference_path="x"),
        )
    ]
    assert counts == [(1, 0), (0, 0), (0, 1)]
    trainer = DPOTrainer()
    assert trainer.can_store_scores and not trainer.stores_scores
    trainer.store_scores()
    assert trainer.stores_scores
