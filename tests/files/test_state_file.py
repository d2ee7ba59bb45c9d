"""State files: every kind of file x every kind of damage is one sentence that names the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arctic_hydra.checkpoint.initial_weights import _INDEX_FILE
from arctic_hydra.checkpoint.store import MANIFEST_FILE
from arctic_hydra.data.cache.token_store import MANIFEST_FILE as ENTRY_FILE
from arctic_hydra.errors import StateFileError
from arctic_hydra.files.state_file import Schema, Table, last_lines, mismatch, open_regular, read_state
from arctic_hydra.run_directory import ERROR_FILE, RECORD_FILE, RESULT_FILE, RUN_FILE
from arctic_hydra.sweep.directory import SWEEP_FILE
from arctic_hydra.tracking.mlflow import _STATE
from tests.mutations import places

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
JOB: dict[str, Any] = {"number": 0, "overrides": ["seed=1"], "run_dir": "/a/b", "run_file": "/a/b/run.json"}
SWEEP = {
    "format": 1, "id": "ab", "name": "x", "kind": "grid", "command": [], "objective": "auto", "maximize": False,
    "launcher": "local", "working_directory": "/a", "jobs": [JOB],
}  # fmt: skip
SAVED = {"bytes": 3, "sha256": "ab"}
GOOD: dict[str, tuple[Schema, dict[str, Any]]] = {
    "run.json": (RUN_FILE, {"config": {"seed": 1}}),
    "record.json": (RECORD_FILE, {"status": "finished", "result": {"step": 3}, "overrides": [], "git": None}),
    "result.json": (RESULT_FILE, {"status": "stopped", "step": 3, "objective": None}),
    "error-rank0.json": (
        ERROR_FILE,
        {
            "time": 1.5, "rank": 0, "kind": "ValueError", "message": "x", "problems": ["x"], "expected": True,
            "traceback": "", "exit_code": 1,
        },
    ),
    "sweep.json": (SWEEP_FILE, SWEEP),
    "manifest.json": (MANIFEST_FILE, {"format": 1, "step": 3, "files": {"a.pt": SAVED, "b/c.pt": SAVED}, "self_sha256": "x"}),
    "entry.json": (ENTRY_FILE, {"layout": 3, "examples": 1, "files": {"examples.arrow": "x"}, "report": {}, "checksum": "x"}),
    "index.json": (_INDEX_FILE, {"weight_map": {"a": "model-00001.safetensors"}}),
    "tracking-mlflow.json": (_STATE, {"uri": "x", "run_id": "y", "described": True, "status": None}),
}  # fmt: skip


def replace_by(make: Callable[[Path], object]) -> Callable[[Path, Schema], object]:
    def change(path: Path, schema: Schema) -> None:
        path.unlink()
        make(path)

    return change


def make_huge(path: Path, schema: Schema) -> None:
    os.truncate(path, schema.max_bytes + 1)  # sparse


DAMAGES: dict[str, tuple[Callable[[Path, Schema], object], str, bool]] = {
    "empty": (lambda path, schema: path.write_bytes(b""), "not JSON (it is empty); ", True),
    "truncated": (lambda path, schema: path.write_bytes(path.read_bytes()[:-2]), "not JSON (", True),
    "binary": (lambda path, schema: path.write_bytes(b"\x80\x04\x95" + os.urandom(200)), "not JSON (", True),
    "zeros": (lambda path, schema: path.write_bytes(bytes(4096)), "not JSON (", True),
    "deep": (lambda path, schema: path.write_text("[" * 200_000), "not JSON (", True),
    "list": (lambda path, schema: path.write_text("[1]"), "the file: got [1], expected an object; ", True),
    "number": (lambda path, schema: path.write_text("12"), "the file: got 12, expected an object; ", True),
    "huge": (make_huge, "more than the ", True),
    "newer": (lambda path, schema: path.write_text('{"format": 99}'), "format: got 99, expected ", False),
    "format": (lambda path, schema: path.write_text('{"format": "1"}'), 'format: got "1", expected ', False),
    "link": (replace_by(lambda path: path.symlink_to("/etc/passwd")), "is a symbolic link to /etc/passwd, expected a file; ", False),
    "directory": (replace_by(lambda path: path.mkdir()), "is a directory, expected a file; ", False),
    "pipe": (replace_by(lambda path: os.mkfifo(path)), "is a pipe, expected a file; ", False),
    "stranger": (lambda path, schema: os.chown(path, 12345, -1), "cannot be trusted: it belongs to another user (uid 12345); ", False),
    "0666": (lambda path, schema: path.chmod(0o666), "it is not private: every user may write to it (mode 0666); ", False),
    "0777 folder": (lambda path, schema: path.parent.chmod(0o777), "cannot be trusted: its directory is not private: ", False),
    "folder of a stranger": (lambda path, schema: os.chown(path.parent, 12345, -1), "cannot be trusted: its directory belongs to ", False),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    found = tmp_path / "folder"
    found.mkdir()
    found.chmod(0o755)
    return found


@as_root
@pytest.mark.parametrize("name", GOOD)
def test_every_kind_of_file_x_every_kind_of_damage(name, folder):
    schema, content = GOOD[name]
    path = folder / name
    assert read_state(path, schema) is None
    for damage, (change, expected, replaceable) in DAMAGES.items():
        path.write_text(json.dumps(content))
        path.chmod(0o644)
        assert read_state(path, schema) == {key: value for key, value in content.items() if key != "format"}
        change(path, schema)
        with pytest.raises(StateFileError) as caught:
            read_state(path, schema)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and expected in message and "\n" not in message, (damage, message)
        assert caught.value.damaged == replaceable, (damage, message)
        os.chown(folder, 0, -1)
        folder.chmod(0o755)
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


ESCAPES = ["../../a.pt", "/etc/passwd", "a/../../b", "", ".", "./a", "a//b", "a\0b", "..", "a\\b"]
WRONG: list[tuple[str, str, Any, str]] = [
    ("run.json", "config", None, "config: got null, expected an object"),
    ("record.json", "status", "done", 'status: got "done", expected one of finished, stopped, failed, running'),
    ("record.json", "overrides", ["a", 1], "overrides.1: got 1, expected text"),
    ("record.json", "result", {"step": "3"}, 'result.step: got "3", expected a whole number or null'),
    ("record.json", "git", {"revision": 1, "dirty": True}, "git.revision: got 1, expected text"),
    ("record.json", "submission", {}, "submission.kind: missing"),
    ("result.json", "step", True, "step: got true, expected a whole number or null"),
    ("result.json", "objective", "x" * 99, f'objective: got "{"x" * 56}..., expected a number or null'),
    ("error-rank0.json", "exit_code", -1, "exit_code: got -1, expected a whole number, 0 or more"),
    ("sweep.json", "jobs", {}, "jobs: got {}, expected a list"),
    ("sweep.json", "jobs", [3], "jobs.0: got 3, expected an object"),
    ("sweep.json", "jobs", [{}], "jobs.0.number: missing"),
    ("sweep.json", "jobs", [{**JOB, "run_dir": "../x"}], 'jobs.0.run_dir: got "../x", expected an absolute path without `..`'),
    ("sweep.json", "jobs", [{**JOB, "run_dir": "/a/../x"}], 'jobs.0.run_dir: got "/a/../x", expected an absolute path'),
    ("sweep.json", "jobs", [{**JOB, "submission": 7}], "jobs.0.submission: got 7, expected an object or null"),
    ("sweep.json", "jobs", [{**JOB, "mark": "x"}], 'jobs.0.mark: got "x", expected one of , pruned'),
    *[
        ("manifest.json", "files", {name: SAVED}, f"files: got {json.dumps(name)}, expected a name inside the directory")
        for name in ESCAPES
    ],
    ("manifest.json", "files", {"a": {"bytes": -1, "sha256": ""}}, "files.a.bytes: got -1, expected a whole number, 0 or more"),
    ("manifest.json", "metric", {}, "metric.rank_by: missing"),
    ("manifest.json", "log_offsets", {"metrics.jsonl": -5}, "log_offsets.metrics.jsonl: got -5, expected a whole number"),
    ("entry.json", "files", {"../../x": "y"}, "files.examples.arrow: missing"),
    ("entry.json", "report", [], "report: got [], expected an object"),
    ("index.json", "weight_map", {"a": "../../x"}, 'weight_map.a: got "../../x", expected a name inside the directory'),
    ("tracking-mlflow.json", "run_id", 5, "run_id: got 5, expected text"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "key", "value", "expected"), WRONG)
def test_wrong_types_and_names_that_lead_elsewhere(name, key, value, expected, folder):
    schema, content = GOOD[name]
    (folder / name).write_text(json.dumps({**content, key: value}))
    with pytest.raises(StateFileError) as caught:
        read_state(folder / name, schema)
    assert str(caught.value).startswith(f"{folder / name}: {expected}")
    assert str(caught.value).endswith(f"; {schema.remedy}") and caught.value.damaged


def test_files_of_versions_without_a_format_are_read(folder):
    path = folder / "record.json"
    for text in ('{"status": "failed"}', '{"format": 1, "status": "failed"}', '{"status": "failed", "later": {}}'):
        path.write_text(text)
        found = read_state(path, RECORD_FILE)
        assert found is not None and found["status"] == "failed" and "format" not in found
    (folder / "sweep.json").write_text(json.dumps({**SWEEP, "format": None}))
    with pytest.raises(StateFileError, match="format: got None, expected 1; another program or version wrote it"):
        read_state(folder / "sweep.json", SWEEP_FILE)


@as_root
def test_a_path_that_the_user_named_may_be_that_of_another_user(folder):
    path = folder / "index.json"
    path.write_text('{"weight_map": {}}')
    for item in (path, folder):
        os.chown(item, 12345, -1)
    assert read_state(path, _INDEX_FILE, of_others=True) == {"weight_map": {}}
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(StateFileError, match="is a symbolic link"):
        read_state(path, _INDEX_FILE, of_others=True)


def test_a_path_that_cannot_be_opened_is_named(folder):
    (folder / "file").touch()
    with pytest.raises(StateFileError, match=r"file/run\.json: cannot be read \(Not a directory\)"):
        read_state(folder / "file" / "run.json", RUN_FILE)


def test_bool_is_not_a_number_and_a_number_without_a_point_is_one():
    table = Table({"a": float}, {"b": (int, None)})
    assert mismatch({"a": 1, "b": None, "c": object()}, table) is None
    assert mismatch({"a": True}, table) == "a: got true, expected a number"
    assert mismatch({"a": 1.0, "b": 1.5}, table) == "b: got 1.5, expected a whole number or null"
    assert mismatch([1, "a"], [str]) == "0: got 1, expected text"


def test_the_last_lines_of_a_log_are_read_without_the_rest_and_without_following_a_link(folder):
    path = folder / "rank0.log"
    path.write_bytes(b"x" * (3 << 20) + b"\n" + "\n".join(map(str, range(50))).encode() + b"\xff\n")
    assert last_lines(path, 2) == ["48", "49�"] and last_lines(path, 0) == []
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(StateFileError, match="is a symbolic link to /etc/passwd"):
        last_lines(path, 2)
    with pytest.raises(FileNotFoundError):
        open_regular(folder / "absent")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([*ESCAPES, "finished", "local"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_content_is_read_or_is_one_error(data, folder):
    """Any bytes, or a good file in which one value anywhere is replaced."""
    name = data.draw(st.sampled_from(sorted(GOOD)))
    schema, content = GOOD[name]
    path = folder / name
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(st.binary(max_size=60)))
    else:
        changed = json.loads(json.dumps(content))
        place = data.draw(st.sampled_from(places(content)[1:]))
        node = changed
        for part in place[:-1]:
            node = node[part]
        node[place[-1]] = data.draw(VALUES)
        path.write_text(json.dumps(changed))
    problem = ""
    try:
        found = read_state(path, schema)
    except StateFileError as error:
        problem = str(error)
    if problem:
        assert problem.startswith(f"{path}: ") and "\n" not in problem
    else:
        assert isinstance(found, dict) and mismatch(found, schema.table) is None
        assert not any(".." in part for part in found.get("files", ()))
