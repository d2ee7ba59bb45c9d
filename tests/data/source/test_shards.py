"""Shards: the rows of every kind of file, from any place on, as reading the whole file gives them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arctic_hydra.data.source.base import SampledSource
from arctic_hydra.data.source.csv import CsvSource
from arctic_hydra.data.source.hf import HFSource
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.data.source.rows import Row
from arctic_hydra.data.source.shards import START, file_shard
from arctic_hydra.data.source.text import TextSource
from arctic_hydra.errors import DataError

ROWS = [{"id": str(n), "text": f"line {n}, ü\u2028 and\x85more" + (" x" * n)} for n in range(23)]
TABLE = pa.Table.from_pylist(ROWS)


def jsonl(path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path.write_text("\ufeff" + "\n\n".join(lines) + "\n\n", encoding="utf-8")


def csv_file(path: Path) -> None:
    path.write_text("\n".join(["id,text", *(f'{row["id"]},"{row["text"]}"' for row in ROWS)]), encoding="utf-8")


def csv_with_breaks(path: Path) -> None:
    path.write_text("id;text\r\n" + "".join(f'{n};"a\n{n}"\r\n\r\n' for n in range(23)), encoding="utf-8", newline="")


def text(path: Path) -> None:
    path.write_text(
        "\r\n".join(row["text"] if int(row["id"]) % 3 else "" for row in ROWS), encoding="utf-8", newline=""
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
def test_reading_on_from_every_place_gives_what_the_whole_file_gives(kind: str, tmp_path: Path) -> None:
    name, write, make = KINDS[kind]
    write(tmp_path / name)
    source = make(tmp_path / name)
    rows = source.load("train")
    whole = rows.take(range(len(rows)))
    (shard,) = source.shards("train")
    place, ended, found, places = START, False, [], [START]
    while not ended:
        part, place, ended = shard.read(place, 4)
        found += part.take(range(len(part)))
        places.append(place)
        if kind != "datasets":
            wheres = [rows.where(len(found) - len(part) + index) for index in range(len(part))]
            assert [part.where(index) for index in range(len(part))] == wheres
    assert found == whole and len(whole) > 5
    for index, start in enumerate(places[:-1]):
        (fresh,) = source.shards("train")
        part, _, _ = fresh.read(start, 4)
        assert part.take(range(len(part))) == whole[4 * index : 4 * index + 4]


def test_outlines_need_no_reading(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl")
    source = JsonSource(path=str(tmp_path))
    before = source.outline("train")
    assert before["content"] == [["a.jsonl", (tmp_path / "a.jsonl").stat().st_size]]
    (tmp_path / "a.jsonl").write_text("{}")
    assert source.outline("train") != before
    hub = HFSource(path="some/set", revision="main")
    assert hub.outline("train")["content"] == ["some/set", "main", []]


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.json", b'[{"a": 1}]', r"a\.json: is one JSON array, .*; convert it with `jq"),
        ("a.txt", b"fine\nb\xffd\n", r"a\.txt:2: byte 0xff is not UTF-8"),
        ("a.csv", b"a,b\n1,2\n3\n", r"a\.csv:3: has 1 fields, but the header has 2 \(a, b\)"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"a": 1}\n\0\0\n', r"a\.jsonl:2: holds NUL bytes"),
        ("a.jsonl.gz", b"\x1f\x8b\x08", r"a\.jsonl\.gz: is gzip-compressed"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes, error: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)

    def read() -> list[Row]:
        part = file_shard(tmp_path / name).read(START, 10)[0]
        return part.take(range(len(part)))

    with pytest.raises(DataError, match=error):
        read()
