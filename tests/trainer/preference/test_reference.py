"""The reference is scored without a graph and leaves the model in the mode in which it was."""

from __future__ import annotations

import re
from contextlib import contextmanager

import pytest
import torch

from arctic_hydra.converter.base import ModelConverter
from arctic_hydra.converter.peft.lora import LoraFactory
from arctic_hydra.trainer.head import unwrap
from arctic_hydra.trainer.loss import plain_losses, supervised_logits
from arctic_hydra.trainer.preference.dpo import DPOTrainer
from arctic_hydra.trainer.preference.reference import why_not_adapter_off
from tests.model.test_layers import RoutedModelFactory
from tests.ranks import run_ranks
from tests.trainer.loop import batch_of, make_trainer, pairs, tiny_factory, trained

DATA = pairs([(3, 9), (12, 1)])


class Rounding(ModelConverter):
    """Rounds what the MLPs return, to -1 and 1."""

    def convert(self, model):
        for layer in model.model.layers:
            layer.mlp.down_proj.register_forward_hook(
                lambda module, _, out: out if module in self.exact else out + (out.sign() - out).detach()
            )
        return model

    exact = frozenset()

    @contextmanager
    def without_rounding(self, model):
        self.exact |= (mine := set(model.modules()))
        try:
            yield
        finally:
            self.exact -= mine


def _scored(folder, stage):
    found = []
    for converter, start in ((Rounding(), None), (LoraFactory(r=4), None), (LoraFactory(r=4), str(folder))):
        shares, with_adapter = start is None and isinstance(converter, LoraFactory), isinstance(converter, LoraFactory)
        trainer = make_trainer(
            DATA, folder, trainer_class=DPOTrainer, stage=stage, converters=[converter], initial_weights=start
        )
        reference, engine = trainer._reference, trainer.tools.engine
        batch = batch_of([side for pair in DATA for side in pair])
        engine.train()
        before = reference.token_losses(batch)
        for window in trainer.tools.loader.windows(0):
            trainer.step(window, {"units": 2, "supervised": 25})
        after = reference.token_losses(batch)
        engine.eval()
        with torch.no_grad():
            moved = trainer._losses.losses(batch)[0]
        found.append((torch.equal(before, after), torch.equal(before, moved), before.requires_grad))
        frozen = unwrap(reference.losses.engine)
        assert (frozen is engine.module) == shares
        assert bool(why_not_adapter_off(engine.module)) == (not with_adapter)
        assert trainer.frozen_models(engine.module) == int(not shares)
    return found


def test_the_reference_stays_while_the_model_is_trained(tmp_path):
    assert run_ranks(1, _scored, tmp_path, 0) == [[(True, False, False)] * 3]


def test_so_it_does_at_zero_3_on_two_ranks(tmp_path):
    assert run_ranks(2, _scored, tmp_path, 3) == [[(True, False, False)] * 3] * 2


def _routed(folder):
    """Return the losses of ranks that use different experts, without ZeRO and at ZeRO-3, which shards the copy too."""
    found = []
    for stage in (0, 3):
        factory = RoutedModelFactory(**vars(tiny_factory()))
        trainer = make_trainer(DATA * 2, folder, trainer_class=DPOTrainer, stage=stage, model=factory)
        rows, _, _ = trained(trainer)
        found.append([row["loss"] for row in rows])
    return found


def test_ranks_that_use_different_experts_score_a_copy_at_zero_3_as_without(tmp_path):
    for plain, sharded in run_ranks(2, _routed, tmp_path):
        assert len(plain) == 2 and sharded == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(
    ("bias", "reason"), [("none", ""), ("all", "trains weights of the model itself, such as .*bias")]
)
def test_an_adapter_that_trains_biases_cannot_be_switched_off(bias, reason):
    factory = tiny_factory(hf_config_kwargs={"attention_bias": True})
    model = LoraFactory(r=4, bias=bias).convert(factory.create_model(factory.create_config()))
    found = why_not_adapter_off(model)
    assert re.search(reason, found) if reason else found == ""
    assert DPOTrainer().frozen_models(model) == int(bool(reason))


def _autocast(folder):
    autocast = {"config": {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}}
    trainer = make_trainer(DATA, folder, trainer_class=DPOTrainer, stage=1, offload=autocast)
    batch = batch_of([side for pair in DATA for side in pair])
    with torch.no_grad():
        model, exact = (
            trainer._losses.losses(batch)[0],
            plain_losses(supervised_logits(unwrap(trainer.tools.engine), batch)[0], batch.targets_K),
        )
    return model, trainer._reference.token_losses(batch), exact


def test_a_copy_computes_in_the_precision_of_the_model(tmp_path):
    [(model, reference, exact)] = run_ranks(1, _autocast, tmp_path)
    assert torch.equal(reference, model) and not torch.allclose(model, exact, rtol=1e-5)
