"""Whole files and shards of any kind: wrapped values, and the message for each file that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.rows.base import Row
from arctic_hydra.data.rows.read import as_rows, file_shard
from arctic_hydra.data.rows.shard import START
from arctic_hydra.errors import DataError
from tests.data.samples import chat, factory, geometry
from tests.data.source.files import questions

GOOD = json.dumps(chat("q", "a")).encode()


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"data\.sources\.mine: .*bad\.jsonl: the file is empty"),
    "blank": (b"\n \n", "the file is empty"),
    "not json": (
        GOOD + b"\nmessages: yes\n",
        r"bad\.jsonl:2: not JSON \(.*\); got 'messages: yes'; expected one JSON object per line",
    ),
    "cut off": (GOOD + b"\n\n" + GOOD[:20], r"bad\.jsonl:3: not JSON .*the file may be truncated"),
    "not utf-8": (
        GOOD + b"\n" + GOOD.replace(b'"q"', b'"\xe9"'),
        r"bad\.jsonl:2: byte \d+ of the line \(0xe9\) is not UTF-8",
    ),
    "html": (b"<!DOCTYPE html><html>404</html>", "looks like an HTML page, not data; it starts with '<!DOCTYPE html>"),
    "gzip": (b"\x1f\x8b\x08\x00", "is gzip-compressed; unpack it first"),
    "git-lfs": (
        b"version https://git-lfs.github.com/spec/v1\n",
        "is a git-lfs pointer, not the data; run `git lfs pull`",
    ),
    "one object": (json.dumps(chat("q", "a"), indent=1).encode(), "contains a single JSON object over several lines"),
    "array of text": (b'["a"]', "row 0: got a JSON str, expected an object"),
    "bad array": (b'[\n{"messages": []},\n}]', r"bad\.jsonl:3: not JSON"),
    "lines of text": (GOOD + b'\n"text"\n', r"bad\.jsonl:2: got a JSON str, expected an object"),
    "deep": (GOOD + b"\n" + b"[" * 20_000 + b"\n", r"bad\.jsonl:2: JSON nested too deeply to read; got '\[\["),
    "deep array": (b"[" * 20_000, "JSON nested too deeply to read; expected an array of objects"),
    "parquet": (b"PAR1 no more", "a damaged Parquet file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(name: str, tmp_path: Path, tokenizer: Any) -> None:
    content, message = BAD_FILES[name]
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        factory(tmp_path / "bad.jsonl").build(tokenizer, geometry())


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
        ("a.jsonl", b'{"a": 1}\n\0\0\n', r"a\.jsonl:2: contains NUL bytes"),
        ("a.jsonl.gz", b"\x1f\x8b\x08", r"a\.jsonl\.gz: is gzip-compressed"),
    ],
)
def test_shards_that_cannot_be_read_are_named(name: str, content: bytes, error: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)

    def read() -> list[Row]:
        part = file_shard(tmp_path / name).read(START, 10)[0]
        return part.take(range(len(part)))

    with pytest.raises(DataError, match=error):
        read()


def test_lists_and_datasets_of_other_sources_are_wrapped() -> None:
    import datasets

    rows = [chat("one", "a"), chat("two", "b")]
    assert questions(as_rows(rows)) == questions(as_rows(datasets.Dataset.from_list(rows))) == ["one", "two"]
