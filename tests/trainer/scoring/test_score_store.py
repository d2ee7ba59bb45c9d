"""Stored scores are complete and sound, or computed again."""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import pytest

from arctic_hydra.errors import ConfigError
from arctic_hydra.trainer.scoring.score_store import DamagedScoresError, Entry, entry_key, open_root

RECORD = np.dtype([("ids", "<i4", (2,)), ("logp", "<f4")])
SIZES = [3, 0, 2]


def entry_in(folder, key="a" * 32, sizes=SIZES):
    entry = Entry(open_root(folder) / key, {"weights": "w"}, RECORD, sizes)
    entry.create()
    for index, size in enumerate(sizes):
        records = np.empty(size, RECORD)
        records["ids"], records["logp"] = np.arange(2 * size).reshape(-1, 2), -0.5
        entry.write(index, records)
    return entry


def test_records_are_read_as_they_were_written(tmp_path):
    entry = entry_in(tmp_path)
    parts = entry.read()
    assert [len(part) for part in parts] == SIZES and entry.size_bytes == 5 * 12
    assert parts[2]["ids"].tolist() == [[0, 1], [2, 3]] and parts[0]["logp"].tolist() == [-0.5] * 3
    assert entry.missing() == [] and json.loads((entry.path / "about.json").read_text()) == {"weights": "w"}


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def _swap(path):
    path.rename(path.with_name(path.name.replace("000000", "000002")))


@pytest.mark.parametrize("damage", [_truncate, _flip, _swap])
def test_a_damaged_part_is_never_read_and_computed_again(tmp_path, caplog, damage):
    entry = entry_in(tmp_path, sizes=[3, 0, 3])
    damage(next(entry.path.glob("000000-*")))
    with pytest.raises(DamagedScoresError, match=r"trainer.scores_dir: the stored scores in .* are incomplete"):
        entry.read()
    with caplog.at_level(logging.WARNING):
        assert entry.missing() == [0]
    assert "damaged" in caplog.text and "computed again" in caplog.text
    assert len(list(entry.path.glob("*.npy"))) == 2


def test_a_directory_in_place_of_a_part_is_named(tmp_path):
    entry = entry_in(tmp_path)
    (entry.path / "other.npy").mkdir()
    with pytest.raises(ConfigError, match=r"trainer.scores_dir: cannot write to .*"):
        entry.missing()


def test_parts_of_another_entry_are_not_read(tmp_path):
    one, other = entry_in(tmp_path), entry_in(tmp_path, "b" * 32)
    shutil.rmtree(other.path)
    shutil.copytree(one.path, other.path)
    assert other.missing() == [0, 1, 2]


def test_what_a_killed_process_left_is_removed(tmp_path):
    entry = entry_in(tmp_path)
    (entry.path / ".part-xyz").write_bytes(b"half")
    entry.create()
    assert not (entry.path / ".part-xyz").exists() and entry.missing() == []


def test_the_key_follows_what_the_numbers_depend_on():
    about = {"weights": "a", "dtype": "fp32", "documents": "d"}
    keys = {entry_key({**about, name: "other"}) for name in about} | {entry_key(about)}
    assert len(keys) == 4 and entry_key(dict(reversed(about.items()))) == entry_key(about)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"trainer.scores_dir: .*/file is not a directory"):
        open_root(tmp_path / "file")
    (tmp_path / "scores").symlink_to(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"trainer.scores_dir: .*/scores is a symbolic link"):
        open_root(tmp_path)
    shutil.rmtree(entry_in(tmp_path / "x").path)
    entry = Entry(tmp_path / "x" / "gone", {}, RECORD, [1])
    with pytest.raises(ConfigError, match=r"trainer.scores_dir: cannot write to .*/gone"):
        entry.write(0, np.empty(1, RECORD))
