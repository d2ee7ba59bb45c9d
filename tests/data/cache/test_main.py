"""The command `python -m arctic_hydra.data.cache`: list and prune."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from arctic_hydra.data.cache.__main__ import entries, main, prune
from arctic_hydra.distributed import World
from tests.data.samples import factory


@pytest.fixture
def filled(small_chats: Path, tokenizer: Any, private_cache: Path) -> Path:
    for limit in (128, 256):
        factory(small_chats, max_length=limit).process("train", tokenizer, World())
    return private_cache


def test_list_shows_entries(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3 and shown[-1].startswith("2 entries, 0.0 MiB in ")
    assert all(re.search(r"37 examples, .* tokens, used \d+.* ago", line) for line in shown[:2])


def test_prune_by_key_age_and_all(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newer, older = entries(filled)
    os.utime(older.path / "manifest.json", (0, time.time() - 3 * 86_400))
    assert main(["prune", "--older-than", "4"]) == 0 and len(entries(filled)) == 2
    assert main(["prune", "--older-than", "2"]) == 0 and entries(filled) == [newer]
    assert main(["--cache-dir", str(filled), "prune", newer.key[:8]]) == 0 and entries(filled) == []
    assert main(["prune", "--all"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("deleted 1 of 2 entries")
    assert [path.name for path in (filled / "prepared").iterdir() if path.is_dir()] == []


def test_using_an_entry_keeps_it(filled: Path, small_chats: Path, tokenizer: Any) -> None:
    for entry in entries(filled):
        os.utime(entry.path / "manifest.json", (0, 0))
    factory(small_chats, max_length=128).process("train", tokenizer, World())
    assert main(["prune", "--older-than", "1"]) == 0
    assert len(entries(filled)) == 1


def test_stored_scores_are_listed_and_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, name in enumerate("ab"):
        folder = tmp_path / "scores" / (name * 32)
        folder.mkdir(mode=0o700, parents=True)
        (folder / "about.json").write_text("{}")
        (folder / "000000-0123456789abcdef.npy").write_bytes(b"x" * 2**20)
        os.utime(folder / "about.json", (0, time.time() - place * 3 * 86_400))
    command = ["--cache-dir", str(tmp_path)]
    assert main([*command, "list"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert re.search(r"^a{32} +1\.0 MiB  scores of a frozen model, 1 part, used \d+.* ago$", shown[0]), shown
    assert shown[2].startswith("2 entries, 2.0 MiB in ")
    assert main([*command, "prune", "--older-than", "2"]) == 0
    assert [path.name for path in tmp_path.glob("scores/*/")] == ["a" * 32]


def test_an_entry_that_is_being_built_stays(filled: Path) -> None:
    first, _ = entries(filled)
    with FileLock(first.path.with_name(f"{first.key}.lock")):
        assert main(["prune", "--all"]) == 0
        assert entries(filled) == [first]


def leave(filled: Path) -> list[str]:
    """Leave what killed processes leave, and an entry without a manifest; return the names."""
    first, second = entries(filled)
    root, other = filled / "prepared", "0123456789abcdef" * 2
    (second.path / "manifest.json").unlink()
    for name in (f"{other}.part-x7", f"{other}.removed", f"{first.key}.removed", f"{first.key}.removed-123"):
        (root / name).mkdir()
        (root / name / "examples.arrow").write_bytes(b"half")
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def test_what_killed_processes_left_is_listed_and_deleted(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = leave(filled)
    (filled / "prepared" / "mine").mkdir()
    assert sorted(entry.key for entry in entries(filled)) == names and len(names) == 6
    assert main(["list"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert sum("left by a killed process" in line for line in shown) == 5
    assert main(["prune", "--older-than", "1"]) == 0 and len(entries(filled)) == 6
    assert main(["prune", "--all"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("deleted 6 of 6 entries")
    assert [path.name for path in (filled / "prepared").iterdir() if path.is_dir()] == ["mine"], "not ours"


def test_entries_in_use_by_a_running_process_stay(filled: Path) -> None:
    root, key = filled / "prepared", "0123456789abcdef" * 2
    (root / f"{key}.part-x7").mkdir()
    with FileLock(root / f"{key}.lock"):
        assert main(["prune", "--all"]) == 0
        assert [entry.key for entry in entries(filled)] == [f"{key}.part-x7"]


def test_an_entry_deleted_by_another_process_is_not_an_error(filled: Path) -> None:
    first, second = entries(filled)
    shutil.rmtree(first.path)
    assert prune([first, second]) == [second]
    assert not [path for path in (filled / "prepared").iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune"], "got nothing to delete, expected keys"),
        (["prune", "zzz"], "zzz: there is no such entry in"),
        (["prune", ""], "'': there is no such entry in"),
        (["prune", "--older-than", "-1"], "--older-than: got -1.0, expected days, 0 or more"),
        (["prune", "--older-than", "nan"], "--older-than: got nan, expected days, 0 or more"),
    ],
)
def test_bad_requests(filled: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err and len(entries(filled)) == 2


def test_it_is_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "arctic_hydra.data.cache", "--cache-dir", str(tmp_path), "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("0 entries")
