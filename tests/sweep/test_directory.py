"""`sweep.json`, its lock, and the states of jobs."""

from __future__ import annotations

import json

import pytest

from arctic_hydra.errors import RunLockedError
from arctic_hydra.run_directory import RunDirectory
from arctic_hydra.sweep import results
from arctic_hydra.sweep.directory import Sweep, states
from tests.sweep.sweeps import sweep_of


def test_states_come_from_records_locks_and_marks(tmp_path):
    sweep = sweep_of(tmp_path, *[[f"seed={n}"] for n in range(6)])
    running, stopped = {"status": "running"}, {"status": "stopped"}
    records = [None, running, running, stopped, stopped, {"status": "failed", "error": "a\nb"}]
    for job, entry in zip(sweep.jobs, records, strict=True):
        if entry:
            job.directory.create()
            job.directory.record_file.write_text(json.dumps(entry))
            job.submission = {"kind": "local", "pid": 0}
    held = RunDirectory(tmp_path / "run1")
    held.lock()
    sweep.jobs[3].mark = "pruned"
    found = states(sweep)
    assert [state for state, _ in found] == ["waiting", "running", "died", "pruned", "stopped", "failed"]
    assert "start the sweep again" in found[2][1]
    assert results.rows(sweep)[5].last_line == "b"
    held.release()
    assert states(sweep)[1][0] == "died"


def test_a_job_that_starts_again_forgets_how_it_ended_before(tmp_path):
    """Refused by sbatch or failed, then finished: the table would go on with the old error."""
    sweep = sweep_of(tmp_path, ["seed=0"])
    directory = sweep.jobs[0].directory
    directory.create()
    directory.forget_outcome()
    assert not directory.record_file.exists()
    directory.update_record(status="failed", error="it was refused", result={"step": 3}, seconds=7.0)
    directory.forget_outcome()
    directory.update_record(status="finished")
    assert (states(sweep), directory.record()) == ([("finished", "")], {"status": "finished", "seconds": 7.0})


def test_a_sweep_is_locked_by_one_process_and_reads_back_as_it_was(tmp_path):
    sweep = sweep_of(tmp_path, ["seed=1"])
    sweep.lock()
    sweep.save()
    again = Sweep.load(tmp_path)
    assert again.jobs == sweep.jobs and again.command == sweep.command
    assert "process" in (again.owner() or "")
    with pytest.raises(RunLockedError, match="is in use by another run"):
        again.lock()
