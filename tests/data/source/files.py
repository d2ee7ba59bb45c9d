"""Helpers for the tests of sources and row readers: the same rows in files of every kind."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from arctic_hydra.data.rows.base import Rows
from arctic_hydra.data.source.hf import HFSource
from tests.data.samples import write_lines

ROWS = [{"question": f"Frage {index}?", "answer": 'so, "wie"\nimmer'} for index in range(10)]


HUB_SPLITS = {"train": "train_sft", "eval": "test_sft"}
"""Splits of the fixture `hub_directory`."""


def write(path: Path) -> Path:
    """Write ROWS to a file of the kind that its suffix says."""
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


def questions(rows: Rows) -> list[str]:
    """Return the first message of each conversation."""
    return [row["messages"][0]["content"] for row in rows.take(range(len(rows)))]


def every_row(source: Any) -> list[dict[str, Any]]:
    """Return all training rows of a source."""
    rows = source.rows("train")
    taken: list[dict[str, Any]] = rows.take(range(len(rows)))
    return taken


def assert_reads_rows(path: Path, kind: type[Any]) -> None:
    """Check that a source reads ROWS from a file written by `write`, from its directory and through HFSource."""
    for source in (kind(path=str(path)), kind(path=[str(path.parent)]), HFSource(path=str(path))):
        rows = source.rows("train")
        assert rows.take(range(len(rows))) == ROWS
        assert pickle.loads(pickle.dumps(rows)).take([9, 0, 4]) == [ROWS[9], ROWS[0], ROWS[4]]
        assert path.name in rows.where(3)
