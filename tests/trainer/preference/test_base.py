"""Preference training in a real engine: one step is one batch of pairs, however it is cut, and equals a plain PyTorch loop."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from arctic_hydra.errors import ConfigError, FieldError
from arctic_hydra.trainer.preference.dpo import DPOTrainer
from arctic_hydra.trainer.preference.kto import KTOTrainer
from arctic_hydra.trainer.preference.orpo import ORPOTrainer
from arctic_hydra.trainer.preference.reward import RewardTrainer
from tests.ranks import run_ranks
from tests.trainer.loop import (
    APART,
    TEN_STEPS,
    batch_of,
    distance,
    labelled,
    make_trainer,
    pairs,
    tiny_factory,
    trained,
)

# Uneven on purpose: answers of other lengths, a last step with fewer pairs than ranks.
DATA = pairs([(3, 9), (12, 1), (5, 5), (20, 2), (4, 8), (1, 1), (7, 3), (2, 6), (9, 9)])
HELD = pairs([(4, 2), (1, 7), (6, 6)], seed=1)
MIXED = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "label_smoothing": 0.1, "ld_alpha": 0.5}


def history(folder, trainer_class=DPOTrainer, **settings):
    """Train and return the log lines, the final weights and how far they moved."""
    trainer = make_trainer(DATA, folder, trainer_class=trainer_class, eval_data=HELD, **settings)
    return trained(trainer)


def cut_history(folder, settings):
    return history(folder, **TEN_STEPS, **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run_ranks(1, cut_history, tmp_path_factory.mktemp("whole"), {"micro_batch_size": 4, **MIXED})[0]


CUTS = [
    (1, {"micro_batch_size": 1, "gradient_accumulation_steps": 4}),
    (1, {"micro_batch_size": 4, "packed": False}),
    (1, {"micro_batch_size": 4, "head_loss": "full"}),
    (2, {"micro_batch_size": 2, "stage": 1}),
    (2, {"micro_batch_size": 1, "gradient_accumulation_steps": 2, "stage": 2}),
    (2, {"micro_batch_size": 1, "gradient_accumulation_steps": 2, "stage": 3, "packed": False}),
]


@pytest.mark.parametrize(("ranks", "cut"), CUTS, ids=[f"{ranks}-{cut}" for ranks, cut in CUTS])
def test_losses_figures_and_weights_do_not_depend_on_the_cut(whole, tmp_path, ranks, cut):
    expected, weights, moved = whole
    assert len(expected) == 2 + 10
    for rows, ours, _ in run_ranks(ranks, cut_history, tmp_path, {**MIXED, **cut}):
        assert distance(ours, weights) < APART * moved
        for row, other in zip(rows, expected, strict=True):
            assert row.keys() == other.keys()
            for name in [name for name in row if name.split("/")[-1] in ("loss", "nll_loss") or "/" in name]:
                tolerance = 1e-6 if name.endswith("loss") else 2e-5
                assert row[name] == pytest.approx(other[name], rel=tolerance, abs=tolerance), name
        for name, value in weights.items():
            torch.testing.assert_close(ours[name], value, atol=5e-5, rtol=0, msg=name)


def logps(model, ids, mask):
    tokens = torch.tensor(ids)
    rows = model(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
    return rows[torch.tensor(mask[1:])]


def _mean_logits(folder):
    """Return the first log line, and the mean logits of the answers before that step from single documents."""
    trainer = make_trainer(
        DATA[:4], folder, trainer_class=DPOTrainer, micro_batch_size=2, gradient_accumulation_steps=2
    )
    rows, model = [], copy.deepcopy(trainer.tools.engine.module)
    trainer._record = rows.append
    trainer.train()
    with torch.no_grad():
        sides = [
            [
                float(model(input_ids=torch.tensor(ids)[None]).logits[0, :-1][torch.tensor(mask[1:])].mean())
                for ids, mask in pair
            ]
            for pair in DATA[:4]
        ]
    return rows[0], torch.tensor(sides).mean(0).tolist()


def test_logits_are_means_over_the_vocabulary_and_the_tokens_of_the_answers(tmp_path):
    row, (chosen, rejected) = run_ranks(1, _mean_logits, tmp_path)[0]
    assert chosen != rejected
    assert (row["logits/chosen"], row["logits/rejected"]) == pytest.approx((chosen, rejected), rel=1e-4, abs=1e-6)


def _plain(folder):
    """Return the losses of a plain loop over single documents, and those of the trainer, with its last evaluation."""
    trainer = make_trainer(DATA[:8], folder, trainer_class=DPOTrainer, micro_batch_size=4, eval_data=HELD, clipping=0.0)
    rows, model = [], copy.deepcopy(trainer.tools.engine.module)
    reference = copy.deepcopy(model).requires_grad_(False)
    trainer._record = rows.append
    trainer.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)

    def loss(pair):
        gained = [logps(model, *side).sum() - logps(reference, *side).sum() for side in pair]
        return -torch.log(torch.sigmoid(0.1 * (gained[0] - gained[1]))), gained

    losses = []
    for step in range(2):
        value = torch.stack([loss(pair)[0] for pair in DATA[4 * step :][:4]]).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value))
    held = [loss(pair) for pair in HELD]
    margins = [float(0.1 * (gained[0] - gained[1])) for _, gained in held]
    return losses, float(sum(value for value, _ in held)) / 3, margins, rows


def test_training_equals_a_plain_loop_over_single_documents(tmp_path):
    losses, held, margins, rows = run_ranks(1, _plain, tmp_path)[0]
    first, *steps, last = rows
    assert first["eval/loss"] == pytest.approx(math.log(2), abs=1e-6) and first["eval/rewards/accuracies"] == 0.0
    assert [row["loss"] for row in steps] == pytest.approx(losses, abs=1e-6)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6) and losses[1] != losses[0]
    assert last["eval/loss"] == pytest.approx(held, rel=1e-4)
    assert last["eval/rewards/margins"] == pytest.approx(sum(margins) / 3, rel=1e-3, abs=1e-4)
    assert last["eval/rewards/accuracies"] == pytest.approx(sum(margin > 0 for margin in margins) / 3)


def _by_source(folder):
    trainer = make_trainer(DATA[:4], folder, trainer_class=ORPOTrainer, eval_data=HELD)
    first, second = (batch_of([side for pair in HELD[part] for side in pair]) for part in (slice(2), slice(2, 3)))
    both = batch_of([side for pair in HELD for side in pair])
    both.source_K[both.document_K >= 4] = 1
    trainer.tools.engine.eval()
    with torch.no_grad():
        alone = [trainer.evaluation_sums(batch, 1)[0] for batch in (first, second)]
        return alone, trainer.evaluation_sums(both, 2), trainer.evaluation_sums(batch_of([]), 2)


def test_pairs_are_evaluated_under_the_source_that_they_come_from(tmp_path):
    alone, both, nothing = run_ranks(1, _by_source, tmp_path)[0]
    torch.testing.assert_close(both, torch.stack(alone), equal_nan=True, rtol=1e-5, atol=1e-5)
    assert both[:, 2].tolist() == [2.0, 1.0] and not nothing.any()


def _without_pairs(folder):
    """Return the loss of a micro-batch without pairs, and the gradients that its graph gives to each weight."""
    found = []
    for cls, settings in (
        (DPOTrainer, {"loss_type": ["sigmoid_norm", "sft"]}),
        (DPOTrainer, {"head_loss": "full"}),
        (ORPOTrainer, {}),
        (ORPOTrainer, {"head_loss": "full", "packed": False}),
        (KTOTrainer, {}),
        (RewardTrainer, {}),
    ):
        data = labelled([(3, 9, True), (12, 1, False)]) if cls is KTOTrainer else DATA[:2]
        trainer = make_trainer(data, folder, trainer_class=cls, **settings)
        trainer._kl = torch.zeros(())
        loss = trainer.loss(trainer.tools.loader.micro_batch([]))
        found.append((float(loss), gradients(trainer, loss)))
    return found


def gradients(trainer, loss):
    """Return for each weight whether its gradient is other than 0; fails for a weight without a gradient."""
    trainer.tools.engine.backward(loss, scale_wrt_gas=False)
    return [bool(weight.grad.any()) for weight in trainer.tools.engine.module.parameters()]


def test_a_micro_batch_without_pairs_has_the_loss_0_with_a_graph(tmp_path):
    """So that a rank without pairs takes part in the reduction of gradients."""
    for loss, found in run_ranks(1, _without_pairs, tmp_path)[0]:
        assert loss == 0.0 and len(found) > 10 and not any(found)


def _noisy(folder):
    class NoisyFactory(type(tiny_factory())):
        def create_model(self, config):
            model = super().create_model(config)
            model.model.layers[0].register_forward_hook(
                lambda module, inputs, output: output + torch.rand_like(output) if module.training else output
            )
            return model

    with pytest.raises(ConfigError, match="draws random numbers in its forward pass besides dropout"):
        make_trainer(DATA, folder, trainer_class=DPOTrainer, model=NoisyFactory(**tiny_factory().__dict__))


def test_a_model_that_draws_random_numbers_is_refused(tmp_path):
    run_ranks(1, _noisy, tmp_path)


def _dropout(folder):
    factory = tiny_factory(hf_config_kwargs={"attention_dropout": 0.5})
    rows = history(folder, model=factory, micro_batch_size=4)[0]
    return rows[1]["loss"]


def test_dropout_is_off(tmp_path):
    assert run_ranks(1, _dropout, tmp_path) == [pytest.approx(math.log(2), abs=1e-6)]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"beta": 0}, "beta: got 0, with which the loss does not depend on the answers"),
        ({"head_loss": "liger"}, "head_loss: got liger, whose kernel gives no log-probability per token"),
        ({"sequence_parallel_size": 2}, "sequence_parallel_size: got 2, but ranks that share sequences"),
    ],
)
def test_settings_that_pairs_cannot_have_are_refused(values, problem):
    with pytest.raises((ValueError, FieldError), match=problem):
        ORPOTrainer(**values)
