"""KTO: one step is one batch of rows, however it is cut, with one KL term, and equals a plain PyTorch loop."""

from __future__ import annotations

import copy

import pytest
import torch

from arctic_hydra.distributed import World
from arctic_hydra.errors import FieldError
from arctic_hydra.trainer.preference.kto import KTOTrainer
from arctic_hydra.trainer.preference.losses import kto
from tests.command import SMALLEST
from tests.ranks import run_ranks
from tests.trainer.loop import APART, TEN_STEPS, MemoryLoader, distance, labelled, make_trainer, trained
from tests.trainer.preference.test_base import logps
from tests.trainer.preference.test_dpo import json_lines, whole_and_in_parts

# Uneven on purpose: answers of other lengths, a last step with fewer rows than ranks and a single label.
ANSWERS = [(3, 9), (12, 1), (5, 5), (20, 2), (4, 8), (1, 1), (7, 3), (2, 6), (9, 9)]
DATA = labelled([(*lengths, row % 3 > 0) for row, lengths in enumerate(ANSWERS)])
HELD = labelled([(4, 2, True), (1, 7, False), (6, 6, True)], seed=1)
WEIGHTS = {"desirable_weight": 1.5, "undesirable_weight": 0.5, "beta": 0.3}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"beta": 0}, "beta: got 0, with which the loss does not depend on the answers"),
        ({"desirable_weight": 0}, "desirable_weight: got 0, with which desirable answers are not trained on"),
        ({"undesirable_weight": 0}, "undesirable_weight: got 0, with which undesirable answers"),
        ({"head_loss": "liger"}, "head_loss: got liger, whose kernel gives no log-probability per token"),
        ({"reference_path": "x", "reference": "copy"}, "reference: got copy, but reference_path names the reference"),
    ],
)
def test_impossible_settings_are_refused(values, problem):
    with pytest.raises((ValueError, FieldError), match=problem):
        KTOTrainer(**values)


def test_value_and_gradient_are_those_of_the_formula():
    gained = (4 * torch.randn(6, generator=torch.Generator().manual_seed(0))).requires_grad_()
    desirable, kl = torch.tensor([True, False, True, False, False, True]), torch.tensor(0.7)
    found = kto(gained, desirable, kl, 0.2)
    c, z = gained.double(), kl.double()
    expected = torch.where(desirable, 1 - 1 / (1 + torch.exp(-0.2 * (c - z))), 1 - 1 / (1 + torch.exp(-0.2 * (z - c))))
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
    ours, theirs = (torch.autograd.grad(values.sum(), gained)[0] for values in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    at_reference = kto(torch.zeros(6), desirable, torch.zeros(()), 0.2)
    torch.testing.assert_close(at_reference, torch.full((6,), 0.5), rtol=0, atol=1e-6)
    far = kto(torch.tensor([-3e4, 3e4]).requires_grad_(), torch.tensor([True, True]), torch.zeros(()), 1.0)
    assert far.tolist() == [1.0, 0.0] and far.isfinite().all()


def _history(folder, settings):
    settings = {**WEIGHTS, **TEN_STEPS, **settings}
    return trained(make_trainer(DATA, folder, trainer_class=KTOTrainer, eval_data=HELD, **settings))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run_ranks(1, _history, tmp_path_factory.mktemp("whole"), {"micro_batch_size": 4})[0]


CUTS = [
    (1, {"micro_batch_size": 1, "gradient_accumulation_steps": 4}),
    (1, {"micro_batch_size": 4, "packed": False}),
    (2, {"micro_batch_size": 1, "gradient_accumulation_steps": 2}),
    (2, {"micro_batch_size": 2, "stage": 3}),
]


@pytest.mark.parametrize(("ranks", "cut"), CUTS, ids=[f"{ranks}-{cut}" for ranks, cut in CUTS])
def test_losses_figures_and_weights_do_not_depend_on_the_cut(whole, tmp_path, ranks, cut):
    expected, weights, moved = whole
    steps = [row for row in expected if "loss" in row]
    assert len(steps) == 10 and any(row["kl"] > 0.01 for row in steps), steps
    assert "rewards/chosen" in steps[2] and "rewards/rejected" not in steps[2], "a step with one label"
    for rows, ours, _ in run_ranks(ranks, _history, tmp_path, cut):
        assert distance(ours, weights) < APART * moved
        for row, other in zip(rows, expected, strict=True):
            assert row.keys() == other.keys()
            for name in [name for name in row if name.split("/")[-1] in ("loss", "kl") or "/" in name]:
                tolerance = 1e-6 if name.endswith("loss") else 2e-5
                assert row[name] == pytest.approx(other[name], rel=tolerance, abs=tolerance), name
        for name, value in weights.items():
            torch.testing.assert_close(ours[name], value, atol=5e-5, rtol=0, msg=name)


def _plain(folder):
    """Return losses and KL terms of a plain loop over single documents with those of an evaluation, and the log lines."""
    trainer = make_trainer(
        DATA[:8],
        folder,
        trainer_class=KTOTrainer,
        micro_batch_size=4,
        eval_data=HELD,
        clipping=0.0,
        epochs=2,
        **WEIGHTS,
    )
    rows, model = [], copy.deepcopy(trainer.tools.engine.module)
    reference = copy.deepcopy(model).requires_grad_(False)
    trainer._record = rows.append
    trainer.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)

    def gained(document):
        return logps(model, *document).sum() - logps(reference, *document).sum()

    def losses(data):
        kl = torch.stack([gained(row.mismatched) for row in data]).mean().clamp(min=0).detach()
        signs = [(1.0, 1.5) if row.desirable else (-1.0, 0.5) for row in data]
        values = [
            weight * (1 - torch.sigmoid(sign * 0.3 * (gained(row.document) - kl)))
            for row, (sign, weight) in zip(data, signs, strict=True)
        ]
        return torch.stack(values).mean(), float(kl)

    found = []
    for step in range(4):
        value, kl = losses(DATA[4 * (step % 2) :][:4])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append((float(value), kl))
    with torch.no_grad():
        of_held = losses(HELD)
        rewards = [(row.desirable, 0.3 * float(gained(row.document))) for row in HELD]
    return found, (float(of_held[0]), of_held[1]), rewards, rows


def test_training_equals_a_plain_loop_over_single_documents(tmp_path):
    found, held, rewards, rows = run_ranks(1, _plain, tmp_path)[0]
    first, *steps, last = rows
    for name in ("eval/rewards/margins", "eval/kl"):
        assert first[name] == pytest.approx(0.0, abs=1e-6)
    assert [(row["loss"], row["kl"]) for row in steps] == [pytest.approx(pair, rel=1e-4, abs=1e-5) for pair in found]
    assert (
        steps[0]["loss"] == pytest.approx((2 * 1.5 + 2 * 0.5) / 4 / 2, abs=1e-6) and max(kl for _, kl in found) > 0.01
    ), found
    assert (last["eval/loss"], last["eval/kl"]) == pytest.approx(held, rel=1e-3, abs=1e-5)
    chosen, rejected = ([reward for label, reward in rewards if label is wanted] for wanted in (True, False))
    assert last["eval/rewards/chosen"] == pytest.approx(sum(chosen) / 2, rel=1e-3, abs=1e-4)
    assert last["eval/rewards/rejected"] == pytest.approx(sum(rejected), rel=1e-3, abs=1e-4)


def _by_source(folder):
    trainer = make_trainer(DATA[:4], folder, trainer_class=KTOTrainer, eval_data=HELD)
    both = next(MemoryLoader(HELD, 3, 1, World()).windows(0)).micro_batches[0]
    alone = [next(MemoryLoader(HELD[part], 3, 1, World()).windows(0)).micro_batches[0] for part in PARTS]
    both.source_K[both.document_K == 2] = 1
    trainer.prepare_evaluation(trainer.tools.eval_loader)
    trainer.tools.engine.eval()
    with torch.no_grad():
        return [trainer.evaluation_sums(batch, 1)[0] for batch in alone], trainer.evaluation_sums(both, 2)


PARTS = (slice(2), slice(2, 3))


def test_rows_are_evaluated_under_the_source_that_they_come_from(tmp_path):
    alone, both = run_ranks(1, _by_source, tmp_path)[0]
    torch.testing.assert_close(both, torch.stack(alone), equal_nan=True, rtol=1e-5, atol=1e-5)
    assert both[:, 2].tolist() == [2.0, 1.0]


def _adapters(folder):
    """Train with an adapter, the reference being the model without it, or a copy."""
    from arctic_hydra.converter.peft.lora import LoraFactory

    settings = [{"reference": kind, "converters": [LoraFactory(r=4)]} for kind in ("adapter_off", "copy")]
    return [_history(folder, {"micro_batch_size": 4, **values}) for values in settings]


def test_a_model_without_its_adapter_is_the_reference_that_a_copy_is(tmp_path):
    (rows, weights, _), (others, copied, _) = run_ranks(1, _adapters, tmp_path)[0]
    assert [row.get("loss") for row in rows] == pytest.approx([row.get("loss") for row in others], rel=1e-6)
    for name, value in copied.items():
        torch.testing.assert_close(weights[name], value, atol=1e-6, rtol=0, msg=name)


ROWS = [
    {"prompt": f"What is {n} plus {n}?", "completion": f"{2 * n}." if n % 2 else "Who knows?" * (n % 3), "label": n % 2}
    for n in range(32)
] + [{"prompt": f"Name {n}.", "chosen": f"{n}", "rejected": "No."} for n in range(4)]
RECIPE = (
    f"experiment=kto model=tiny tokenizer=bundled data=unpaired {SMALLEST} data.sources.unpaired.path=rows.jsonl "
    "tracking=[] log.interval=1 trainer.epochs=2 trainer.micro_batch_size=1 trainer.gradient_accumulation_steps=1 "
    "trainer.eval_frequency=0 data.overlong=drop data.train_eval_split=[0.8,0.2] checkpoint.deepspeed.save_every_n_steps=0 name=r"
)


def test_the_recipe_stops_and_resumes_bit_for_bit(tmp_path):
    whole = whole_and_in_parts(tmp_path, RECIPE, {"rows.jsonl": json_lines(ROWS)}, 3, figures=["kl"])
    assert whole[0]["eval/loss"] == pytest.approx(0.5, abs=1e-6) and whole[-1]["eval/rewards/margins"] != 0
