"""`python -m arctic_hydra.api`: it stops when the process that started it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

import arctic_hydra
from tests.command import SMALL, environment, wait_for_step


@pytest.mark.faults
def test_a_killed_notebook_leaves_a_run_that_can_be_resumed(tmp_path):
    """A new interpreter, as a kernel is, is killed while it trains."""
    code = f"import arctic_hydra; arctic_hydra.run({[*SMALL.split(), 'tracking=[]', 'trainer.train_iters=2000']!r})"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE)
    wait_for_step(tmp_path, 1, parent)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    [path] = (item for item in (tmp_path / "outputs" / "default").iterdir() if (item / "record.json").exists())
    run, end = arctic_hydra.load_run(path), time.monotonic() + 60
    while run.status == "running" and time.monotonic() < end:
        time.sleep(0.1)
    assert (run.status, run.reason) == ("stopped", "received SIGTERM"), run
    assert len(run.checkpoints) == 1
