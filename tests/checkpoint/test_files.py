"""Durable files and directories: complete under their final name, or absent."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from arctic_hydra.checkpoint import files
from arctic_hydra.errors import UnsafePathError


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


@pytest.mark.parametrize("can_exchange", [True, False])
def test_replacing_works_with_and_without_the_exchange_call(tmp_path, monkeypatch, can_exchange) -> None:
    if not can_exchange:
        monkeypatch.setattr(files, "_renameat2", lambda: None)
    stage, target = tmp_path / "stage", tmp_path / "target"
    for path in (stage, target):
        path.mkdir()
        (path / "name").write_text(path.name)
    files.publish_folder(stage, target)
    assert names(tmp_path) == ["target"]
    assert (target / "name").read_text() == "stage"


def test_a_folder_that_is_published_is_so_even_if_the_old_one_cannot_be_removed(tmp_path, monkeypatch) -> None:
    stage, target = tmp_path / "stage", tmp_path / "target"
    for path in (stage, target):
        path.mkdir()
        (path / "name").write_text(path.name)

    def remove(path: Path) -> None:
        if path.exists():
            raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(files, "remove_folder", remove)
    files.publish_folder(stage, target)
    assert names(tmp_path) == [".del-target", "target"] and (target / "name").read_text() == "stage"


def test_a_file_appears_complete_and_with_its_hash(tmp_path: Path) -> None:
    record = files.write_durably(tmp_path / "x", lambda file: (file.write(b"one "), file.write(b"two")))
    assert (tmp_path / "x").read_bytes() == b"one two"
    assert record == files.FileRecord(7, hashlib.sha256(b"one two").hexdigest()) == files.hash_file(tmp_path / "x")
    with pytest.raises(ZeroDivisionError):
        files.write_durably(tmp_path / "x", lambda file: (file.write(b"other"), 1 / 0))
    assert (tmp_path / "x").read_bytes() == b"one two"


def test_the_cause_of_a_failed_write_wins_over_what_the_writing_library_raises(tmp_path: Path) -> None:
    def write(file: files.HashingWriter) -> None:
        file._raw.close()
        try:
            file.write(b"x")
        except ValueError:  # a closed file; torch replaces such errors by its own
            file.error = OSError(28, "No space left on device")
            raise RuntimeError("unexpected pos 64 vs 0") from None

    with pytest.raises(OSError, match="No space left on device"):
        files.write_durably(tmp_path / "x", write)
    assert not (tmp_path / "x").exists()


def test_the_size_of_an_absent_file_is_0(tmp_path: Path) -> None:
    assert files.synced_size(tmp_path / "x") == 0
    (tmp_path / "x").write_bytes(os.urandom(5))
    assert files.synced_size(tmp_path / "x") == 5


def test_a_published_folder_is_renamed_before_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "file").touch()
    seen: list[list[str]] = []
    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path: (seen.append(names(tmp_path)), remove(path)))
    files.remove_published_folder(tmp_path / "step")
    assert seen == [[".del-step"]] and names(tmp_path) == []


def test_a_link_is_never_replaced_by_what_is_published(tmp_path: Path) -> None:
    for name in ("stage", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "target").symlink_to("elsewhere")
    with pytest.raises(UnsafePathError, match="target is a symbolic link to elsewhere"):
        files.publish_folder(tmp_path / "stage", tmp_path / "target")
    assert names(tmp_path / "elsewhere") == ["file"] and names(tmp_path) == ["elsewhere", "stage", "target"]
