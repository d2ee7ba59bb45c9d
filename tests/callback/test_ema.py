"""The average of the weights: right at every ZeRO stage and precision, used by evaluation and exports, resumed bit for bit."""

from __future__ import annotations

import pytest
import torch

from arctic_hydra.callback.base import Callback
from arctic_hydra.callback.ema import ExponentialMovingAverage
from tests.converter import lab
from tests.ranks import run_ranks
from tests.trainer.loop import documents, full_weights, make_trainer, tiny_factory

DATA = documents([12] * 8, [4] * 8)
DECAY = 0.7


class Watch(Callback):
    """Keeps the optimizer's and the model's weights at each moment of interest."""

    def __init__(self):
        self.after, self.evaluated, self.shown = [], [], []

    def on_train_start(self, trainer, facts):
        self.after.append(_masters(trainer))

    def on_step_end(self, trainer, facts):
        self.after.append(_masters(trainer))

    def on_evaluate_start(self, trainer, facts):
        self.evaluated.append(_masters(trainer))
        self.shown.append(full_weights(trainer))


def _masters(trainer):
    with trainer.weights(".") as weights:
        return {name: value.cpu() for name, value in weights.items()}


def _averaged(folder, stage, dtype, with_average):
    settings = {"stage": stage, "model": tiny_factory(dtype=dtype), "eval_data": DATA[:2], "eval_frequency": 2}
    trainer = make_trainer(DATA, folder, eval_at_start=False, eval_at_end=False, **settings)
    watch, average = Watch(), ExponentialMovingAverage(decay=DECAY)
    average.attach(trainer)
    trainer.attach(trainer)
    trainer.set_callbacks([average, watch] if with_average else [watch], trainer.world)
    trainer.train()
    return watch.after, watch.evaluated, watch.shown, _masters(trainer), full_weights(trainer)


def _all_stages(folder, dtype):
    return [[_averaged(folder, stage, dtype, which) for which in (True, False)] for stage in (0, 1, 2, 3)]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_average_is_that_of_the_steps_and_training_is_unchanged(dtype, tmp_path):
    precision = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    for stages in run_ranks(2, _all_stages, tmp_path, dtype):
        for (after, evaluated, shown, last, model), (*_, plain_last, plain_model) in stages:
            assert len(after) == 5 and len(evaluated) == 2
            for name, average in after[0].items():
                for index, step in enumerate(after[1:], start=1):
                    average = DECAY * average + (1 - DECAY) * step[name]
                    if index % 2 == 0:
                        used, seen = evaluated[index // 2 - 1][name], shown[index // 2 - 1][name]
                        assert torch.allclose(used, average, atol=1e-7), name
                        assert torch.equal(seen, used.to(precision).float())
                        assert not torch.equal(used, step[name]), "otherwise the test proves nothing"
                assert torch.equal(last[name], plain_last[name]), "the average leaves training alone"
                assert torch.equal(model[name], plain_model[name])


RUN = (
    "callback=[ema] callback.ema.decay=0.6 checkpoint=[deepspeed,hf] trainer.train_iters=4 checkpoint.deepspeed.keep_last=null "
    "checkpoint.hf.save_every_n_steps=2"
)


def _exports(run_dir):
    from safetensors.torch import load_file

    return {path.parent.name: load_file(path) for path in run_dir.glob("export*/*.safetensors")}


def _largest_difference(one, other):
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


@pytest.mark.parametrize(("stage", "more"), [(0, "model.dtype=bf16"), (2, "peft=lora"), (3, "")])
def test_a_resumed_run_exports_the_same_average(stage, more, tmp_path):
    lab.warm()
    model = lab.save_model(tmp_path / "model")
    arguments = f"{RUN} ranks=2 deepspeed=zero{stage} {more}"
    run_ranks(2, lab.perform, arguments, tmp_path / "whole", model)
    for _ in ("stopped", "resumed"):
        run_ranks(
            2,
            lab.perform,
            f"{arguments} {'trainer.exit_iteration=2' if _ == 'stopped' else ''}",
            tmp_path / "parts",
            model,
        )
    whole, parts = _exports(tmp_path / "whole"), _exports(tmp_path / "parts")
    assert sorted(whole) == ["export", "export-step-00000002"] == sorted(parts)
    for name, weights in whole.items():
        assert all(torch.equal(weights[key], parts[name][key]) for key in weights)
    if stage:  # on another number of ranks the average is divided again
        run_ranks(2, lab.perform, f"{arguments} trainer.exit_iteration=2", tmp_path / "moved", model)
        run_ranks(
            1, lab.perform, f"{arguments} ranks=1 trainer.gradient_accumulation_steps=2", tmp_path / "moved", model
        )
        assert _largest_difference(whole["export"], _exports(tmp_path / "moved")["export"]) < 1e-5
    run_ranks(2, lab.perform, f"{arguments} callback.ema.export=false", tmp_path / "trained", model)
    assert _largest_difference(whole["export"], _exports(tmp_path / "trained")["export"]) > 1e-3
