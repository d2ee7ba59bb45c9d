"""ORPO: fine-tuning on the chosen answers, by tokens of the step, plus the odds ratio, by pairs."""

from __future__ import annotations

import copy
import logging

import pytest
import torch

from arctic_hydra.converter.base import ModelConverter
from arctic_hydra.trainer.preference.orpo import ORPOTrainer
from tests.ranks import run_ranks
from tests.trainer.loop import APART, distance, make_trainer, pairs
from tests.trainer.preference.test_base import cut_history, logps

DATA = pairs([(3, 9), (12, 1), (5, 5), (20, 2)])


def plain_rows(model):
    """Return for each pair the log-probabilities of the tokens of its chosen and its rejected answer."""
    return [[logps(model, *side) for side in pair] for pair in DATA]


def first_step(folder, trainer_class, settings):
    """Return the first log line, and the log-probabilities of the model before that step."""
    trainer = make_trainer(
        DATA, folder, trainer_class=trainer_class, micro_batch_size=1, gradient_accumulation_steps=4, **settings
    )
    rows, model = [], copy.deepcopy(trainer.tools.engine.module)
    trainer._record = rows.append
    trainer.train()
    with torch.no_grad():
        return rows[0], plain_rows(model)


class OwnStep(ORPOTrainer):
    """A step of its own, from the public pieces."""

    def step(self, window, counts):
        self.forward_backward(window, counts["units"])
        self.optimizer_step()
        self.finish_step(window)


class WithOwnLoss(ModelConverter):
    """Gives the model a loss of its own, as a spec does."""

    def convert(self, model):
        model.token_loss = torch.nn.functional.cross_entropy
        return model


def warnings_of(folder, kind, data):
    lines = []
    logging.getLogger("arctic_hydra.trainer").warning = lambda text, *_: lines.append(text)
    make_trainer(data, folder, trainer_class=kind, converters=[WithOwnLoss()])
    return [line for line in lines if "own loss" in line]


def test_the_loss_that_a_model_brings_is_said_to_be_unused(tmp_path):
    [[line]] = run_ranks(1, warnings_of, tmp_path, ORPOTrainer, DATA)
    assert line == "model.spec: the model's own loss is not used, because the trainer has another one"


def test_a_step_of_ones_own_has_the_same_loss(tmp_path):
    rows = [run_ranks(1, first_step, tmp_path, kind, {})[0][0] for kind in (ORPOTrainer, OwnStep)]
    assert rows[0]["loss"] == rows[1]["loss"] and rows[0]["grad_norm"] == rows[1]["grad_norm"]


def test_the_loss_is_that_of_the_paper(tmp_path):
    row, scores = run_ranks(1, first_step, tmp_path, ORPOTrainer, {"beta": 0.3})[0]
    nll = -float(torch.cat([chosen for chosen, _ in scores]).mean())
    odds = []
    for sides in scores:
        chosen, rejected = (side.mean().double() for side in sides)
        odds.append(chosen - rejected - (torch.log1p(-chosen.exp()) - torch.log1p(-rejected.exp())))
    ratio = -float(torch.nn.functional.logsigmoid(torch.stack(odds)).mean())
    assert row["nll_loss"] == pytest.approx(nll, rel=1e-6)
    assert row["loss"] == pytest.approx(nll + 0.3 * ratio, rel=1e-6)
    means = torch.tensor([[float(side.mean()) for side in sides] for sides in scores])
    assert row["rewards/chosen"] == pytest.approx(0.3 * float(means[:, 0].mean()), rel=1e-5)
    assert row["log_odds_ratio"] == pytest.approx(-ratio, rel=1e-5)
    assert row["log_odds_chosen"] == pytest.approx(float(torch.stack(odds).mean()), rel=1e-4, abs=1e-6)
    assert row["rewards/accuracies"] == float((means[:, 0] > means[:, 1]).float().mean())


def test_two_ranks_with_padded_rows_at_zero_3_end_where_one_rank_with_packs_does(tmp_path):
    cut = {"micro_batch_size": 1, "gradient_accumulation_steps": 2, "stage": 3, "packed": False}
    [(expected, weights, moved)] = run_ranks(
        1, cut_history, tmp_path, {"trainer_class": ORPOTrainer, "micro_batch_size": 4}
    )
    for rows, ours, _ in run_ranks(2, cut_history, tmp_path, {"trainer_class": ORPOTrainer, **cut}):
        assert [row.get("loss") for row in rows] == pytest.approx([row.get("loss") for row in expected], rel=1e-6)
        for name in ("eval/log_odds_ratio", "eval/log_odds_chosen"):
            assert [row[name] for row in rows if name in row] == pytest.approx(
                [row[name] for row in expected if name in row], rel=1e-4, abs=1e-5
            )
        assert rows[-1].keys() > {"eval/log_odds_ratio", "eval/log_odds_chosen"}
        assert distance(ours, weights) < APART * moved
