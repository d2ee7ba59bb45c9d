"""Background saves: what is copied, when the checkpoint appears, and how failures are handled."""

from __future__ import annotations

import json
import resource
import signal
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.errors import CheckpointError

ROOT = "checkpoints"


def published(run_dir: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run_dir / ROOT).glob("step-*"))


def test_memory_that_a_save_had_no_use_for_is_freed(libraries) -> None:
    """As that of arrays of a stream, which have another size at each save."""
    from arctic_hydra.checkpoint.background import HostBuffers

    buffers = HostBuffers()
    for size in range(1, 50):
        buffers.copy([libraries.torch.zeros(size), libraries.torch.zeros(100)])
        buffers.release()
    assert sorted(buffers._free) == [49 * 4, 400]


@contextmanager
def full_disk():
    """Limit the files of this process to 20 kB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_copy_is_deep_keeps_shared_storage_and_reuses_its_memory(libraries) -> None:
    from arctic_hydra.checkpoint.background import HostBuffers

    torch, buffers = libraries.torch, HostBuffers()
    flat = torch.arange(6.0)
    module = OrderedDict(first=flat[:2], second=flat[2:].view(2, 2).t())
    module._metadata = {"version": 1}  # type: ignore[attr-defined]  what a state_dict carries
    groups = [{"lr": 0.1}]
    contents = {"module": module, "groups": groups, "again": groups, "shape": torch.Size([2, 3]), "pair": (1, flat)}
    copied = buffers.copy(contents)
    flat.zero_()
    groups[0]["lr"] = 0.2
    assert copied["module"]["first"].tolist() == [0.0, 1.0]
    assert copied["module"]["second"].tolist() == [[2.0, 4.0], [3.0, 5.0]]
    assert type(copied["module"]) is OrderedDict and copied["module"]._metadata == {"version": 1}
    assert copied["groups"] == [{"lr": 0.1}] and copied["again"] is copied["groups"]
    assert copied["shape"] == torch.Size([2, 3]) and type(copied["shape"]) is torch.Size
    where = {value.untyped_storage().data_ptr() for value in (*copied["module"].values(), copied["pair"][1])}
    assert len(where) == 1
    buffers.release()
    assert buffers.copy(flat).untyped_storage().data_ptr() in where


@pytest.mark.parametrize("options", [dict(zero=0), dict(zero=2, bf16=True), dict(zero=3, lora=True)])
def test_the_files_are_those_of_a_synchronous_save(options, in_ranks, lab, tmp_path) -> None:
    def run(rank: int) -> Any:
        from arctic_hydra.checkpoint.writer import load_tensors

        state = lab.start(tmp_path, rank, **options)
        lab.train(state, 1)
        saved = []
        for asynchronous in (False, True):
            place = str(tmp_path / str(asynchronous))
            checkpoint = lab.checkpoint(state, asynchronous=asynchronous, output_dir=place)
            path = checkpoint.save()
            checkpoint.finish_save()
            files = sorted(path.glob("*.pt"))
            saved.append({file.name: (lab.hash(load_tensors(file)), file.stat().st_size) for file in files})
        return saved

    [(at_once, beside)] = in_ranks(1, run)
    assert {name: content for name, (content, _) in beside.items()} == {
        name: content for name, (content, _) in at_once.items()
    }
    assert all(beside[name][1] <= at_once[name][1] for name in at_once), "shared storage is written once"


def test_the_manifest_describes_the_saved_step(in_ranks, lab, tmp_path) -> None:
    """Counters, evaluation, losses and log lengths are those of the save, although all change before it is written."""
    log = tmp_path / "metrics.jsonl"

    def run(rank: int) -> Any:
        state = lab.start(tmp_path, rank, zero=2, logs=[log], evaluation={"step": 1, "eval/loss": 2.0})
        state.recent_losses = [1.0]
        log.write_text("step 1\n")
        lab.train(state, 1)
        checkpoint = lab.checkpoint(state, asynchronous=True, keep_best=1)
        checkpoint.save()
        lab.train(state, 1)
        state.evaluation["eval/loss"] = 9.0
        state.recent_losses.append(9.0)
        log.write_text("step 1\nstep 2\n")
        checkpoint.finish_save()
        return json.loads((tmp_path / ROOT / "step-00000001" / "manifest.json").read_text())

    [manifest] = in_ranks(1, run)
    assert (manifest["step"], manifest["progress"]["global_step"], manifest["progress"]["tokens"]) == (1, 1, 16)
    assert manifest["evaluation"] == {"step": 1, "eval/loss": 2.0}
    assert manifest["metric"] == {"name": "eval/loss", "value": 2.0, "rank_by": 2.0}
    assert manifest["recent_losses"] == [1.0]
    assert manifest["log_offsets"] == {"metrics.jsonl": len("step 1\n")}


def test_a_save_waits_for_the_previous_one_and_prunes(in_ranks, lab, tmp_path):
    def run(rank: int) -> list[list[int]]:
        state, seen = lab.start(tmp_path, rank, zero=2, world_size=2), []
        checkpoint = lab.checkpoint(state, asynchronous=True, keep_last=1, keep_best=1)
        for loss in (3.0, 1.0, 2.0, 4.0):
            lab.train(state, 1)
            state.evaluation = {"step": state.progress.global_step, "eval/loss": loss}
            checkpoint.save()
            seen.append(published(tmp_path))
        checkpoint.finish_save()
        assert not checkpoint.save_ready
        return [*seen, published(tmp_path)]

    assert in_ranks(2, run) == [[[], [1], [2], [2, 3], [2, 4]]] * 2


def test_a_run_that_stops_or_ends_saves_synchronously(in_ranks, lab, tmp_path) -> None:
    def run(rank: int) -> Any:
        state = lab.start(tmp_path, rank, zero=0)
        checkpoint = lab.checkpoint(state, asynchronous=True)
        seen = []
        for flag in ("stopping", "training_finished"):
            lab.train(state, 1)
            setattr(state, flag, True)
            checkpoint.save()
            seen.append(published(tmp_path))
            setattr(state, flag, False)
        return seen

    assert in_ranks(1, run) == [[[1], [1, 2]]]


def test_after_a_failed_save_a_stopping_run_saves_the_step_again(in_ranks, lab, tmp_path, caplog):
    def run(rank: int) -> Any:
        state = lab.start(tmp_path, rank, zero=2)
        checkpoint = lab.checkpoint(state, asynchronous=True, on_error="warn", save_every_n_steps=1)
        lab.train(state, 1)
        with full_disk():
            checkpoint.save()
            assert not checkpoint.do_checkpoint, "the step is being saved"
            checkpoint.finish_save()
        asked = checkpoint.do_checkpoint
        state.stopping = True
        checkpoint.save()
        return asked, published(tmp_path), caplog.text

    [(asked, steps, text)] = in_ranks(1, run)
    assert "TRAINING CONTINUES WITHOUT A CHECKPOINT of step 1" in text and "File too large" in text
    assert asked and steps == [1]


def test_a_failed_save_raises_at_the_next_save_on_all_ranks(in_ranks, lab, tmp_path) -> None:
    def run(rank: int) -> str:
        state = lab.start(tmp_path, rank, zero=2, world_size=2)
        checkpoint = lab.checkpoint(state, asynchronous=True)
        lab.train(state, 1)
        if rank == 1:
            with full_disk():
                checkpoint.save()
                checkpoint._pending.wait()
        else:
            checkpoint.save()
        lab.train(state, 1)
        with pytest.raises(CheckpointError) as caught:
            checkpoint.save()
        return str(caught.value)

    first, second = in_ranks(2, run)
    assert first == second
    assert "the checkpoint of step 1" in first and "rank 1: OSError: [Errno 27] File too large" in first
    assert published(tmp_path) == []
