"""`sweep.json`, its lock, and the states of jobs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import strategies as st

from arctic_hydra.errors import ConfigError, RunLockedError, StateFileError
from arctic_hydra.run_directory import RunDirectory
from arctic_hydra.sweep import results
from arctic_hydra.sweep.__main__ import main as look_after
from arctic_hydra.sweep.directory import FORMAT, Sweep, states
from tests.mutations import attempt, file_like, fuzz
from tests.sweep.sweeps import sweep_of


def test_states_come_from_records_locks_and_marks(tmp_path):
    sweep = sweep_of(tmp_path, *[[f"seed={n}"] for n in range(7)])
    running, stopped = {"status": "running"}, {"status": "stopped"}
    records = [None, running, running, stopped, stopped, {"status": "failed", "error": "a\nb"}, running]
    for job, entry in zip(sweep.jobs, records, strict=True):
        if entry:
            job.directory.create()
            job.directory.record_file.write_text(json.dumps(entry))
            job.submission = {"kind": "local", "pid": 0}
    held, started = RunDirectory(tmp_path / "run1"), RunDirectory(tmp_path / "run6")
    held.lock()
    started.lock()
    sweep.jobs[3].mark = "pruned"
    sweep.jobs[6].submission = None  # it was started after sweep.json was read
    found = states(sweep)
    assert [state for state, _ in found] == ["waiting", "running", "died", "pruned", "stopped", "failed", "running"]
    assert "start the sweep again" in found[2][1]
    assert results.rows(sweep)[5].last_line == "b"
    held.release()
    assert states(sweep)[1][0] == "died"


def test_a_job_that_starts_again_forgets_how_it_ended_before(tmp_path):
    """Refused by sbatch or failed, then finished: the table would go on with the old error."""
    sweep = sweep_of(tmp_path, ["seed=0"])
    directory = sweep.jobs[0].directory
    directory.create()
    directory.clear_result()
    assert not directory.record_file.exists()
    directory.update_record(status="failed", error="it was refused", result={"step": 3}, seconds=7.0)
    directory.clear_result()
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


SLURM = {"kind": "slurm", "job_id": "12_0", "logs": ["/s/12_0_0_log.out"], "launcher": {}}
MALFORMED = [
    ("submission", {"kind": "local"}, "jobs.0.submission.pid: missing"),
    ("submission", {"kind": "local", "pid": "1"}, 'jobs.0.submission.pid: got "1", expected a whole number, 0 or more'),
    ("submission", {"kind": "local", "pid": -1}, "jobs.0.submission.pid: got -1, expected a whole number, 0 or more"),
    (
        "submission",
        {**SLURM, "job_id": "--user=root"},
        'jobs.0.submission.job_id: got "--user=root", expected a job id of SLURM',
    ),
    (
        "submission",
        {**SLURM, "logs": ["/etc/passwd"]},
        'jobs.0.submission.logs.0: got "/etc/passwd", expected the path of a log',
    ),
    ("submission", {**SLURM, "job_id": "12+1"}, 'jobs.0.submission.job_id: got "12+1", expected a job id of SLURM'),
    ("submission", {**SLURM, "logs": ["/s/../12_0_log.out"]}, "jobs.0.submission.logs.0: got "),
    ("submission", {"kind": "slurm"}, "jobs.0.submission.job_id: missing"),
    ("overrides", "seed=1", 'jobs.0.overrides: got "seed=1", expected a list'),
    ("run_dir", "run0", 'jobs.0.run_dir: got "run0", expected an absolute path'),
    ("number", "0", 'jobs.0.number: got "0", expected a whole number'),
    ("number", 1, "jobs: got the numbers [1, 1], expected each once"),
]


@pytest.mark.parametrize(("key", "value", "message"), MALFORMED)
def test_a_malformed_sweep_is_one_error(key, value, message, tmp_path, capsys):
    sweep = sweep_of(tmp_path, ["seed=0"], ["seed=1"])
    sweep.save()
    content = json.loads(sweep.file.read_text())
    content["jobs"][0][key] = value
    sweep.file.write_text(json.dumps(content))
    for command in ("status", "logs", "cancel", "retry", "summary"):
        assert look_after([command, str(tmp_path)]) == 2
        assert capsys.readouterr().err.startswith(f"error: {sweep.file}: {message}"), command


def test_a_kind_of_submission_that_is_unknown_imports_nothing(tmp_path, capsys):
    sweep = sweep_of(tmp_path, ["seed=0"])
    sweep.jobs[0].submission = {"kind": "__main__"}
    sweep.save()
    assert look_after(["status", str(tmp_path)]) == 2
    assert "got submission kind '__main__', which this version does not support" in capsys.readouterr().err


def test_fields_of_later_versions_are_ignored_and_a_sweep_without_jobs_has_none(tmp_path, capsys):
    sweep = sweep_of(tmp_path, ["seed=0"])
    sweep.save()
    content = json.loads(sweep.file.read_text())
    content["later"] = content["jobs"][0]["later"] = 1
    sweep.file.write_text(json.dumps(content))
    assert Sweep.load(tmp_path).jobs == sweep.jobs
    sweep.file.write_text(json.dumps({**content, "jobs": []}))
    assert look_after(["status", str(tmp_path), "--job", "1"]) == 2
    assert "--job: got 1, but the sweep has no jobs" in capsys.readouterr().err


def test_logs_prints_no_other_file(tmp_path, capsys):
    """A run directory that is none, and a log that is a link."""
    sweep = sweep_of(tmp_path, ["seed=0"])
    folder = tmp_path / "run0" / "logs"
    folder.mkdir(parents=True)
    (folder / "terminal.log").write_text("secret\n")
    sweep.jobs[0].submission = {"kind": "local", "pid": 1}
    sweep.save()
    arguments = ["logs", str(tmp_path), "--job", "0"]
    assert look_after(arguments) == 0
    assert capsys.readouterr().out == "job 0 has no log, because it has not started\n"
    sweep.jobs[0].directory.write_run({})
    assert look_after(arguments) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["  secret"]
    (folder / "terminal.log").unlink()
    (folder / "terminal.log").symlink_to("/etc/passwd")
    assert look_after(arguments) == 1
    said = capsys.readouterr()
    assert said.out == "" and "terminal.log: is a symbolic link to /etc/passwd, expected a file" in said.err


def test_what_is_wrong_with_the_files_of_one_run_is_the_reason_in_its_row(tmp_path):
    sweep = sweep_of(tmp_path, *[[f"seed={n}"] for n in range(4)])
    for job in sweep.jobs:
        job.directory.create()
        job.directory.update_record(status="finished")
    (tmp_path / "run0" / "record.json").write_text("{")
    (tmp_path / "run1" / "metrics.jsonl").write_bytes(b"\x80\x04\n")
    (tmp_path / "run2" / "record.json").unlink()
    (tmp_path / "run2" / "record.json").symlink_to("/etc/passwd")
    found = results.rows(sweep)
    assert [row.state for row in found] == ["stopped", "finished", "failed", "finished"]
    for row, words in zip(
        found, ("record.json: not JSON", "metrics.jsonl:1: not a line", "is a symbolic link", ""), strict=True
    ):
        assert words in row.last_line


@pytest.mark.parametrize(
    ("name", "message"), [("run.json", "is the directory of a run"), ("sweep.html", "expected a file")]
)
def test_a_sweep_takes_no_directory_of_something_else(name, message, tmp_path):
    sweep = sweep_of(tmp_path, ["seed=0"])
    RunDirectory(tmp_path).write_run({}) if name == "run.json" else (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=message):
        sweep.lock("hydra.sweep.dir")


def one_random_sweep(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    sweep = sweep_of(Path("/absent"), ["seed=0"], ["seed=1"])
    sweep.jobs[0].submission = {"kind": "local", "pid": 0}
    sweep.jobs[1].submission = SLURM
    content = {"format": FORMAT, **asdict(sweep)}
    del content["path"]
    folder = tmp_path_factory.mktemp("random")
    (folder / "sweep.json").write_bytes(data.draw(file_like(content)))
    found = attempt(lambda: Sweep.load(folder), ConfigError, folder)
    if found is None:
        return
    for job in found.jobs:  # squeue is not asked
        job.submission = None if job.submission and job.submission["kind"] == "slurm" else job.submission
    assert len(states(found)) == len(results.rows(found)) == len(found.jobs)
    assert isinstance(found.command_line, str)


test_a_random_sweep, test_many_random_sweeps = fuzz(one_random_sweep)


@pytest.mark.parametrize("name", ["sweep.csv", "cancelled", "study.log"])
def test_a_folder_with_other_files_of_these_names_is_refused(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"contains {name}, but no sweep; choose another folder"):
        sweep_of(tmp_path, ["seed=1"]).lock()
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_a_folder_with_the_lock_of_another_program_is_refused(tmp_path):
    (tmp_path / ".lock").write_text("mine")
    with pytest.raises(
        StateFileError, match=r"\.lock: is the file of another program, expected a lock of this package"
    ):
        sweep_of(tmp_path, ["seed=1"]).lock()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"] and (tmp_path / ".lock").read_text() == "mine"
