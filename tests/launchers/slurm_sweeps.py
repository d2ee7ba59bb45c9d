"""Sweeps on the SLURM of `queue`."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from arctic_hydra import run_directory
from arctic_hydra.sweep.directory import Sweep
from tests.command import SMALLEST
from tests.launchers.queue import Queue

POLL_SECONDS = 0.0625
SLURM = f"-m hydra/launcher=slurm hydra.launcher.poll_seconds={POLL_SECONDS} {SMALLEST} tracking=[]".split()
DETACHED = [*SLURM, "hydra.launcher.detach=true"]
SEARCH = [*SLURM, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", "seed=range(1,9)"]


@pytest.fixture
def queue(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_directory, "LOCK_GRACE_SECONDS", 0.1)
    found = Queue(tmp_path / "queue")
    monkeypatch.setenv("PATH", found.variables["PATH"])
    return found


@pytest.fixture
def while_waiting(monkeypatch):
    """Have something happen once, while the launcher sleeps between two looks at the queue."""

    def arrange(event: Callable[[], object]) -> None:
        events, sleep = [event], time.sleep

        def sleep_or_happen(seconds: float) -> None:
            if seconds == POLL_SECONDS and events:
                events.pop()()
            sleep(seconds)

        monkeypatch.setattr(time, "sleep", sleep_or_happen)

    return arrange


def sweeps(folder) -> list[Sweep]:
    found = sorted((folder / "outputs/default/sweeps").iterdir(), key=lambda path: path.stat().st_mtime)
    return [Sweep.load(path) for path in found]


def interrupt() -> None:
    raise KeyboardInterrupt
