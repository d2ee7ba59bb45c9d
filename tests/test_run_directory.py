"""The run directory: its lock, its files, and what an earlier start left in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from hypothesis import strategies as st

from arctic_hydra import run_directory
from arctic_hydra.errors import ConfigError, RunLockedError, StateFileError, UnsafePathError
from arctic_hydra.run_directory import RunDirectory, difference_from_last_run
from tests.mutations import attempt, file_like, fuzz


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
    directory.record_node_exit(0, -9)
    directory.rendezvous_file.touch()
    (tmp_path / "logs" / "rank0.log").touch()
    assert [error["message"] for error in directory.errors()] == ["the cause", "later"]
    assert {name for name, _ in directory.error_files()} == {"error-rank0.json", "error-rank1.json"}
    assert directory.node_file(0).read_text() == "-9\n"
    directory.clear_result()
    assert directory.record() == {"status": "failed"}
    assert directory.result() == {} and directory.errors() == []
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["rank0.log"]


@pytest.mark.parametrize(
    ("result", "stays"), [({"status": "stopped"}, True), (None, True), ({"status": "failed"}, False)]
)
def test_a_wrong_export_stays_in_the_record_until_a_start_has_ended_with_it(result, stays, tmp_path):
    directory = RunDirectory(tmp_path)
    wrong = {"export-step-00000001": {"equal": [], "differs": ["its head is not tied"], "unchecked": []}}
    directory.update_record(status="failed", verification=wrong, **({"result": result} if result else {}))
    directory.clear_result()
    assert directory.record().get("verification") == (wrong if stays else None)


def test_a_fresh_start_keeps_the_lock_alone(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.lock()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "elsewhere").symlink_to(tmp_path.parent)
    (tmp_path / "run.json").touch()
    directory.clear()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert tmp_path.parent.exists(), "a link is removed, not what it names"


def result_of(tmp_path, **values):
    directory = RunDirectory(tmp_path)
    directory.write_result({"status": "finished", "step": 3, "horizon": 3, "objective": 1.5, **values})
    return directory


@pytest.mark.parametrize("damage", [b"", b'{"status": "fini', b"\x80\x04", b"[]", b'{"status": 3}'])
def test_a_damaged_record_costs_the_record_and_not_the_run(damage, tmp_path, capsys):
    directory = result_of(tmp_path)
    directory.record_file.write_bytes(damage)
    rebuilt = {"status": "finished", "horizon": 3, "result": directory.result()}
    assert directory.record() == rebuilt and directory.record_file.read_bytes() == damage, "readers change nothing"
    directory.repair_record()
    assert (
        "record.json: " in (said := capsys.readouterr().err)
        and "it is now record.json.damaged, and the run continues without it" in said
    )
    assert directory.record() == rebuilt and json.loads(directory.record_file.read_text())["format"] == 1
    assert (tmp_path / "record.json.damaged").read_bytes() == damage
    directory.repair_record()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("result", [None, b"{"])
def test_a_damaged_record_without_a_result_is_that_of_a_stopped_run(result, tmp_path):
    directory = RunDirectory(tmp_path)
    directory.record_file.write_text("{")
    if result:
        directory.result_file.write_bytes(result)
    found = directory.record()
    assert found["status"] == "stopped" and "record.json: not JSON" in found["error"]
    directory.update_record(status="running")
    assert directory.record()["status"] == "running"


def test_a_record_that_others_could_have_written_is_refused_instead_of_rebuilt(tmp_path):
    directory = result_of(tmp_path)
    directory.record_file.symlink_to("result.json")
    for act in (directory.record, directory.repair_record, directory.update_record):
        with pytest.raises(StateFileError, match=r"record\.json: is a symbolic link to result\.json, expected a file"):
            act()


def test_a_damaged_error_report_is_shown_after_the_others(tmp_path):
    run_directory.write_error(tmp_path, 1, "RankDied", "the cause", time=5.0)
    (tmp_path / "logs" / "error-rank0.json").write_text("{")
    first, second = RunDirectory(tmp_path).errors()
    assert first["message"] == "the cause" and "error-rank0.json: not JSON" in second["message"]


def test_an_error_report_that_vanishes_while_it_is_looked_at_is_not_the_cause(tmp_path):
    """The next start of the run removes them."""
    run_directory.write_error(tmp_path, 1, "RankDied", "the cause", traceback="")
    (tmp_path / "logs" / "error-rank0.json").symlink_to("absent")
    assert {name for name, _ in RunDirectory(tmp_path).error_files()} == {"error-rank1.json"}
    assert run_directory._read_error(tmp_path / "absent")["time"] > time.time()


WRONG_KINDS = [
    ("logs", "a file", "a directory"), ("checkpoints", "a pipe", "a directory"), (".hydra", "a file", "a directory"),
    ("metrics.jsonl", "a directory", "a file"), ("run.json", "a directory", "a file"), ("config.yaml", "a link", "a file"),
    ("record.json", "a pipe", "a file"), ("report.html", "a directory", "a file"), ("result.json", "a link", "a file"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "expected"), WRONG_KINDS)
def test_a_name_of_the_wrong_kind_is_refused_before_anything_is_written(name, kind, expected, tmp_path):
    path = tmp_path / name
    make = {"a file": path.touch, "a directory": path.mkdir, "a pipe": lambda: os.mkfifo(path)}
    make.get(kind, lambda: path.symlink_to("/etc/passwd"))()
    said = "a symbolic link" if kind == "a link" else kind
    with pytest.raises(ConfigError, match=f"{path}: is {said}, expected {expected}; move it away and try again"):
        RunDirectory(tmp_path).create()
    assert [item.name for item in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["logs", "checkpoints", ".hydra"])
def test_a_link_in_place_of_a_folder_is_refused_and_its_target_unchanged(name, tmp_path):
    (victim := tmp_path / "victim").mkdir()
    for file in ("error-rank0.json", "node0.ended", ".tmp-step-00000001"):
        (victim / file).touch()
    (run := tmp_path / "run").mkdir(mode=0o700)
    (run / name).symlink_to(victim)
    for act in (RunDirectory(run).create, RunDirectory(run).clear_result):
        with pytest.raises(ConfigError, match=f"{name}: is a symbolic link, expected a directory; move it away"):
            act()
    assert len(list(victim.iterdir())) == 3


def test_nothing_is_written_through_a_link(tmp_path):
    """Under names that a run uses while it writes, or for its files."""
    (victim := tmp_path / "victim").write_text("mine")
    directory = RunDirectory(tmp_path / "run")
    (logs := directory.path / "logs").mkdir(parents=True)
    links = [logs / ".error-rank0.json", logs / "error-rank0.json", logs / "node0.ended"]
    links += [directory.path / name for name in (f".run.json.{os.getpid()}", "run.json")]
    for link in links:
        link.symlink_to(victim)
    run_directory.write_error(directory.path, 0, "Stalled", "the cause")
    directory.record_node_exit(0, -9)
    directory.write_run({"seed": 1})
    assert victim.read_text() == "mine"
    assert directory.config() == {"seed": 1} and directory.errors()[0]["message"] == "the cause"
    left = {path.name for path in directory.path.rglob("*") if path.is_symlink()}
    assert left <= {".error-rank0.json", f".run.json.{os.getpid()}"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("attack", ["link", "dangling", "stranger", "0777"])
def test_a_directory_that_is_not_the_users_own_is_neither_used_nor_emptied(attack, tmp_path):
    tmp_path.chmod(0o755)
    victim, path = tmp_path / "victim", tmp_path / "run"
    (victim / "data").mkdir(parents=True)
    if attack in ("link", "dangling"):
        path.symlink_to(victim if attack == "link" else "nowhere")
    else:
        victim.rename(path)
        os.chown(path, 12345, -1) if attack == "stranger" else path.chmod(0o777)
    with pytest.raises(
        ConfigError, match=r"^output_root: .*/run (is|belongs to) .*, or pass output_root=<another folder>$"
    ):
        RunDirectory(path).create()
    if attack != "dangling":
        with pytest.raises(UnsafePathError):
            RunDirectory(path).clear()
        assert (path / "data").is_dir()
    assert not (tmp_path / "nowhere").exists()


RECORD = {
    "format": 1, "status": "finished", "result": {"step": 3, "status": "finished"}, "overrides": ["seed=1"], "identity": {"a": {"b": 1}},
    "git": None, "horizon": 3, "seconds": 1.5, "started": 1.0, "error": "x",
}  # fmt: skip


def one_random_record(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = RunDirectory(tmp_path_factory.mktemp("random") / "run")
    directory.create()
    directory.record_file.write_bytes(data.draw(file_like(RECORD)))
    if data.draw(st.booleans()):
        directory.result_file.write_bytes(data.draw(file_like({"status": "stopped", "step": 3, "objective": None})))
    uses = (
        directory.record,
        lambda: difference_from_last_run(directory.path.with_name("other"), {"a": {"b": 2}}),
        directory.repair_record,
        lambda: directory.update_record(status="running"),
        directory.clear_result,
    )
    for use in uses:
        attempt(use, StateFileError, directory.path)


test_a_random_record, test_many_random_records = fuzz(one_random_record)


def test_a_run_is_compared_with_the_last_finished_one_beside_it(tmp_path):
    ours = {"optimizer": {"lr": 2}, "seed": 1}
    assert run_directory.difference_from_last_run(tmp_path / "b", ours) is None
    for name, status in (("a", "finished"), ("c", "failed")):
        (tmp_path / name).mkdir()
        RunDirectory(tmp_path / name).update_record(status=status, identity={"optimizer": {"lr": 1}, "seed": 1})
    said = run_directory.difference_from_last_run(tmp_path / "b", ours)
    assert said == "differs from the finished run a in optimizer.lr 1 -> 2"
    assert run_directory.difference_from_last_run(tmp_path / "b", {"optimizer": {"lr": 1}, "seed": 1}) is None
    option = {"@": "optimizer/code:mine version 1", "momentum": 0.9}
    for theirs, said in (
        ("optimizer/adamw version 1", "optimizer adamw -> code:mine"),
        ("optimizer/code:mine version 2", "optimizer code:mine version 2 -> code:mine version 1"),
    ):
        RunDirectory(tmp_path / "a").update_record(identity={"optimizer": {"@": theirs, "beta": 1}})
        found = run_directory.difference_from_last_run(tmp_path / "b", {"optimizer": option})
        assert found == f"differs from the finished run a in {said}"
    many = {f"x{index}": index for index in range(6)}
    assert run_directory.difference_from_last_run(tmp_path / "b", many) is None
