"""The `deepspeed` checkpoint engine with real DeepSpeed engines."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import random
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arctic_hydra.checkpoint.deepspeed import DeepSpeedCheckpoint
from arctic_hydra.distributed import World
from arctic_hydra.errors import CheckpointError

ROOT = "checkpoints"


@contextmanager
def held_back_writes() -> Iterator[Callable[[], None]]:
    """Block all writes to checkpoint files until the yielded function is called."""
    from arctic_hydra.checkpoint import files

    gate, write = threading.Event(), files.HashingWriter.write

    def held_back(self: Any, data: Any) -> int:
        gate.wait()
        return write(self, data)

    files.HashingWriter.write = held_back
    try:
        yield gate.set
    finally:
        files.HashingWriter.write = write


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def message(action: Any) -> str:
    """Return the text of the CheckpointError that `action` must raise."""
    with pytest.raises(CheckpointError) as caught:
        action()
    return str(caught.value)


CASES = [
    pytest.param(1, dict(zero=0), id="zero0"),
    pytest.param(1, dict(zero=1), id="zero1"),
    pytest.param(1, dict(zero=2), id="zero2"),
    pytest.param(1, dict(zero=3), id="zero3"),
    pytest.param(1, dict(zero=2, bf16=True, gas=2), id="zero2-bf16-accumulated"),
    pytest.param(2, dict(zero=2, gas=2), id="zero2-two-ranks-accumulated"),
    pytest.param(2, dict(zero=3, bf16=True), id="zero3-two-ranks-bf16"),
    pytest.param(2, dict(zero=3), id="zero3-two-ranks"),
    pytest.param(1, dict(zero=0, bf16=True), id="zero0-bf16"),
]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(("world_size", "options"), CASES)
def test_resume_in_new_processes_is_bit_exact(world_size, options, asynchronous, in_ranks, lab, tmp_path) -> None:
    """Weights, optimizer, learning rates, counters and the next draws of every rank, dropout on.

    An asynchronous save writes its first byte only three steps later, so it must have copied its contents.
    """
    options = {"world_size": world_size, **options}

    def straight(rank: int) -> Any:
        state = lab.start(tmp_path, rank, **options)
        lab.train(state, 2)
        with held_back_writes() if asynchronous else nullcontext() as go_on:
            checkpoint = lab.checkpoint(state, asynchronous=asynchronous)
            path = checkpoint.save()
            saved = lab.digest(state)
            lab.train(state, 3)
            if asynchronous:
                assert not path.exists() and not checkpoint.save_ready
                go_on()
                checkpoint.finish_save()
        return path, saved, lab.digest(state)

    def resumed(rank: int) -> Any:
        state = lab.start(tmp_path, rank, **options, seed=9)
        path = lab.checkpoint(state).load()
        loaded = lab.digest(state)
        lab.train(state, 3)
        return path, loaded, lab.digest(state)

    expected = in_ranks(world_size, straight)
    assert in_ranks(world_size, resumed) == expected
    assert expected[0][0] == tmp_path / ROOT / "step-00000002"
    draws = [digest["draws"] for _, digest, _ in expected]
    assert len({tuple(d) for d in draws}) == world_size, "the test needs ranks with different random numbers"


def test_contents_of_a_checkpoint(in_ranks, lab, tmp_path) -> None:
    """No scripts, no files readable by others, and a manifest that identifies the run."""

    def run(rank: int) -> None:
        state = lab.start(tmp_path, rank, zero=2)
        lab.train(state, 1)
        lab.checkpoint(state).save()

    in_ranks(1, run)
    root = tmp_path / ROOT
    assert names(root) == ["latest", "step-00000001"]
    assert (root / "latest").read_text() == "step-00000001\n"
    expected = ["mp_rank_00_model_states.pt", "rank-00000.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"]
    assert names(root / "step-00000001") == ["manifest.json", *expected]
    assert {root.stat().st_mode & 0o777, (root / "step-00000001").stat().st_mode & 0o777} == {0o700}
    manifest = json.loads((root / "step-00000001" / "manifest.json").read_text())
    assert sorted(manifest["files"]) == expected
    assert manifest["progress"]["tokens"] == 16
    assert (manifest["step"], manifest["world_size"], manifest["identity"]["zero_stage"]) == (1, 1, 2)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_sigkill_anywhere_in_a_save_leaves_a_checkpoint_that_loads(asynchronous, in_ranks, lab, tmp_path) -> None:
    """SIGKILL at every write, fsync, rename and directory operation of one save."""
    root, baseline = tmp_path / ROOT, tmp_path / "baseline"

    def sweep(rank: int) -> Any:
        import torch.distributed

        state = lab.start(tmp_path, rank, zero=2)
        lab.train(state, 1)
        lab.checkpoint(state).save()
        for leftover in (".tmp-step-00000009", ".del-step-00000000"):
            (root / leftover).mkdir()
            (root / leftover / "file").touch()
        root.rename(baseline)
        digests = {1: lab.digest(state)}
        lab.train(state, 1)
        digests[2] = lab.digest(state)
        complete = lab.checkpoint(state, output_dir=str(tmp_path / "complete"))
        complete.save()

        def save_killed_at(point: int | None) -> int:
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(baseline, root)
            generator = random.getstate()
            child = os.fork()
            if child == 0:
                random.setstate(generator)  # Python reseeds it in a forked child
                # gloo's threads do not survive a fork, and a single rank needs no barrier.
                torch.distributed.barrier = lambda *args, **kwargs: None
                calls = record_calls(kill_at=point)
                checkpoint = lab.checkpoint(state, keep_last=1, asynchronous=asynchronous)
                checkpoint.save()
                checkpoint.finish_save()
                (tmp_path / "calls").write_text(" ".join(calls))
                os._exit(0)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        assert save_killed_at(None) == 0
        assert names(root) == ["latest", "step-00000002"]
        calls = (tmp_path / "calls").read_text().split()
        steps = []
        for point in range(len(calls)):
            assert save_killed_at(point) == -signal.SIGKILL
            loaded = lab.checkpoint(state).load()
            step = state.progress.global_step
            assert lab.digest(state) == digests[step], f"{calls[point]}, call {point}"
            assert loaded == root / f"step-{step:08d}"
            steps.append(step)
            complete.load()
        return steps, calls

    [(steps, calls)] = in_ranks(1, sweep)
    assert steps == sorted(steps), "the checkpoint must appear at one point and stay"
    assert set(steps) == {1, 2}
    assert {"fsync", "replace", "rename", "write", "unlink", "rmdir", "mkdir"} == set(calls)
    assert len(steps) == len(calls) > 100


def record_calls(kill_at: int | None) -> list[str]:
    """Record each file operation; SIGKILL this process before operation `kill_at`, or halfway through a write."""
    from arctic_hydra.checkpoint import files

    calls: list[str] = []

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) - 1 == kill_at:
                if name == "write":
                    original(args[0], memoryview(args[1]).cast("B")[: len(args[1]) // 2])
                    args[0].flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, watched)

    for name in ("fsync", "replace", "rename", "mkdir", "rmdir", "unlink"):
        watch(os, name)
    watch(files.HashingWriter, "write")
    return calls


@pytest.mark.parametrize(("zero", "asynchronous"), [(2, False), (3, False), (3, True)])
def test_sigkill_of_one_rank_in_a_save_publishes_nothing(zero, asynchronous, in_ranks, lab, tmp_path) -> None:
    def killed(rank: int) -> None:
        from arctic_hydra.checkpoint import files

        state = lab.start(tmp_path, rank, zero=zero, world_size=2)
        lab.train(state, 1)
        lab.checkpoint(state).save()
        lab.train(state, 1)
        if rank == 1:
            files.HashingWriter.write = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        checkpoint = lab.checkpoint(state, asynchronous=asynchronous)
        checkpoint.save()
        checkpoint.finish_save()

    def resumed(rank: int) -> str:
        state = lab.start(tmp_path, rank, zero=zero, world_size=2)
        return lab.checkpoint(state).load().name

    with pytest.raises(AssertionError, match="rank 1 ended with -9"):
        in_ranks(2, killed)
    assert not (tmp_path / ROOT / "step-00000002").exists()
    assert in_ranks(2, resumed) == ["step-00000001"] * 2


@pytest.mark.parametrize(
    ("zero", "broken", "asynchronous"), [(2, 0, False), (2, 1, False), (3, 0, False), (3, 1, False), (2, 1, True)]
)
def test_a_full_disk_on_one_rank_fails_all_ranks_with_the_same_error(
    zero, broken, asynchronous, in_ranks, lab, tmp_path
) -> None:
    """Nothing is published, the previous checkpoint loads, and the next save with enough space works."""

    def run(rank: int) -> Any:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        state = lab.start(tmp_path, rank, zero=zero, world_size=2)
        checkpoint = lab.checkpoint(state, asynchronous=asynchronous)
        lab.train(state, 1)
        checkpoint.save()
        checkpoint.finish_save()
        lab.train(state, 1)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if rank == broken:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        if asynchronous:
            checkpoint.save()
        text = message(checkpoint.finish_save if asynchronous else checkpoint.save)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        found = lab.checkpoint(state)._store.newest().path.name
        left = names(tmp_path / ROOT)
        again = checkpoint.save().name
        checkpoint.finish_save()
        return text, found, left, again, lab.checkpoint(state)._store.newest().path.name

    first, second = in_ranks(2, run)
    assert first[0] == second[0]
    assert f"rank {broken}: OSError: [Errno 27] File too large" in first[0]
    assert "step 2" in first[0] and "nothing was published" in first[0]
    assert first[1] == second[1] == "step-00000001"
    assert first[2] == ["latest", "step-00000001"]
    assert first[3:] == ("step-00000002",) * 2


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_an_error_in_deepspeed_on_one_rank_fails_all_ranks_with_the_same_error(
    asynchronous, in_ranks, lab, tmp_path
) -> None:
    """The peers already wait in DeepSpeed's commit when this rank fails before it."""

    def run(rank: int) -> str:
        state = lab.start(tmp_path, rank, zero=2, world_size=2)
        lab.train(state, 1)
        if rank == 1:
            state.engine.optimizer.state_dict = lambda: 1 / 0
        return message(lab.checkpoint(state, asynchronous=asynchronous).save)

    first, second = in_ranks(2, run)
    assert first == second
    assert "rank 1: ZeroDivisionError" in first
    assert names(tmp_path / ROOT) == []


def test_an_unwritable_directory_fails_all_ranks_with_the_same_error(in_ranks, lab, tmp_path) -> None:
    (tmp_path / ROOT).write_text("a file where the directory should be")

    def run(rank: int) -> str:
        state = lab.start(tmp_path, rank, zero=2, world_size=2)
        lab.train(state, 1)
        return message(lab.checkpoint(state).save)

    first, second = in_ranks(2, run)
    assert first == second
    assert "rank 0: FileExistsError" in first and str(tmp_path / ROOT) in first


def test_a_checkpoint_of_another_run_is_rejected_with_the_differences(in_ranks, lab, tmp_path) -> None:
    def run(rank: int) -> list[str]:
        state = lab.start(tmp_path, rank, zero=2)
        lab.train(state, 1)
        lab.checkpoint(state).save()
        texts = []
        for key in ("config_hash", "data_fingerprint", "zero_stage"):
            good, state.identity[key] = state.identity[key], "other"
            texts.append(message(lab.checkpoint(state).load))
            state.identity[key] = good
        return [*texts, message(lambda: load_without_counter(lab.checkpoint(state)))]

    def load_without_counter(checkpoint) -> None:
        found = checkpoint._store.newest()
        del found.manifest["progress"]["tokens"]
        checkpoint._store.newest = lambda: found
        checkpoint.load()

    [(config, data, zero, counter)] = in_ranks(1, run)
    assert "manifest.json: progress.tokens: missing; another program wrote it. Move that directory away" in counter
    assert "config_hash: checkpoint 'c0', this run 'other'" in config
    assert "data_fingerprint" not in config and "fresh=true" in config
    assert "data_fingerprint: checkpoint 'd0', this run 'other'" in data
    assert "zero_stage: checkpoint 2, this run 'other'" in zero


def test_other_package_versions_are_a_warning_that_names_them(in_ranks, lab, tmp_path) -> None:
    def run(rank: int) -> list[list[str]]:
        state = lab.start(tmp_path, rank, zero=2)
        lab.train(state, 1)
        lab.checkpoint(state).save()
        logger, found = logging.getLogger("arctic_hydra.checkpoint"), []
        for versions in ({"torch": "x"}, {"torch": "y"}):
            state.identity["versions"] = versions
            handler = logging.handlers.BufferingHandler(100)
            logger.addHandler(handler)
            lab.checkpoint(state).load()
            logger.removeHandler(handler)
            found.append([record.getMessage() for record in handler.buffer if record.levelno >= logging.WARNING])
        return found

    [(same, other)] = in_ranks(1, run)
    assert same == []
    assert other[0].endswith("saved with other versions (torch x -> y): resuming may not be bit-exact")


def test_loading_truncates_logs_to_their_length_at_the_save(in_ranks, lab, tmp_path, caplog) -> None:
    log, other, young = tmp_path / "metrics.jsonl", tmp_path.parent / f"{tmp_path.name}-x.log", tmp_path / "young.log"

    def run(rank: int) -> None:
        state = lab.start(tmp_path, rank, zero=2, logs=[log, other, young])
        log.write_text("step 1\n")
        other.write_text("a\nb\n")
        lab.train(state, 1)
        lab.checkpoint(state).save()
        with log.open("a") as file:
            file.write("step 2\nstep 3, torn")
        other.write_text("a\n")
        young.write_text("not there at the save\n")
        lab.checkpoint(state).load()

    in_ranks(1, run)
    assert log.read_text() == "step 1\n"
    assert other.read_text() == "a\n", "shorter than recorded, so unchanged"
    assert young.read_text() == ""


def test_no_checkpoint_is_none_and_no_valid_checkpoint_is_an_error(in_ranks, lab, tmp_path) -> None:
    def run(rank: int) -> Any:
        state = lab.start(tmp_path, rank, zero=2, world_size=2)
        checkpoint = lab.checkpoint(state)
        before = (checkpoint.latest_checkpoint_exists, checkpoint.load())
        lab.train(state, 1)
        path = checkpoint.save()
        if rank == 0:
            (path / "rank-00001.pt").unlink()
        return before, checkpoint.latest_checkpoint_exists, message(checkpoint.load)

    first, second = in_ranks(2, run)
    assert first == second
    assert first[:2] == ((False, None), True)
    assert (
        "none is usable, so the run does not silently start from step 0" in first[2]
        and "rank-00001.pt is missing" in first[2]
    )
    assert "fresh=true" in first[2]


def test_a_run_is_extended_without_its_log_which_may_have_been_moved(tmp_path: Path, caplog) -> None:
    engine, here = DeepSpeedCheckpoint(), tmp_path / "new"
    here.mkdir()
    logs = [here / "metrics.jsonl"]
    engine.state = SimpleNamespace(world=World(), extends=tmp_path / "old", logs=logs, run_dir=here)  # type: ignore[assignment]
    found: Any = SimpleNamespace(step=7, manifest={"log_offsets": {"metrics.jsonl": 3}})
    engine._copy_logs(found)
    assert "old/metrics.jsonl is gone: the log of this run begins at step 7" in caplog.text and not logs[0].exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.jsonl").write_text("123456")
    engine._copy_logs(found)
    assert logs[0].read_text() == "123"
