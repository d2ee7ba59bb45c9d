"""The average of the weights: right at every ZeRO stage and precision, used by evaluation and exports, resumed bit for bit."""

from __future__ import annotations

import shutil

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
    "callback=[ema] callback.ema.decay=0.6 checkpoint=[deepspeed,hf] trainer.train_iters=3 checkpoint.deepspeed.keep_last=null "
    "checkpoint.deepspeed.save_end_of_training=true data.eval_sources.chat.sample_count=60 trainer.eval_at_start=false ranks=2"
)


def _exported(run_dir, name="export"):
    from safetensors.torch import load_file

    [path] = (run_dir / name).glob("*.safetensors")
    return load_file(path)


def _largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def _perform(ranks, arguments, run_dir, model):
    return run_ranks(ranks, lab.perform, arguments, run_dir, model)[0]


@pytest.mark.parametrize(("stage", "more"), [(0, "model.dtype=bf16"), (2, "peft=lora"), (3, "")])
def test_a_resumed_run_exports_the_same_average_and_so_do_the_tasks(stage, more, tmp_path):
    lab.warm()
    model = lab.save_model(tmp_path / "model")
    arguments = f"{RUN} deepspeed=zero{stage} {more}"
    whole = _perform(2, arguments, tmp_path / "whole", model)
    expected = _exported(tmp_path / "whole")
    _perform(2, f"{arguments} trainer.exit_iteration=2", tmp_path / "parts", model)
    if stage == 3:  # on another number of ranks the average is divided again
        shutil.copytree(tmp_path / "parts", tmp_path / "moved")
        _perform(1, f"{arguments} ranks=1 trainer.gradient_accumulation_steps=2", tmp_path / "moved", model)
        assert _largest_difference(_exported(tmp_path / "moved"), expected) < 1e-5
    resumed = _perform(2, arguments, tmp_path / "parts", model)
    assert _largest_difference(_exported(tmp_path / "parts"), expected) == 0.0
    assert resumed["last_evaluation"] == whole["last_evaluation"]

    _perform(1, f"{arguments} task=export", tmp_path / "whole" / "task-export", model)
    assert _largest_difference(_exported(tmp_path / "whole", "export-step-00000003"), expected) == 0.0
    evaluated = _perform(2, f"{arguments} task=evaluate", tmp_path / "whole" / "task-evaluate", model)
    assert evaluated["eval/loss"] == pytest.approx(whole["last_evaluation"]["eval/loss"], rel=1e-6)
    chosen = f"{arguments} callback.ema.export=false task=export checkpoint.hf.save_name=trained"
    _perform(1, chosen, tmp_path / "whole" / "task-trained", model)
    assert _largest_difference(_exported(tmp_path / "whole", "trained-step-00000003"), expected) > 1e-3
