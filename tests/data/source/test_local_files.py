"""Sources of files by path: no splits, and an outline without reading everything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.source.hf import HFSource
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.errors import FieldError
from tests.data.samples import write_lines


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "test"}, "split: got 'test', but files by path have no splits: all rows are read; pass path=<its files> alone"),
        ({"split": "test[:2]"}, r"split: got 'test\[:2\]', but .* all rows are read; pass split=\[:2\]"),
        ({"split_mapping": {"train": "x"}}, "split_mapping: has no effect on files by path"),
    ],
)  # fmt: skip
def test_files_by_path_have_no_splits(fields: dict[str, Any], message: str) -> None:
    """Of a directory with train.jsonl and test.jsonl, both would be read for any split."""
    with pytest.raises(FieldError, match=message):
        JsonSource(path="a.jsonl", **fields)


def test_outlines_notice_a_file_that_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_lines(path, [{"text": f"line {n}"} for n in range(23)])
    source, hub = JsonSource(path=str(tmp_path)), HFSource(path=str(path))
    content = path.read_bytes()
    before = [source.outline("train"), hub.outline("train")]
    os.utime(path, (1, 1))
    assert [source.outline("train"), hub.outline("train")] == before, "a copy is the same set"
    path.write_bytes(content.replace(b"line 7", b"line 8"))
    after = [source.outline("train"), hub.outline("train")]
    assert path.stat().st_size == len(content) and after[0] != before[0] and after[1] != before[1]
    named = HFSource(path="some/set", revision="main")
    assert named.outline("train")["content"] == ["some/set", "main", []]
