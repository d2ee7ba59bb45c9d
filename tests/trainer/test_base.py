"""The training loop: the schedule in optimizer steps, timing, callback events and stopping."""

from __future__ import annotations

import math
import time
from collections import Counter
from pathlib import Path

import pytest

from arctic_hydra.scheduler.linear import LinearScheduler
from arctic_hydra.trainer.sft import SFTTrainer
from tests.ranks import run_ranks
from tests.trainer.loop import documents, make_trainer, tiny_factory

DATA = documents([12] * 13, [4] * 13)
PEAK, WARMUP = 1e-2, 2


def _rates(folder, accumulations):
    """Return the horizon and the learning rates that were logged, for each accumulation."""
    found = []
    for accumulation in accumulations:
        scheduler = LinearScheduler(warmup_steps=WARMUP)
        settings = {"gradient_accumulation_steps": accumulation, "epochs": 2, "lr": PEAK, "scheduler": scheduler}
        trainer = make_trainer(DATA, folder, micro_batch_size=1, **settings)
        rows = []
        trainer._record = rows.append
        trainer.train()
        found.append((trainer.training_horizon, [row["lr"] for row in rows]))
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_schedule_ends_with_the_epochs_whatever_a_step_is_cut_into(ranks, tmp_path):
    """ArcticTraining counts micro-batches, so it covers half of the schedule at accumulation 2, and logs the next rate."""
    accumulations = (1, 2, 4)
    for found in run_ranks(ranks, _rates, tmp_path, accumulations):
        for accumulation, (horizon, rates) in zip(accumulations, found, strict=True):
            assert horizon == 2 * math.ceil(len(DATA) / (accumulation * ranks))
            rising = [PEAK * step / WARMUP for step in range(1, WARMUP + 1)]
            end = horizon + 1  # where the rate would be 0
            falling = [PEAK * (end - step) / (end - WARMUP) for step in range(WARMUP + 1, end)]
            assert rates == pytest.approx(rising + falling, rel=1e-6, abs=1e-12)
            assert rates[-1] > 0, "the last step counts"


def _master(engine, parameter):
    """Return the parameter's fp32 master values; a single rank holds all of them."""
    from deepspeed.utils import safe_get_full_fp32_param

    if (value := safe_get_full_fp32_param(parameter)) is not None:
        return value
    optimizer = engine.optimizer  # ZeRO-0 keeps the masters in the order of the parameter groups
    pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return next(master for group in pairs for half, master in zip(*group, strict=True) if half is parameter).detach()


def _small_steps(folder, stages):
    """Train in bf16 at a rate far below bf16's resolution; return how much masters and weights of the norms changed."""
    from arctic_hydra import distributed

    moved = []
    for stage in stages:
        trainer = make_trainer(DATA, folder, stage=stage, lr=1e-6, model=tiny_factory(dtype="bf16"), epochs=2)
        trainer.train()
        for name, parameter in trainer.tools.engine.module.named_parameters():
            if name == "model.norm.weight":  # starts at 1, where the next bf16 number is 0.004 away
                master = _master(trainer.tools.engine, parameter)
                with distributed.gathered(parameter):
                    weights = parameter.detach().float()
                    moved.append(((master - 1).abs().mean().item(), (weights - 1).abs().max().item()))
    return moved


def test_steps_below_the_resolution_of_bf16_add_up_in_fp32(tmp_path):
    [moved] = run_ranks(1, _small_steps, tmp_path, (0, 1, 2, 3))
    assert len(moved) == 4
    for masters, weights in moved:
        assert masters > 5e-6, "26 steps of 1e-6"
        assert weights == 0.0, "otherwise the test proves nothing"


class SlowSaves:
    """A slow checkpoint engine that saves after every step."""

    do_checkpoint, save_ready, checkpoint_dir, can_resume = True, False, Path("saves"), True

    def check_evaluation(self, evaluation):
        pass

    def save(self):
        time.sleep(0.05)

    def finish_save(self):
        pass


def _clocked(folder):
    trainer = make_trainer(DATA, folder, eval_data=DATA[:1], eval_frequency=1, eval_at_start=False, train_iters=6)
    rows, sums = [], trainer.evaluation_sums
    trainer._record = rows.append
    trainer.evaluation_sums = lambda *arguments: (time.sleep(0.05), sums(*arguments))[1]
    trainer.tools.checkpoints.append(SlowSaves())
    start = time.monotonic()
    trainer.train()
    steps = [row["step_seconds"] for row in rows if "loss" in row]
    return time.monotonic() - start, steps


def test_evaluation_and_saving_are_excluded_from_the_step_time(tmp_path):
    [(seconds, steps)] = run_ranks(1, _clocked, tmp_path)
    assert len(steps) == 6
    assert sum(steps) <= seconds - 6 * (0.05 + 0.05)


class Polite(SFTTrainer):
    """Overrides the loop's methods and calls the original in each."""

    def train(self):
        super().train()

    def epoch(self):
        super().epoch()

    def step(self, window, counts):
        super().step(window, counts)

    def loss(self, batch):
        return super().loss(batch)

    def evaluate(self):
        return super().evaluate()

    def checkpoint(self):
        super().checkpoint()


def _heard(folder):
    trainer = make_trainer(DATA, folder, eval_data=DATA[:1], gradient_accumulation_steps=4, eval_at_start=False)
    trainer.__class__ = Polite
    heard = Counter()
    trainer.attach(trainer)
    trainer.notify = lambda event, component, facts: heard.update([event])
    trainer.train()
    return heard


def test_methods_that_call_the_original_fire_each_event_once(tmp_path):
    [heard] = run_ranks(1, _heard, tmp_path)
    counts = {"train": 1, "epoch": 1, "step": 4, "loss": 13, "backward": 13, "evaluate": 1}
    pairs = {f"{name}_{moment}": count for name, count in counts.items() for moment in ("start", "end")}
    assert heard == {**pairs, "log": 5}, "four steps and one evaluation"


def _killed(folder):
    trainer = make_trainer(DATA, folder, micro_batch_size=1)
    trainer._record = lambda row: (folder / "STOP").touch() if trainer.world.is_main and row["step"] == 2 else None
    trainer.train()
    return trainer.global_step, trainer.stop_reason


def test_a_kill_switch_stops_all_ranks_at_one_step_and_is_cleared(tmp_path):
    outcomes = run_ranks(2, _killed, tmp_path)
    assert [step for step, _ in outcomes] == [2, 2]
    assert outcomes[0][1] == outcomes[1][1] and "found the kill switch" in outcomes[0][1]
    assert not (tmp_path / "STOP").exists()
