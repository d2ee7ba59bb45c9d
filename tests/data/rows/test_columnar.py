"""Parquet, Arrow and saved datasets: nulls that the schema adds are dropped, damaged files are named."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arctic_hydra.data.rows import columnar
from arctic_hydra.data.rows.columnar import IterableShard, ParquetRows, read_parquet
from arctic_hydra.data.rows.read import as_rows, read_file
from arctic_hydra.data.rows.shard import START
from arctic_hydra.data.source.arrow import ArrowSource
from arctic_hydra.data.source.hf import HFSource
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.data.source.parquet import ParquetSource
from arctic_hydra.errors import DataError
from tests.data.samples import write_lines
from tests.data.source.files import every_row


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
def test_nulls_that_the_schema_adds_to_calls_and_tools_are_dropped(tmp_path: Path, kind: str) -> None:
    """The schema of a columnar file adds null for missing keys; a null in a JSON file is kept."""
    table = pa.Table.from_pylist(TOOL_ROWS)
    assert table.to_pylist() != TOOL_ROWS, "the schema adds nulls"
    wanted = TOOL_ROWS
    if kind == "parquet":
        pq.write_table(table, tmp_path / "a.parquet")
        rows = ParquetSource(path=str(tmp_path / "a.parquet")).rows("train").take(range(3))
    elif kind == "arrow":
        with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
            file.write_table(table)
        rows = ArrowSource(path=str(tmp_path / "a.arrow")).rows("train").take(range(3))
    elif kind == "saved":
        datasets.Dataset(table).save_to_disk(str(tmp_path / "saved"))
        rows = HFSource(path=str(tmp_path / "saved")).rows("train").take(range(3))
    elif kind == "streamed":
        shard = IterableShard(datasets.Dataset(table).to_iterable_dataset(), "origin")
        rows = shard.read(START, 3)[0].take(range(3))
    else:
        wanted = [with_tool({"city": None}, {"city": {"default": None}})]
        rows = JsonSource(path=str(write_lines(tmp_path / "a.jsonl", wanted))).rows("train").take([0])
    calls = [row["messages"][1]["tool_calls"] for row in rows]
    assert calls == [row["messages"][1]["tool_calls"] for row in wanted]
    assert [row["tools"] for row in rows] == [row["tools"] for row in wanted]


def test_a_call_with_null_arguments_has_empty_ones(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": arguments}]}]}
        for arguments in ({"x": 1}, None)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = ParquetSource(path=str(tmp_path / "a.parquet")).rows("train").take([0, 1])
    assert [row["messages"][0]["tool_calls"][0]["arguments"] for row in found] == [{"x": 1}, {}]


BAD: list[tuple[type[Any], str, bytes, str]] = [
    (ArrowSource, "a.arrow", b"ARROW1 no more", "a damaged Arrow file"),
    (ParquetSource, "a.parquet", b"PAR1 no more", "a damaged Parquet file"),
]


@pytest.mark.parametrize(("kind", "name", "content", "message"), BAD)
def test_bad_files_are_named(tmp_path: Path, kind: type[Any], name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        every_row(kind(path=str(tmp_path / name)))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_flipped_and_missing_bytes_give_rows_or_a_data_error(tmp_path: Path, kind: str) -> None:
    chance = random.Random(0)
    table = pa.Table.from_pylist([{"text": f"{chance.random()}"} for _ in range(20)])
    good, damaged = tmp_path / f"good.{kind}", tmp_path / f"damaged.{kind}"
    if kind == "parquet":
        pq.write_table(table, good, row_group_size=5)
    else:
        with pa.OSFile(str(good), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
    refused: list[str] = []
    for _ in range(200):
        content = bytearray(good.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        place = chance.randrange(len(content))
        del content[place : place + chance.randrange(3)]
        damaged.write_bytes(content)
        try:
            rows = read_file(damaged)
            rows.take(range(len(rows)))
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all(text.startswith(f"{damaged}: ") for text in refused)


def test_values_that_python_cannot_hold_are_named(tmp_path: Path) -> None:
    """As `infinity` of a database, or a sentinel, in a column that nothing uses."""
    table = pa.table({"text": ["a"], "at": pa.array([1 << 40], pa.timestamp("s"))})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    for rows in (read_file(tmp_path / "a.parquet"), read_file(tmp_path / "a.arrow"), as_rows(datasets.Dataset(table))):
        with pytest.raises(
            DataError, match=r"^(/.*a\.\w+|a data set): holds a value that Python cannot hold \(.*\); convert or"
        ):
            rows.take([0])


def test_a_compressed_arrow_file_is_in_memory_one_batch_at_a_time(tmp_path: Path) -> None:
    table = pa.table({"number": range(1 << 18)})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema, options=options) as file:
        file.write_table(table, max_chunksize=1 << 14)
    before = pa.total_allocated_bytes()
    rows = read_file(tmp_path / "a.arrow")
    assert rows.take([5, 1 << 17]) == [{"number": 5}, {"number": 1 << 17}] and len(rows) == 1 << 18
    assert pa.total_allocated_bytes() - before < table.nbytes / 2


def test_only_the_rows_taken_of_an_arrow_batch_become_python_objects(tmp_path: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array(["x" * 2**20]))
    with pa.ipc.new_file(tmp_path / "a.arrow", pa.schema([("text", texts.type)])) as file:
        file.write_table(pa.table({"text": texts}))
    tracemalloc.start()
    assert len(read_file(tmp_path / "a.arrow").take([3, 4])) == 2
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["text", "differences", "nested", "numbers", "nulls"])
def test_a_small_file_does_not_become_gigabytes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is stored once can be in every row; refused before they are made."""
    count = 1 << 14
    monkeypatch.setattr(columnar, "MAX_GROUP_BYTES", count * 4 if kind in ("numbers", "nulls") else count << 10)
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array(["x" * 2048]))
    starts = pa.array(range(count + 1), pa.int32())
    columns = {
        "text": texts,
        "differences": texts.cast(pa.string()),
        "nested": pa.ListArray.from_arrays(starts, pa.StructArray.from_arrays([texts, starts[1:]], ["content", "at"])),
        "numbers": pa.array([7] * count),
        "nulls": pa.nulls(count, pa.float64()),
    }
    stored: dict[str, Any] = {"compression": "zstd", "store_schema": False}
    if kind == "differences":
        stored |= {"use_dictionary": False, "column_encoding": {kind: "DELTA_BYTE_ARRAY"}}
    pq.write_table(pa.table({kind: columns[kind]}), tmp_path / "a.parquet", **stored)
    monkeypatch.setattr(columnar, "MAX_EXPANSION", 1)
    rows = read_file(tmp_path / "a.parquet")
    before = pa.total_allocated_bytes()
    with pytest.raises(
        DataError, match=r"a.parquet: its row group 0 would take more than .*; write it with smaller row groups"
    ):
        rows.take([0])
    assert pa.total_allocated_bytes() - before < 1 << 20
    monkeypatch.setattr(columnar, "MAX_GROUP_BYTES", count << 12)
    assert len(rows.take([0, 1])) == 2


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_texts_stored_as_differences_are_read(encoding: str, tmp_path: Path) -> None:
    """As parquet-java writes them; Arrow cannot read them into a dictionary."""
    table = pa.table({"text": [f"row {index}" for index in range(200)]})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, column_encoding={"text": encoding})
    assert read_file(tmp_path / "a.parquet").take([0, 199]) == [{"text": "row 0"}, {"text": "row 199"}]


def test_a_group_counts_its_texts_once_and_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"text": [f"{index:01000}" for index in range(1000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=500, compression="zstd")
    monkeypatch.setattr(columnar, "MAX_GROUP_BYTES", 800_000)
    monkeypatch.setattr(columnar, "MAX_EXPANSION", 1)
    measured, measure = [], ParquetRows._check_size
    monkeypatch.setattr(ParquetRows, "_check_size", lambda rows, group: (measured.append(group), measure(rows, group)))
    rows = read_file(tmp_path / "a.parquet")
    for index in (0, 999, 1, 998):
        rows.take([index])
    assert measured == [0, 1]


def test_a_negative_number_of_rows_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Metadata:
        num_row_groups = 1

        def row_group(self, index: int) -> Any:
            return SimpleNamespace(num_rows=-5)

    monkeypatch.setattr(ParquetRows, "_open", lambda self: SimpleNamespace(metadata=Metadata()))
    with pytest.raises(
        DataError, match=r"a.parquet: a damaged Parquet file \(a row group of fewer than 0 rows\); get it"
    ):
        read_parquet(tmp_path / "a.parquet")
