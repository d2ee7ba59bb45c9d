"""The run directory: its lock, its files, and what an earlier start left in it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from arctic_hydra import run_directory
from arctic_hydra.errors import ConfigError, RunLockedError
from arctic_hydra.run_directory import RunDirectory


def test_one_process_holds_a_directory_and_the_others_are_told_which(tmp_path):
    directory = RunDirectory(tmp_path)
    assert directory.holder() is None
    directory.lock()
    code = "import sys, pathlib; from arctic_hydra.run_directory import RunDirectory as R; R(pathlib.Path(sys.argv[1])).lock()"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert f"RunLockedError: {tmp_path} is in use by another run (process {os.getpid()} on " in done.stderr
    assert str(directory.holder()).startswith(f"process {os.getpid()} on ")
    directory.release()
    assert directory.holder() is None
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_a_lock_is_waited_for_as_long_as_asked(tmp_path):
    first = RunDirectory(tmp_path)
    first.lock()
    with pytest.raises(RunLockedError):
        RunDirectory(tmp_path).lock(patience_seconds=0.2)
    first.release()
    RunDirectory(tmp_path).lock(patience_seconds=0.2)


def test_a_place_that_cannot_be_written_to_names_the_key_that_chose_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"sweep_dir: cannot write to .*file/x .*; pass sweep_dir=<a folder"):
        RunDirectory(tmp_path / "file" / "x").create("sweep_dir")
    RunDirectory(tmp_path / "new" / "x").create()
    assert list((tmp_path / "new" / "x").iterdir()) == []


@pytest.mark.parametrize("name", ["checkpoints", "Logs", "task-export", "tracking-mlflow.json"])
def test_names_that_a_run_uses_itself_are_reserved_in_any_case(name):
    assert run_directory.is_own_name(name)
    assert not run_directory.is_own_name(f"my-{name}")


def test_a_new_start_removes_how_the_last_one_ended(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.update_record(status="failed", error="x", result={"steps": 3})
    run_directory.write_json(directory.result_file, {"status": "failed"})
    run_directory.write_error(tmp_path, 1, "RankDied", "later", traceback="", time=5.0)
    run_directory.write_error(tmp_path, 0, "Stalled", "the cause")
    directory.leave_node(0, -9)
    directory.meeting_file.touch()
    (tmp_path / "logs" / "rank0.log").touch()
    assert [error["message"] for error in directory.errors()] == ["the cause", "later"]
    assert {name for name, _ in directory.error_files()} == {"error-rank0.json", "error-rank1.json"}
    assert directory.node_file(0).read_text() == "-9\n"
    directory.forget_outcome()
    assert directory.record() == {"status": "failed"}
    assert directory.result() == {} and directory.errors() == []
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["rank0.log"]


def test_a_fresh_start_keeps_the_lock_alone(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.lock()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "elsewhere").symlink_to(tmp_path.parent)
    (tmp_path / "run.json").touch()
    directory.clear()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert tmp_path.parent.exists(), "a link is removed, not what it names"


def test_a_run_is_compared_with_the_last_finished_one_beside_it(tmp_path):
    ours = {"optimizer": {"lr": 2}, "seed": 1}
    assert run_directory.neighbour_difference(tmp_path / "b", ours) is None
    for name, status in (("a", "finished"), ("c", "failed")):
        (tmp_path / name).mkdir()
        RunDirectory(tmp_path / name).update_record(status=status, identity={"optimizer": {"lr": 1}, "seed": 1})
    said = run_directory.neighbour_difference(tmp_path / "b", ours)
    assert said == "differs from the finished run a in optimizer.lr 1 -> 2"
    many = {f"x{index}": index for index in range(6)}
    assert run_directory.neighbour_difference(tmp_path / "b", many) is None
