"""An error before the optimizer step leaves a checkpoint of the last whole step, from which a run resumes bit for bit."""

from __future__ import annotations

import json
import time
from copy import deepcopy

import pytest
import torch

from arctic_hydra import distributed
from arctic_hydra.checkpoint.deepspeed import DeepSpeedCheckpoint
from tests.ranks import run_ranks
from tests.trainer.loop import documents, full_weights, make_trainer, tiny_factory

DATA = documents([20, 60, 10, 25, 12, 9, 31, 8] * 2, [1, 50, 7, 3, 7, 8, 20, 2] * 2)


class _Counter:
    """The state of a callback that counts losses."""

    value = 0
    only_observes = False

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def _trained(folder, stage, fails_at=None, moment="loss"):
    """Train from the existing checkpoint; return the losses by step, the weights, and the notes of an error."""
    model = tiny_factory(hf_config_kwargs={"attention_dropout": 0.1}, attn_implementation="eager")
    settings = {"gradient_accumulation_steps": 2, "eval_at_start": False, "spike_sigmas": 50.0}
    trainer = make_trainer(DATA, folder, stage=stage, model=model, packed=False, **settings)
    checkpoint, counter = DeepSpeedCheckpoint(), _Counter()
    trainer.tools.state.callbacks = {"counter": counter}
    checkpoint.bind(trainer.tools.state)
    resumed = checkpoint.load()
    trainer.setup(trainer.tools)
    trainer.tools.checkpoints.append(checkpoint)
    trainer.tools.log_interval = 3
    rows, calls, loss, optimizer_step = [], [], trainer.loss, trainer.optimizer_step

    def failing(batch):
        calls.append(trainer.global_step)
        counter.value += 1
        result = loss(batch)
        if moment == "loss" and calls.count(fails_at) == 2:
            raise ZeroDivisionError("the user's own error")
        return result

    def failing_step():
        optimizer_step()
        if trainer.global_step == fails_at:
            raise ZeroDivisionError("the user's own error")

    def own_step(window, counts):
        trainer.forward_backward(window, counts["supervised"])
        trainer.tools.engine.step()
        if trainer.global_step == fails_at:
            raise ZeroDivisionError("the user's own error")
        trainer.finish_step(window)

    def failing_evaluation():
        raise ZeroDivisionError("the user's own error")

    trainer._record = rows.append
    trainer.loss, trainer.probe = failing, lambda: None  # which calls `loss` too
    if moment == "own step":
        trainer.step = own_step
    elif moment == "optimizer step":
        trainer.optimizer_step = failing_step
    elif moment.startswith("evaluation"):
        trainer.evaluate = failing_evaluation
    if moment == "evaluation of other weights":
        trainer.listeners = lambda event: [counter] if event == "evaluate_start" else []
    notes = []
    try:
        trainer.train()
    except ZeroDivisionError as error:
        trainer.save_after(error)
        notes = error.__notes__
    losses = {row["step"]: row["loss"] for row in rows}
    return losses, full_weights(trainer) if not notes else {}, notes, resumed, counter.value


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 2), (2, 3)])
def test_an_error_on_all_ranks_in_a_step_loses_nothing(ranks, stage, tmp_path):
    expected, weights, *_, count = run_ranks(ranks, _trained, tmp_path / "straight", stage)[0]
    for first, _, notes, *_ in run_ranks(ranks, _trained, tmp_path / "failed", stage, 2):
        assert notes == ["step 2, the last whole one, is saved; the same command resumes from it"]
        assert set(first) == set()
    manifest = json.loads((tmp_path / "failed" / "checkpoints" / "step-00000002" / "manifest.json").read_text())
    assert manifest["saved_after_error"] == "ZeroDivisionError: the user's own error"
    losses, again, _, resumed, counted = run_ranks(ranks, _trained, tmp_path / "failed", stage)[0]
    assert resumed.name == "step-00000002"
    assert counted == count, "callbacks are as they were at the start of the step, too"
    assert losses == expected, "including the line over steps before and after the error"
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_an_error_after_the_optimizer_step_or_in_the_first_step_saves_nothing(tmp_path):
    for moment in ("optimizer step", "own step"):
        [(_, _, notes, *_)] = run_ranks(1, _trained, tmp_path, 0, 2, moment)
        assert notes == [
            "nothing was saved, because the error was not before the optimizer step of a step; there is no checkpoint, so the same "
            "command starts over"
        ]
    [(_, _, notes, *_)] = run_ranks(1, _trained, tmp_path, 0, 0)
    assert notes == ["nothing was saved, because no step is completed; the same command starts over"]
    assert not (tmp_path / "checkpoints").exists()


def test_an_error_in_the_last_evaluation_loses_no_step(tmp_path):
    [(_, _, [nothing], *_)] = run_ranks(1, _trained, tmp_path, 0, None, "evaluation of other weights")
    assert nothing.startswith("nothing was saved, because the error was not before the optimizer step")
    [(expected, _, [note], *_)] = run_ranks(1, _trained, tmp_path, 0, None, "evaluation")
    last = max(expected)
    assert note == f"step {last}, the last whole one, is saved; the same command resumes from it"
    [(again, _, notes, resumed, _)] = run_ranks(1, _trained, tmp_path, 0)
    assert (again, notes, resumed.name) == ({}, [], f"step-{last:08}")


def _failures(rank_places, late_rank):
    import torch.distributed as dist

    rank = dist.get_rank()
    if rank == late_rank:
        time.sleep(1.5)
    found = distributed.failed_alike(rank_places[rank], 0.5 if late_rank is not None else 10.0)
    if found:
        dist.barrier()
    return found


@pytest.mark.parametrize(
    ("places", "late", "alike"), [(("2", "2"), None, True), (("2", "3"), None, False), (("2", "2"), 1, False)]
)
def test_ranks_agree_on_whether_they_failed_alike(places, late, alike):
    assert run_ranks(2, _failures, places, late) == [alike, alike]


def _one_waits():
    import torch.distributed as dist

    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(1), async_op=True)  # no other rank joins it
    return distributed.failed_alike("2", 10.0)


def test_a_collective_of_one_rank_alone_is_noticed():
    assert run_ranks(2, _one_waits) == [False, False]


def _after_a_critic_changed(folder, copies):
    """Let a step that has trained a critic fail before it trains the model; return the notes and the critic in the checkpoint."""
    trainer, checkpoint = make_trainer(DATA, folder, eval_at_start=False), DeepSpeedCheckpoint()
    critic = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1.0)

    class Critic(_Counter):
        def state_dict(self):
            state = {"net": critic.state_dict(), "steps": [trainer.global_step]}
            return deepcopy(state) if copies else state

        def load_state_dict(self, state):
            critic.load_state_dict(state["net"])

    trainer.tools.state.callbacks = {"critic": Critic()}
    checkpoint.bind(trainer.tools.state)
    trainer.setup(trainer.tools)
    trainer.tools.checkpoints.append(checkpoint)
    step, at_start = trainer.step, []

    def own_step(window, counts):
        at_start.append(critic.weight.detach().clone())
        critic(torch.ones(2)).sum().backward()
        optimizer.step()
        if trainer.global_step == 2:
            raise ZeroDivisionError("the user's own error")
        step(window, counts)

    trainer.step = own_step
    with pytest.raises(ZeroDivisionError) as caught:
        trainer.train()
    trainer.save_after(caught.value)
    return caught.value.__notes__, torch.equal(critic.weight, at_start[-1])


def test_a_second_model_that_the_step_had_changed_is_as_at_its_start_or_nothing_is_saved(tmp_path):
    [(notes, _)] = run_ranks(1, _after_a_critic_changed, tmp_path / "changed", False)
    assert notes == [
        "nothing was saved, because the step had changed tensors in the state of critic before the error; there is no checkpoint, so "
        "the same command starts over"
    ]
    assert not (tmp_path / "changed" / "checkpoints").exists()
    [(notes, as_at_start)] = run_ranks(1, _after_a_critic_changed, tmp_path / "copied", True)
    assert notes == ["step 2, the last whole one, is saved; the same command resumes from it"] and as_at_start
