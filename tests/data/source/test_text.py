"""Text files and the texts of files of rows."""

from __future__ import annotations

from pathlib import Path

from arctic_hydra.data.rows.shard import START
from arctic_hydra.data.source.text import SampleBy, TextSource
from tests.data.samples import write_lines
from tests.data.source.files import every_row


def test_a_stream_has_the_same_rows_for_each_unit(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\n\nthree\n")
    for sample_by in SampleBy:
        source = TextSource(path=str(path), sample_by=sample_by)
        rows, _, ended = source.shards("train")[0].read(START, 10)
        assert ended and rows.take(range(len(rows))) == every_row(source)


def test_files_of_rows_give_their_texts(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}])
    (tmp_path / "b.md").write_text("three\n")
    assert every_row(TextSource(path=str(tmp_path))) == [{"text": "one"}, {"text": "two"}, {"text": "three"}]
