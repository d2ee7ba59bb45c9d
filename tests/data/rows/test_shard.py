"""Shards: reading from any offset gives the same rows as reading the whole file, for every kind of file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arctic_hydra.data.rows.base import ListRows
from arctic_hydra.data.rows.columnar import IndexedShard
from arctic_hydra.data.rows.shard import START, ByteOffset, LazyShard, Shard
from arctic_hydra.data.source.base import SampledSource
from arctic_hydra.data.source.csv import CsvSource
from arctic_hydra.data.source.hf import HFSource
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.data.source.text import TextSource

ROWS = [{"id": str(n), "text": f"line {n}, ü\u2028 and\x85more" + (" x" * n)} for n in range(23)]


TABLE = pa.Table.from_pylist(ROWS)


def jsonl(path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path.write_text("\ufeff" + "\n\n".join(lines) + "\n\n", encoding="utf-8")


def csv_file(path: Path) -> None:
    path.write_text("\n".join(["id,text", *(f'{row["id"]},"{row["text"]}"' for row in ROWS)]), encoding="utf-8")


def csv_with_breaks(path: Path) -> None:
    path.write_text(
        "id;text\r\n" + "".join(f'{n};"a\r\n{n}\n."\r\n\r\n' for n in range(23)), encoding="utf-8", newline=""
    )


def text(path: Path) -> None:
    path.write_text(
        "\r\n".join(row["text"] + "\r" * (int(row["id"]) % 2) if int(row["id"]) % 3 else "" for row in ROWS),
        encoding="utf-8",
        newline="",
    )


def arrow(path: Path) -> None:
    with pa.ipc.new_file(path, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=5)


KINDS: dict[str, tuple[str, Callable[[Path], None], Callable[[Path], SampledSource]]] = {
    "jsonl": ("a.jsonl", jsonl, lambda path: JsonSource(path=str(path))),
    "csv": ("a.csv", csv_file, lambda path: CsvSource(path=str(path))),
    "csv_with_breaks": ("a.csv", csv_with_breaks, lambda path: CsvSource(path=str(path), delimiter=";")),
    "text": ("a.txt", text, lambda path: TextSource(path=str(path))),
    "paragraphs": ("a.txt", text, lambda path: TextSource(path=str(path), sample_by="paragraph")),
    "parquet": ("a.parquet", lambda path: pq.write_table(TABLE, path, row_group_size=7), lambda path: HFSource(path=str(path))),
    "arrow": ("a.arrow", arrow, lambda path: HFSource(path=str(path))),
    "datasets": (
        "a.jsonl",
        lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
        lambda path: HFSource(path=str(path.parent), kwargs={"data_files": {"train": path.name}}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_reading_from_every_offset_gives_the_rows_of_the_whole_file(kind: str, tmp_path: Path) -> None:
    name, write, make = KINDS[kind]
    write(tmp_path / name)
    source = make(tmp_path / name)
    rows = source.rows("train")
    whole = rows.take(range(len(rows)))
    (shard,) = source.shards("train")
    offset, ended, found, offsets = START, False, [], [START]
    while not ended:
        part, offset, ended = shard.read(offset, 4)
        found += part.take(range(len(part)))
        offsets.append(offset)
        if kind != "datasets":
            wheres = [rows.where(len(found) - len(part) + index) for index in range(len(part))]
            assert [part.where(index) for index in range(len(part))] == wheres
    assert found == whole and len(whole) > 5
    for index, start in enumerate(offsets[:-1]):
        (fresh,) = source.shards("train")
        part, _, _ = fresh.read(start, 4)
        assert part.take(range(len(part))) == whole[4 * index : 4 * index + 4]


def test_lazy_shards_are_opened_when_read_and_closed_at_their_end() -> None:
    opened: list[str] = []

    def make() -> Shard:
        opened.append("now")
        return IndexedShard(ListRows([{"n": n} for n in range(5)]))

    shard = LazyShard(make)
    assert not opened
    rows, offset, ended = shard.read(START, 3)
    assert (rows.take([2]), offset, ended) == ([{"n": 2}], ByteOffset(3, 3), False)
    assert shard.read(offset, 3)[2] and len(opened) == 1
    assert shard.read(START, 1)[0].take([0]) == [{"n": 0}] and len(opened) == 2
