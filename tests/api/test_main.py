"""`python -m arctic_hydra.api`: it stops when the process that started it dies."""

from __future__ import annotations

import time

import pytest

import arctic_hydra
from tests.api.test_start_run import execute
from tests.command import only_run


@pytest.mark.faults
def test_a_killed_notebook_leaves_a_run_that_can_be_resumed(tmp_path):
    execute(
        """
        import tempfile

        tempfile.tempdir = os.getcwd()  # which it cannot clean up
        composed = arctic_hydra.compose([*SMALL, "trainer.train_iters=600"])

        def kill():
            while not (composed.directory / "metrics.jsonl").exists() or not arctic_hydra.load_run(composed.directory).step:
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()
        arctic_hydra.run(composed)
        """,
        tmp_path,
        exit_code=-9,
    )
    run, end = arctic_hydra.load_run(only_run(tmp_path)), time.monotonic() + 60
    while run.status == "running" and time.monotonic() < end:
        time.sleep(0.1)
    assert (run.status, run.reason) == ("stopped", "received SIGTERM"), run
    assert len(run.checkpoints) == 1
