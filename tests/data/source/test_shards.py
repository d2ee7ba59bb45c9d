"""Shards: the rows of every kind of file, from any place on, as reading the whole file gives them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arctic_hydra.data.rows.base import Row
from arctic_hydra.data.rows.fingerprint import fingerprint_files
from arctic_hydra.data.rows.read import file_shard
from arctic_hydra.data.rows.shard import START
from arctic_hydra.data.source.base import SampledSource
from arctic_hydra.data.source.csv import CsvSource
from arctic_hydra.data.source.hf import HFSource
from arctic_hydra.data.source.json import JsonSource
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


def test_outlines_notice_a_file_that_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    jsonl(path)
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


def test_outlines_read_little_of_large_files(tmp_path: Path) -> None:
    """Files of 80 MB, sparse on the disk: the ends and blocks between them count."""
    paths = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for path in paths:
        with path.open("wb") as file:
            file.truncate(80_000_000)

    def outline(at: int) -> str:
        with paths[1].open("r+b") as file:
            file.seek(at)
            file.write(b"x" * 200_000)
        try:
            return str(fingerprint_files(paths))
        finally:
            with paths[1].open("r+b") as file:
                file.seek(at)
                file.write(bytes(200_000))

    before = str(fingerprint_files(paths))
    assert len({before, *(outline(at) for at in (0, 40_000_000, 79_800_000))}) == 4
    assert str(fingerprint_files(paths)) == before


def test_outlines_notice_a_saved_set_that_changed(tmp_path: Path) -> None:
    import datasets

    source = HFSource(path=str(tmp_path / "saved"))
    outlines = []
    for word in ("one", "two"):
        datasets.Dataset.from_list([{"text": word}]).save_to_disk(str(tmp_path / "saved"))
        outlines.append(str(source.outline("train")))
    assert outlines[0] != outlines[1]


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.json", b'[{"a": 1}]', r"a\.json: is a single JSON array, .*; convert it with `jq"),
        ("a.txt", b"fine\nb\xffd\n", r"a\.txt:2: byte 0xff is not UTF-8"),
        ("a.parquet", b"PAR1 no more", "a damaged Parquet file"),
        ("a.arrow", b"ARROW1 no more", "a damaged Arrow file"),
        ("a.jsonl", b"<!DOCTYPE html>", r"a\.jsonl: looks like an HTML page, not data"),
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
