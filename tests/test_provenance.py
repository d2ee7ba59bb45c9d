"""What `record.json` says about the environment of a run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from arctic_hydra import __version__, provenance


def git(folder, *words):
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def script_that_tells(tmp_path: Path, line: str = "") -> Path:
    """Return a program that leaves the file `ran`."""
    path = tmp_path / "evil.sh"
    path.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n{line}")
    path.chmod(0o755)
    return path


def test_the_program_and_the_working_directory_have_a_revision_each(tmp_path, monkeypatch, repository):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    git(theirs, "init", "-q")
    (theirs / "option.yaml").write_text("seed: 1\n")
    git(theirs, "add", ".")
    git(theirs, "commit", "-qm", "mine")
    (theirs / "option.yaml").write_text("seed: 2\n")
    monkeypatch.chdir(theirs)
    found = provenance.surroundings()
    around = found["working_directory"]
    assert around["git"]["revision"] == git(theirs, "rev-parse", "HEAD") and around["path"] == str(theirs)
    assert around["git"]["dirty"] and "+seed: 2" in around["git"]["diff"]
    assert found["version"] == __version__
    assert found["git"] == provenance.git_state(repository), "the program's own, wherever it is called from"

    # Installed below that checkout, as in its .venv: nothing of the program is in the revision around it.
    shutil.copytree(repository / "arctic_hydra", theirs / "venv" / "arctic_hydra")
    code = "import json; from arctic_hydra import provenance; print(json.dumps(provenance.surroundings()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=theirs / "venv", capture_output=True, text=True, check=True)
    assert '"git": null, "working_directory": {' in done.stdout


def test_a_folder_outside_of_a_checkout_has_no_revision(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git_state(tmp_path) is None
    monkeypatch.setenv("PATH", "")  # a machine without git
    assert provenance.git_state(tmp_path) is None


def test_an_uncommitted_diff_shows_no_secrets_and_leaves_code_alone(tmp_path):
    git(tmp_path, "init", "-q")
    for name in ("a.yaml", "b.py"):
        (tmp_path / name).write_text("x: 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "mine")
    (tmp_path / "a.yaml").write_text("x: 1\napi_key: plant-1 # mine\nmodel: m\nauth: {user: plant-2}\n")
    (tmp_path / "b.py").write_text(
        "x: 1\npassword: str = field()\nKEY='ghp_PlantPlantPlantPlantPlant1'\nfor key in rows: f(key=key)\n"
    )
    state = provenance.git_state(tmp_path)
    assert state is not None and state["dirty"] and "lant" not in state["diff"]
    for line in (
        "+api_key: ***",
        "+auth: ***",
        "+model: m",
        "+password: str = field()",
        "+KEY=***",
        "+for key in rows: f(key=key)",
    ):
        assert f"{line}\n" in state["diff"]


def test_a_diff_hides_secrets_of_several_lines_also_where_their_key_is_further_up(tmp_path):
    git(tmp_path, "init", "-q")
    lines = [f"  plant-{number}" for number in range(20)]
    path = tmp_path / "nested" / "a.yaml"
    path.parent.mkdir()
    path.write_text("\n".join(["x: 1", "a:", " api_key: |", *lines, "y: 1", "certificate: |", "  public", ""]))
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "mine")
    lines[10:12] = ["  plant-new", "", "  plant-newer"]
    more = ["z: 2", "tokens_of_auth_tokens:", "- plant-a", "- plant-b", "auth: >", "  plant-c", "end: 1", ""]
    path.write_text("\n".join(["x: 2", "a:", " api_key: |", *lines, "y: 1", "certificate: |", "  public", *more]))
    state = provenance.git_state(path.parent)
    assert state is not None and "lant" not in state["diff"]
    for line in ("-x: 1", "+x: 2", "-***", "+***", "   public", "+z: 2", "+auth: ***", "+end: 1"):
        assert f"{line}\n" in state["diff"], state["diff"]


def test_commands_that_a_repository_names_do_not_run(tmp_path: Path) -> None:
    """The working directory may be a repository that came with data: its configuration can name filters and hooks."""
    evil = script_that_tells(tmp_path, "cat\n")
    folder = tmp_path / "data"
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (folder / "a.txt").write_text("one\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    (folder / ".gitattributes").write_text("* filter=x diff=x\n*.txt filter=a=b\n")
    (folder / "a.txt").write_text("two\n")
    keys = (
        "core.fsmonitor",
        "diff.external",
        "diff.x.textconv",
        "diff.x.command",
        "filter.x.clean",
        "filter.x.process",
        "filter.a=b.clean",
    )
    for key in keys:
        subprocess.run([*git, "config", key, str(evil)], check=True)
    subprocess.run([*git, "config", "filter.x.required", "true"], check=True)
    state = provenance.git_state(folder)
    assert state is not None and state["dirty"] and "+two" in state["diff"]
    assert not (tmp_path / "ran").exists()


def test_missing_objects_are_not_fetched(tmp_path: Path) -> None:
    """A partial clone fetches them with the program that its configuration names."""
    evil = script_that_tells(tmp_path)
    folder = tmp_path / "data"
    git(tmp_path, "init", "-q", str(folder))
    (folder / "a.txt").write_text("one\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    blob = git(folder, "rev-parse", "HEAD:a.txt")
    (folder / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    (folder / "a.txt").write_text("two\n")
    partial = {"repositoryformatversion": "1", "sshCommand": str(evil)}
    for key, value in partial.items():
        git(folder, "config", f"core.{key}", value)
    git(folder, "config", "extensions.partialClone", "origin")
    git(folder, "config", "remote.origin.url", "ssh://example.org/x")
    git(folder, "config", "remote.origin.promisor", "true")
    state = provenance.git_state(folder)
    assert state is not None and len(state["revision"]) == 40
    assert state["dirty"] is None, "unknown: the committed file is not there to compare with"
    assert not (tmp_path / "ran").exists()


def test_a_linked_worktree_has_the_state_of_its_own_index(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    git(tmp_path, "init", "-q", str(first))
    (first / "a.txt").write_text("one\n")
    git(first, "add", ".")
    git(first, "commit", "-qm", "one")
    git(first, "worktree", "add", "-q", str(second))
    (second / "a.txt").write_text("two\n")
    git(second, "add", ".")
    state = provenance.git_state(second)
    assert state is not None and state["dirty"] and "+two" in state["diff"]
    assert provenance.git_state(first) == {"revision": state["revision"], "dirty": False, "diff": ""}


def test_files_of_a_checkout_are_listed_below_a_folder_of_it(tmp_path: Path) -> None:
    evil = script_that_tells(tmp_path)
    top = tmp_path / "data"
    git(tmp_path, "init", "-q", str(top))
    (top / "src" / "new").mkdir(parents=True)
    for name in ("top.txt", "src/a.txt", ".gitignore"):
        (top / name).write_text("*.log\n")
    git(top, "add", ".")
    git(top, "commit", "-qm", "one")
    for name in ("src/new/b.txt", "src/c.log"):
        (top / name).write_text("new")
    git(top, "config", "core.fsmonitor", str(evil))
    assert sorted(provenance.tracked_and_new_files(top / "src")) == ["a.txt", "new/b.txt"]
    assert not (tmp_path / "ran").exists()
