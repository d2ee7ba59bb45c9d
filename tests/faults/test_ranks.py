"""One rank raises, dies or stalls: the others end in time, the cause is shown, the record says failed."""

from __future__ import annotations

import json
import time

import pytest

from tests.command import SMALL, only_run, run

ARGUMENTS = (
    f"{SMALL} ranks=2 trainer.train_iters=6 trainer.eval_at_start=false callback=[saboteur] "
    "trainer.collective_timeout_seconds=5"
)


SAVING = "tracking=[] checkpoint.deepspeed.save_every_n_steps=2"
START_SECONDS = 60
"""What a run takes on a busy machine until the sabotage."""


DIED = "error: rank 1 was killed by SIGKILL, most likely by the kernel's OOM killer"
STALLED = "error: rank 1 stalled: the other ranks waited trainer.collective_timeout_seconds for it"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("how", "moment", "more", "text"),
    [
        ("raise", "step", "tracking=[mlflow]", "rank 1 failed first:"),
        ("kill", "backward", "tracking=[] deepspeed=zero2", DIED),
        ("kill", "save", SAVING, DIED),
        ("freeze", "step", "tracking=[]", STALLED),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ("raise", "save", SAVING, "ZeroDivisionError: sabotage"),
                ("exit", "step", "tracking=[]", "error: rank 1 exited with code 3 without reporting an error"),
                ("freeze", "backward", "tracking=[] deepspeed=zero3", STALLED),
                ("freeze", "save", SAVING, STALLED),
            )
        ),
    ],
)
def test_one_rank_fails_and_all_end(how, moment, more, text, my_lab, tmp_path):
    if "mlflow" in more:  # a new store takes longer to make than the other ranks of a failed one may take to end
        import mlflow

        (tmp_path / "outputs").mkdir()
        client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
        client.search_experiments()
    start = time.monotonic()
    sabotage = f"callback.saboteur.how={how} callback.saboteur.moment={moment}"
    # The command finds a frozen rank in /proc by its command line, which a fork of the warm process does not have.
    done = run(f"{ARGUMENTS} {more} {sabotage}", tmp_path, code=1, fresh=how == "freeze", PYTHONPATH=str(my_lab))
    assert text in done.stderr, done.stderr
    if (how, moment) == ("raise", "step"):
        said = " ".join((done.stdout + done.stderr).split())
        assert "nothing was saved, because not all ranks failed in the same way; there is no checkpoint, so the" in said
    if how == "freeze":
        # Not which line: a process that SIGSTOP froze may run on for a moment before it writes its stacks.
        assert "most recent call first" in done.stderr, "the stacks of the stalled rank"
    run_dir = only_run(tmp_path)
    assert json.loads((run_dir / "record.json").read_text())["status"] == "failed"
    assert time.monotonic() - start < START_SECONDS
    assert not list((run_dir / "checkpoints").glob("step-*"))
    if "mlflow" in more:
        [tracked] = client.search_runs([item.experiment_id for item in client.search_experiments()])
        assert tracked.info.status == "FAILED", "rank 0 was stopped before it could say so"
