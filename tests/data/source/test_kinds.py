"""Kinds of files, lists of them, slices of splits, and what is wrong with a file."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arctic_hydra.data.rows.columnar import IterableShard
from arctic_hydra.data.rows.shard import START
from arctic_hydra.data.source.arrow import ArrowSource
from arctic_hydra.data.source.csv import CsvSource
from arctic_hydra.data.source.hf import HFSource
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.data.source.parquet import ParquetSource
from arctic_hydra.data.source.text import SampleBy, TextSource
from arctic_hydra.errors import DataError, FieldError
from tests.data.samples import write_lines

ROWS = [{"question": f"Frage {index}?", "answer": 'so, "wie"\nimmer'} for index in range(10)]


def write(path: Path) -> Path:
    table = pa.Table.from_pylist(ROWS)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=3)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table, max_chunksize=4)
    elif path.suffix == ".stream":
        with pa.ipc.new_stream(path, table.schema) as file:
            file.write_table(table, max_chunksize=4)
    elif path.suffix in (".csv", ".tsv"):
        import csv

        with path.open("w", newline="") as text:
            writer = csv.DictWriter(text, ["question", "answer"], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        write_lines(path, ROWS)
    return path


KINDS: list[tuple[str, type[Any]]] = [
    ("a.parquet", ParquetSource),
    ("a.arrow", ArrowSource),
    ("a.csv", CsvSource),
    ("a.tsv", CsvSource),
    ("a.jsonl", JsonSource),
]


@pytest.mark.parametrize(("name", "kind"), KINDS, ids=[name for name, _ in KINDS])
def test_kinds_hold_the_same_rows(tmp_path: Path, name: str, kind: type[Any]) -> None:
    path = write(tmp_path / name)
    for source in (kind(path=str(path)), kind(path=[str(tmp_path)]), HFSource(path=str(path))):
        rows = source.load("train")
        assert rows.take(range(len(rows))) == ROWS
        assert pickle.loads(pickle.dumps(rows)).take([9, 0, 4]) == [ROWS[9], ROWS[0], ROWS[4]]
        assert name in rows.where(3)


def test_arrow_streams_are_read_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.stream").rename(tmp_path / "data.arrow")
    rows = ArrowSource(path=str(path)).load("train")
    assert rows.take([5]) == [ROWS[5]]


def call(**arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "arguments": arguments}}


def with_tool(arguments: dict[str, Any], properties: dict[str, Any], **function: Any) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call(**arguments)]},
    ]
    schema = {"name": "f", "parameters": {"type": "object", "properties": properties}, **function}
    return {"messages": turns, "tools": [{"type": "function", "function": schema}], "note": None}


TOOL_ROWS = [
    with_tool({"city": "Oslo", "at": {"day": 1}}, {"city": {"type": "string", "enum": ["Oslo", None]}}, strict=True),
    with_tool({"a": 1, "at": {"hour": [2]}}, {"a": {"type": "integer"}}),
    with_tool({}, {}),
]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "saved", "streamed", "json"])
def test_arguments_that_nobody_passed_are_left_out(tmp_path: Path, kind: str) -> None:
    """Columnar files give every object the keys of all of them; the null of a JSON file was written by someone."""
    import datasets

    table = pa.Table.from_pylist(TOOL_ROWS)
    assert table.to_pylist() != TOOL_ROWS, "the file adds nulls"
    wanted = TOOL_ROWS
    if kind == "parquet":
        pq.write_table(table, tmp_path / "a.parquet")
        rows = ParquetSource(path=str(tmp_path / "a.parquet")).load("train").take(range(3))
    elif kind == "arrow":
        with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
            file.write_table(table)
        rows = ArrowSource(path=str(tmp_path / "a.arrow")).load("train").take(range(3))
    elif kind == "saved":
        datasets.Dataset(table).save_to_disk(str(tmp_path / "saved"))
        rows = HFSource(path=str(tmp_path / "saved")).load("train").take(range(3))
    elif kind == "streamed":
        shard = IterableShard(datasets.Dataset(table).to_iterable_dataset(), "origin")
        rows = shard.read(START, 3)[0].take(range(3))
    else:
        wanted = [with_tool({"city": None}, {"city": {"default": None}})]
        rows = JsonSource(path=str(write_lines(tmp_path / "a.jsonl", wanted))).load("train").take([0])
    calls = [row["messages"][1]["tool_calls"] for row in rows]
    assert calls == [row["messages"][1]["tool_calls"] for row in wanted]
    assert [row["tools"] for row in rows] == [row["tools"] for row in wanted]


def test_a_call_whose_arguments_the_file_leaves_out_has_none(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": arguments}]}]}
        for arguments in ({"x": 1}, None)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = ParquetSource(path=str(tmp_path / "a.parquet")).load("train").take([0, 1])
    assert [row["messages"][0]["tool_calls"][0]["arguments"] for row in found] == [{"x": 1}, {}]


def test_lists_keep_their_order_and_refuse_repetition(tmp_path: Path) -> None:
    first, second = write_lines(tmp_path / "b.jsonl", ROWS[:2]), write_lines(tmp_path / "a.jsonl", ROWS[2:4])
    rows = JsonSource(path=[str(first), str(second)]).load("train")
    assert rows.take(range(4)) == ROWS[:4]
    with pytest.raises(DataError, match=r"b\.jsonl: the path names it twice, expected each file once"):
        JsonSource(path=[str(first), str(tmp_path / "b*")]).load("train")


def test_texts_by_line_paragraph_and_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\n\nthree 你好\n")
    expected = {
        SampleBy.line: [("one", 1), ("two", 2), ("three 你好", 5)],
        SampleBy.paragraph: [("one\ntwo", 1), ("three 你好", 5)],
        SampleBy.document: [("one\ntwo\n\n\nthree 你好\n", 1)],
    }
    for sample_by, rows_expected in expected.items():
        rows = TextSource(path=str(path), sample_by=sample_by).load("train")
        assert [(row["text"], rows.where(n)) for n, row in enumerate(rows.take(range(len(rows))))] == [
            (text, f"{path}:{line}") for text, line in rows_expected
        ]
    assert len({str(TextSource(path=str(path), sample_by=by).identity("train")) for by in SampleBy}) == 3


@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("train[:10%]", [0]),
        ("train[50%:]", [5, 6, 7, 8, 9]),
        ("[2:4]", [2, 3]),
        ("train[-2:]", [8, 9]),
        ("train[:]", list(range(10))),
    ],
)
def test_splits_take_slices(tmp_path: Path, split: str, numbers: list[int]) -> None:
    write(tmp_path / "train.jsonl")
    for source in (HFSource(path=str(tmp_path), split=split), JsonSource(path=str(tmp_path), split=split)):
        rows = source.load("train")
        assert rows.take(range(len(rows))) == [ROWS[number] for number in numbers]
        assert rows.where(0) == f"{tmp_path / 'train.jsonl'}:{numbers[0] + 1}"


def test_slices_are_checked_and_part_of_the_identity(tmp_path: Path) -> None:
    path = str(write(tmp_path / "train.jsonl"))
    assert len({str(JsonSource(path=path, split=split).identity("train")) for split in ("", "[:2]", "[:3]")}) == 3
    with pytest.raises(
        FieldError, match=r"split: got 'train\[10\]', expected a name and a slice such as train\[:10%\]"
    ):
        JsonSource(path=path, split="train[10]")
    with pytest.raises(DataError, match=r"split=train\[20:\] leaves no row"):
        JsonSource(path=path, split="train[20:]").load("train")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "test"}, "split: got 'test', but files by path have no splits: all rows are read; pass path=<its files> alone"),
        ({"split": "test[:2]"}, r"split: got 'test\[:2\]', but .* all rows are read; pass split=\[:2\]"),
        ({"split_mapping": {"train": "x"}}, "split_mapping: has no effect on files by path"),
    ],
)  # fmt: skip
def test_files_by_path_have_no_splits(fields: dict[str, Any], message: str) -> None:
    """Of a directory with train.jsonl and test.jsonl both would be read, whatever was asked for."""
    with pytest.raises(FieldError, match=message):
        JsonSource(path="a.jsonl", **fields)


def test_a_share_that_holds_no_row_is_named(tmp_path: Path) -> None:
    path = str(write(tmp_path / "train.jsonl"))
    with pytest.raises(
        DataError, match=r"sample_ratio=0\.01 of 10 rows leaves none; .*; raise it, or set sample_count"
    ):
        JsonSource(path=path, sample_ratio="1%").load("train")
    assert len(JsonSource(path=path, sample_ratio="6%").load("train")) == 1


def every_row(source: Any) -> list[dict[str, Any]]:
    rows = source.load("train")
    taken: list[dict[str, Any]] = rows.take(range(len(rows)))
    return taken


BAD: list[tuple[type[Any], str, bytes, str]] = [
    (CsvSource, "a.csv", b"q,a\n1,2\n3\n", r"a\.csv:3: has 1 fields, but the header has 2 \(q, a\)"),
    (CsvSource, "a.csv", b"q,a\n", "holds no row below its header"),
    (CsvSource, "a.csv", b"q,a\n1,\xe9\n", r"a\.csv:2: byte 0xe9 is not UTF-8"),
    (CsvSource, "a.csv", b"q,a\n1,2\n\0\0,3\n", r"a\.csv:3: holds NUL bytes"),
    (CsvSource, "a.csv", b"PK\x03\x04", "is a zip archive; unpack it first"),
    (TextSource, "a.txt", b"\n\n", "the file is empty; expected text"),
    (TextSource, "a.txt", b"one\n\xff\xfe\n", r"a\.txt:2: byte 0xff is not UTF-8"),
    (ArrowSource, "a.arrow", b"ARROW1 no more", "a damaged Arrow file"),
    (ParquetSource, "a.parquet", b"PAR1 no more", "a damaged Parquet file"),
    (JsonSource, "a.jsonl", b'{"text": "a"}\n\0\0\0\0\n', r"a\.jsonl:2: holds NUL bytes, which a crash or a full disk"),
    (JsonSource, "a.jsonl", b'{"text": "a"}\n{"text": "b\n', r"a\.jsonl:2: not JSON .*the file may be cut off"),
]


@pytest.mark.parametrize(("kind", "name", "content", "message"), BAD)
def test_bad_files_are_named(tmp_path: Path, kind: type[Any], name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        every_row(kind(path=str(tmp_path / name)))


def test_rows_of_csv_train(tmp_path: Path, tokenizer: Any) -> None:
    from arctic_hydra.distributed import World
    from tests.data.samples import factory

    path = write(tmp_path / "a.csv")
    store = factory(path, sources={"mine": CsvSource(path=str(path))}).process("train", tokenizer, World())
    assert tokenizer.decode(store.ids(0)[store.mask(0).astype(bool)]) == ROWS[0]["answer"] + "<|im_end|>"
    json.dumps(store.report)
