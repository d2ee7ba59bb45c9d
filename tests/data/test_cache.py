"""Prepared data: the right key, one builder at a time, nothing half-built or damaged ever read."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.utils import chat_template_utils

from arctic_hydra.data.cache import token_store as store_module
from arctic_hydra.data.cache.entries import open_or_build
from arctic_hydra.data.cache.token_store import EXAMPLES, MANIFEST, DamagedEntryError, TokenStore, write_store
from arctic_hydra.data.documents import Chunk
from arctic_hydra.data.prepare import key as key_module
from arctic_hydra.data.prepare.key import CODE_VERSION
from arctic_hydra.data.prepare.truncation import Overlong
from arctic_hydra.data.sft import SFTDataFactory, TrainOn
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.data.tokenized import Malformed
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError
from tests.data.samples import (
    CHATML_TAGS_WITH_HEADER,
    CHATML_UNTAGGED,
    QWEN_TOOLS,
    chat,
    factory,
    make_tokenizer,
    write_lines,
)


def key(path: Path, tokenizer: Any, **fields: Any) -> str:
    return factory(path, **fields).process("train", tokenizer, World()).key


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "prepared").iterdir() if path.is_dir())


def with_templates(**named: str) -> Any:
    tokenizer = make_tokenizer(None)
    tokenizer.chat_template = named
    return tokenizer


def test_pitfall_27_b14_w6_the_key_follows_content_and_options(
    small_chats: Path, tokenizer: Any, private_cache: Path
) -> None:
    first = key(small_chats, tokenizer)
    os.utime(small_chats, (1, 1))
    assert key(small_chats, tokenizer) == first, "touching the file changes nothing"
    elsewhere = small_chats.parent / "moved" / small_chats.name
    elsewhere.parent.mkdir()
    shutil.copy(small_chats, elsewhere)
    assert key(elsewhere, tokenizer) == first, "the place of the file changes nothing"
    assert key(small_chats, tokenizer, packing=False, num_proc=2) == first, "packing works on prepared data"
    others = [
        key(small_chats, tokenizer, max_length=100),
        key(small_chats, tokenizer, mask_inputs=False),
        key(small_chats, tokenizer, overlong=Overlong.keep_end),
        key(small_chats, tokenizer, malformed=Malformed.drop),
        key(small_chats, tokenizer, train_on=TrainOn.last),
        key(small_chats, make_tokenizer(tokenizer.chat_template, eos_token="</s>")),
        key(small_chats, make_tokenizer(tokenizer.chat_template)),
        key(small_chats, make_tokenizer(CHATML_UNTAGGED)),
        key(small_chats, with_templates(default=CHATML_UNTAGGED, tool_use=QWEN_TOOLS)),
        key(small_chats, with_templates(default=CHATML_UNTAGGED, tool_use=CHATML_TAGS_WITH_HEADER)),
    ]
    stat = small_chats.stat()
    small_chats.write_bytes(small_chats.read_bytes().replace(b"Answer 3", b"Answer 4"))
    os.utime(small_chats, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    others.append(key(small_chats, tokenizer))
    assert len({first, *others}) == 12
    assert len(entries(private_cache)) == 12


def test_code_version_is_part_of_the_key(small_chats: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = key(small_chats, tokenizer)
    monkeypatch.setattr(key_module, "CODE_VERSION", CODE_VERSION + 1)
    assert key(small_chats, tokenizer) != first


def test_the_key_of_a_template_that_writes_the_date_is_that_of_yesterday(
    small_chats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer("{{ strftime_now('%Y-%m-%d') }}" + CHATML_UNTAGGED)
    first = factory(small_chats).process("train", tokenizer, World())
    monkeypatch.setattr(SFTDataFactory, "load", lambda *_: pytest.fail("the cache was not used"))
    for module in (key_module, chat_template_utils):
        for name, real in (("date", date), ("datetime", datetime)):
            monkeypatch.setattr(module, name, tomorrow(real), raising=False)
    assert key(small_chats, tokenizer) == first.key


def tomorrow(kind: Any) -> Any:
    """Return the class with a clock that is a day ahead."""
    ahead = timedelta(days=1)
    clock = {name: classmethod(lambda cls, name=name: getattr(kind, name)() + ahead) for name in ("today", "now")}
    return type(kind.__name__, (kind,), clock)


def test_second_run_reads_what_the_first_wrote(
    small_chats: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = factory(small_chats).process("train", tokenizer, World())
    monkeypatch.setattr(SFTDataFactory, "load", lambda *_: pytest.fail("the cache was not used"))
    again = factory(small_chats).process("train", tokenizer, World())
    assert again.report == first.report
    for index in range(len(first)):
        assert (again.ids(index) == first.ids(index)).all() and (again.mask(index) == first.mask(index)).all()


def test_w31_directories_are_private(small_chats: Path, tokenizer: Any, private_cache: Path, tmp_path: Path) -> None:
    key(small_chats, tokenizer)
    for path in (private_cache, private_cache / "prepared", *entries(private_cache)):
        assert path.stat().st_mode & 0o777 == 0o700, path
    key(small_chats, tokenizer, cache_dir=str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "prepared").stat().st_mode & 0o777 == 0o700


def test_w19_cache_off_leaves_nothing_behind_and_is_no_part_of_the_key(
    small_chats: Path, tokenizer: Any, private_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    store = factory(small_chats, cache=False).process("train", tokenizer, World())
    assert not private_cache.exists() and not any((tmp_path / "scratch").iterdir())
    cached = factory(small_chats).process("train", tokenizer, World())
    assert store.key == cached.key
    assert [store.ids(index).tolist() for index in range(37)] == [cached.ids(index).tolist() for index in range(37)]


@pytest.mark.parametrize(
    "damage", ["truncate", "no manifest", "garbage manifest", "wrong count", "not arrow", "one token"]
)
def test_a_damaged_entry_is_built_again(small_chats: Path, tokenizer: Any, private_cache: Path, damage: str) -> None:
    first = factory(small_chats).process("train", tokenizer, World())
    expected = [first.ids(index).tolist() for index in range(len(first))]
    (entry,) = entries(private_cache)
    examples, manifest = entry / EXAMPLES, entry / MANIFEST
    size = examples.stat().st_size
    if damage == "truncate":
        os.truncate(examples, examples.stat().st_size // 2)
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "garbage manifest":
        manifest.write_text("{")
    elif damage == "wrong count":
        manifest.write_text(manifest.read_text().replace('"examples": 37', '"examples": 36'))
    elif damage == "one token":
        content = bytearray(examples.read_bytes())
        content[content.index(first.ids(20).tobytes())] ^= 1
        examples.unlink()  # the first store still looks at the file
        examples.write_bytes(content)
    else:
        examples.unlink()
        examples.write_bytes(b"x" * size)
    again = factory(small_chats).process("train", tokenizer, World())
    assert [again.ids(index).tolist() for index in range(len(again))] == expected
    assert entries(private_cache) == [entry]


def chunks() -> list[Chunk]:
    return [Chunk(np.arange(5, dtype=np.int32), np.ones(5, np.uint8), np.array([2, 3], np.int32), np.array([0, 1]))]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([EXAMPLES, MANIFEST]), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_w17_any_bit_that_flips_is_found(tmp_path: Path, name: str, place: float, bit: int) -> None:
    """Of 60 damaged files of the right size, 43 had been trained on as other tokens."""
    write_store(folder := Path(tempfile.mkdtemp(dir=tmp_path)), chunks(), lambda: {"rows": 2})
    TokenStore(folder, "k")
    content = bytearray((folder / name).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    (folder / name).write_bytes(content)
    if name == EXAMPLES or meaning(bytes(content)) != {"rows": 2}:
        with pytest.raises(DamagedEntryError):
            TokenStore(folder, "k")


def meaning(manifest: bytes) -> Any:
    """Return the report in a manifest: white space in it means nothing."""
    try:
        return json.loads(manifest)["report"]
    except (ValueError, LookupError):
        return None


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("length", [2, 4], "lengths"),
        ("length", [0, 3], "lengths"),
        ("supervised", [2, 9], "counts of trained tokens"),
        ("row", [-1, 1], "row numbers"),
        ("row", [1, 0], "row numbers"),
        ("ids", [[0, 1, 2], [3, 4]], "offsets"),
        ("row", [0, None], "1 numbers are missing"),
    ],
)
def test_numbers_that_cannot_be_are_refused_whoever_wrote_them(
    tmp_path: Path, column: str, values: list[Any], message: str
) -> None:
    write_store(tmp_path, chunks(), dict)
    table = pa.ipc.open_file(tmp_path / EXAMPLES).read_all()
    index = table.schema.get_field_index(column)
    table = table.set_column(index, column, pa.array(values, table.schema.field(column).type))
    with pa.ipc.new_file(tmp_path / EXAMPLES, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / MANIFEST).unlink()
    store_module._write_manifest(tmp_path, 2, {})
    with pytest.raises(DamagedEntryError, match=message):
        TokenStore(tmp_path, "k")


def build_slowly(part: Path, log: Path, seconds: float) -> None:
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    write_store(part, chunks(), dict)


def open_in_child(cache: Path, log: Path, seconds: float, queue: Any) -> None:
    store = open_or_build(cache, "k", lambda part: build_slowly(part, log, seconds))
    queue.put((os.getpid(), store.ids(1).tolist()))


def test_w17_processes_that_want_the_same_data_build_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue, log = context.Queue(), tmp_path / "builders"
    children = [context.Process(target=open_in_child, args=(tmp_path / "c", log, 0.5, queue)) for _ in range(3)]
    for child in children:
        child.start()
    results = [queue.get(timeout=30) for _ in children]
    for child in children:
        child.join(30)
    assert [ids for _, ids in results] == [[2, 3, 4]] * 3
    assert len(log.read_text().splitlines()) == 1


@pytest.mark.faults
def test_pitfall_26_a_killed_builder_blocks_nobody(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "builders"
    child = context.Process(target=open_in_child, args=(tmp_path / "c", log, 60.0, context.Queue()))
    child.start()
    deadline = time.monotonic() + 20
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(10)
    store = open_or_build(tmp_path / "c", "k", lambda part: build_slowly(part, log, 0))
    assert isinstance(store, TokenStore) and store.mask(0).tolist() == [1, 1]
    assert sorted(path.name for path in (tmp_path / "c" / "prepared").iterdir() if path.is_dir()) == ["k"]


def test_a_failing_build_publishes_nothing(tmp_path: Path, tokenizer: Any, private_cache: Path) -> None:
    path = write_lines(tmp_path / "bad.jsonl", [chat("a", "b"), {"messages": "x"}])
    for _ in range(2):
        with pytest.raises(DataError, match="messages is a str"):
            key(path, tokenizer)
    assert entries(private_cache) == []


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    def fill(part: Path) -> None:
        (part / EXAMPLES).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match=r"data\.cache_dir: cannot write to .* \(No space left on device\)"):
        open_or_build(tmp_path / "c", "k", fill)
    assert entries(tmp_path / "c") == []


@pytest.mark.faults
def test_a_small_file_system_that_fills_while_the_cache_is_built(
    small_chats: Path, tmp_path: Path, tokenizer: Any
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        with pytest.raises(DataError, match=r"data\.cache_dir: cannot write to .*disk.* \(No space left on device\)"):
            key(small_chats, tokenizer, cache_dir=str(disk))
        assert entries(disk) == []
    finally:
        subprocess.run(["umount", "-l", disk], capture_output=True)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ("on", "data.cache_dir: cannot write to "),
        ("off", "data.cache: off prepares data below {}, which cannot be written "),
    ],
)
def test_a_disk_that_fills_while_data_is_prepared(small_chats: Path, tmp_path: Path, cache: str, message: str) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from arctic_hydra.distributed import World;"
        "from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory; from tests.data.samples import factory;"
        "tokenizer = BundledTokenizerFactory().create_tokenizer(); resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900));"
        "factory(Path(sys.argv[1]), cache_dir=sys.argv[2], cache=sys.argv[3] == 'on').process('train', tokenizer, World())"
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(small_chats), str(tmp_path / "c"), cache],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    assert f"DataError: {message.format(scratch)}" in done.stderr and "(File too large)" in done.stderr, done.stderr
    assert not any(scratch.iterdir())
    assert cache == "off" or entries(tmp_path / "c") == []


def test_one_changed_source_prepares_only_that_one(
    small_chats: Path, tmp_path: Path, tokenizer: Any, private_cache: Path
) -> None:
    other = write_lines(tmp_path / "other.jsonl", [chat("q", "a")])
    sources = {"one": JsonSource(path=str(small_chats)), "two": JsonSource(path=str(other))}
    first = key(small_chats, tokenizer, sources=sources)
    before = entries(private_cache)
    times = {path: path.stat().st_mtime_ns for path in before}
    write_lines(other, [chat("q", "b")])
    assert key(small_chats, tokenizer, sources=sources) != first
    assert len(before) == 2 and len(entries(private_cache)) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == times


def test_an_unwritable_cache_directory_is_named(small_chats: Path, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache_dir: cannot write to .*file.*; pass data\.cache_dir="):
        key(small_chats, tokenizer, cache_dir=str(tmp_path / "file"))
