"""A disk that fills up, or is too small from the start, through the real command."""

from __future__ import annotations

import subprocess

import pytest

from arctic_hydra.checkpoint.store import CheckpointStore
from tests.command import SMALL, losses, only_run, run

ARGUMENTS = (
    f"{SMALL} trainer.train_iters=9 data.sources.chat.sample_count=40 tracking=[] checkpoint=[deepspeed] "
    "checkpoint.deepspeed.save_every_n_steps=1 checkpoint.deepspeed.keep_last=null checkpoint.deepspeed.output_dir=disk"
)

pytestmark = pytest.mark.faults


@pytest.fixture
def disk(tmp_path):
    """`mount(size)` makes `disk` below the test's folder a file system of that size."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: str) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a tmpfs is not allowed here")

    yield mount
    subprocess.run(["umount", "-l", place], capture_output=True)


def store(folder):
    [checkpoints] = (folder / "disk").glob("default/*/checkpoints")
    return CheckpointStore(checkpoints, 0)


def steps(folder):
    return sorted(int(path.name[5:]) for path in store(folder).steps())


def test_a_disk_that_fills_up_stops_the_run_and_the_same_command_goes_on(disk, tmp_path):
    disk("30m")
    done = run(ARGUMENTS, tmp_path, code=1)
    assert "was not saved and nothing was published; earlier ones are unchanged" in done.stderr
    assert "Traceback" not in done.stderr
    kept = steps(tmp_path)
    assert kept == list(range(1, len(kept) + 1)) and 2 < len(kept) < 9
    subprocess.run(["mount", "-o", "remount,size=200m", tmp_path / "disk"], check=True)
    again = run(ARGUMENTS, tmp_path)
    assert f"resumed  from step-{kept[-1]:08d}" in again.stdout
    assert steps(tmp_path) == list(range(1, 10))
    assert len(losses(only_run(tmp_path))) == 9


def test_on_error_warn_trains_on_and_leaves_the_good_ones(disk, tmp_path):
    disk("30m")
    done = run(f"{ARGUMENTS} checkpoint.deepspeed.on_error=warn", tmp_path)
    assert "TRAINING CONTINUES WITHOUT A CHECKPOINT of step 9" in done.stderr
    assert "finished 9 steps" in done.stdout
    found = store(tmp_path).newest()
    assert found is not None and 2 < found.step < 9


def test_a_disk_too_small_is_said_before_training(disk, tmp_path):
    disk("8m")
    done = run(ARGUMENTS, tmp_path, code=1)
    assert "checkpoint: 0.0078" in done.stderr and "are needed for 344K parameters" in done.stderr
    assert not losses(only_run(tmp_path))


def test_a_read_only_place_is_named(disk, tmp_path):
    disk("30m")
    subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
    done = run(ARGUMENTS, tmp_path, code=1)
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr
