"""Cache entries: one builder at a time, and no partial or damaged entry is ever read."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.cache import __main__ as cache_command
from arctic_hydra.data.cache import token_store
from arctic_hydra.data.cache.entries import open_or_build
from arctic_hydra.data.cache.token_store import EXAMPLES, MANIFEST, TokenStore, write_store
from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError
from tests.data.cache.samples import chunks, entries, key
from tests.data.samples import (
    chat,
    factory,
    write_lines,
)


def test_second_run_reads_what_the_first_wrote(
    small_chats: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = factory(small_chats).process("train", tokenizer, World())
    monkeypatch.setattr(SFTDataFactory, "load", lambda *_: pytest.fail("the cache was not used"))
    again = factory(small_chats).process("train", tokenizer, World())
    assert again.report == first.report
    for index in range(len(first)):
        assert (again.ids(index) == first.ids(index)).all() and (again.mask(index) == first.mask(index)).all()


def test_directories_are_private(small_chats: Path, tokenizer: Any, private_cache: Path, tmp_path: Path) -> None:
    key(small_chats, tokenizer)
    for path in (private_cache, private_cache / "prepared", *entries(private_cache)):
        assert path.stat().st_mode & 0o777 == 0o700, path
    key(small_chats, tokenizer, cache_dir=str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "prepared").stat().st_mode & 0o777 == 0o700


def test_cache_off_leaves_nothing_behind_and_is_not_in_the_key(
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


def build_slowly(part: Path, log: Path, seconds: float) -> None:
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    write_store(part, chunks(), dict)


def open_in_child(cache: Path, log: Path, seconds: float, queue: Any) -> None:
    store = open_or_build(cache, "k", lambda part: build_slowly(part, log, seconds))
    queue.put((os.getpid(), store.ids(1).tolist()))


def test_processes_that_want_the_same_data_build_it_once(tmp_path: Path) -> None:
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
def test_a_killed_builder_does_not_block_others(tmp_path: Path) -> None:
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


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill(part: Path) -> None:
        (part / EXAMPLES).write_bytes(b"half")
        full()

    calls = ((None, "", fill), (tempfile, "mkdtemp", fill), (Path, "rename", lambda part: None))
    for where, name, build in calls:
        with monkeypatch.context() as patch:
            if where is not None:
                patch.setattr(where, name, full)
            with pytest.raises(DataError, match=r"data\.cache_dir: cannot write to .* \(No space left on device\)"):
                open_or_build(tmp_path / "c", "k", build)
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
        ("off", "data.cache: off stores tokenized data in {}, which cannot be written "),
    ],
)
def test_a_disk_that_fills_while_data_is_tokenized(small_chats: Path, tmp_path: Path, cache: str, message: str) -> None:
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


def test_an_unwritable_cache_directory_is_named(small_chats: Path, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache_dir: .*file is not a directory; .* pass data\.cache_dir="):
        key(small_chats, tokenizer, cache_dir=str(tmp_path / "file"))


def build(part: Path) -> None:
    write_store(part, chunks(), dict)


NAME = "0" * 32


def as_link(entry: Path) -> None:
    entry.rename(entry.parent.parent / "elsewhere")
    entry.symlink_to(entry.parent.parent / "elsewhere")


def as_file(entry: Path) -> None:
    for path in entry.iterdir():
        path.unlink()
    entry.rmdir()
    entry.touch()


def manifest_of(change: Any) -> Any:
    def rewrite(entry: Path) -> None:
        content = json.loads((entry / MANIFEST).read_text())
        content.pop("checksum")
        content |= change
        (entry / MANIFEST).write_text(json.dumps({**content, "checksum": token_store._checksum_of_values(content)}))

    return rewrite


def linked_examples(entry: Path) -> None:
    (entry / EXAMPLES).rename(entry.parent.parent / "elsewhere")
    (entry / EXAMPLES).symlink_to(entry.parent.parent / "elsewhere")


ENTRIES = {
    "link": as_link,
    "file": as_file,
    "stranger": lambda entry: os.chown(entry, 12345, -1),
    "stranger's manifest": lambda entry: os.chown(entry / MANIFEST, 12345, -1),
    "escaping name": manifest_of({"files": {"../../elsewhere": "x"}}),
    "layout": manifest_of({"layout": "3"}),
    "count": manifest_of({"examples": "2"}),
    "report": manifest_of({"report": []}),
    "files": manifest_of({"files": []}),
    "binary": lambda entry: (entry / MANIFEST).write_bytes(b"\x80\x04"),
    "linked examples": linked_examples,
}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("attack", ENTRIES)
def test_an_entry_that_is_malformed_or_of_another_user_is_built_again(attack: str, tmp_path: Path) -> None:
    open_or_build(tmp_path, NAME, build)
    entry = tmp_path / "prepared" / NAME
    ENTRIES[attack](entry)
    listed = cache_command.entries(tmp_path)
    built: list[Path] = []
    store = open_or_build(tmp_path, NAME, lambda part: (built.append(part), build(part))[1])
    assert len(built) == 1 and store.ids(1).tolist() == [2, 3, 4] and entry.is_dir() and not entry.is_symlink()
    if attack in ("link", "linked examples"):
        assert (tmp_path / "elsewhere").exists(), "what a link points to is not deleted"
    assert len(listed) == (attack != "file")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (
            lambda cache: cache.chmod(0o777),
            "cache is not private: every user may write to it (mode 0777); check its content, then",
        ),
        (
            lambda cache: os.chown(cache, 12345, -1),
            "cache belongs to another user (uid 12345); use a directory of your own",
        ),
        (lambda cache: os.chown(cache / "prepared", 12345, -1), "prepared belongs to another user (uid 12345)"),
        (
            lambda cache: (cache / "prepared").rename(cache / "x") and (cache / "prepared").symlink_to("x"),
            "prepared is a symbolic",
        ),
    ],
)
def test_a_cache_that_others_could_have_filled_is_neither_read_nor_pruned(attack, message, tmp_path, capsys) -> None:
    tmp_path.chmod(0o755)
    cache = tmp_path / "cache"
    open_or_build(cache, NAME, build)
    attack(cache)
    with pytest.raises(DataError, match=r"^data\.cache_dir: .* or pass data\.cache_dir=") as caught:
        open_or_build(cache, NAME, build)
    assert message in str(caught.value)
    for command in (["list"], ["prune", "--all"]):
        assert cache_command.main(["--cache-dir", str(cache), *command]) == 2
        assert message in capsys.readouterr().err
    assert (cache / "prepared" / NAME / MANIFEST).exists()


def given(cache: Path, uid: int) -> None:
    for path in (cache, *cache.rglob("*")):
        os.chown(path, uid, -1)
        path.chmod(0o755 if path.is_dir() else 0o644)


def sticky(cache: Path) -> None:
    """Anyone may add entries, and owns those."""
    (cache / "prepared").chmod(0o1777)
    os.chown(cache / "prepared" / NAME, 54321, -1)


SHARED = {
    "others": lambda cache: cache.chmod(0o777),
    "sticky": sticky,
    "group": lambda cache: [os.chown(cache, -1, 2), cache.chmod(0o775)],
    "entry": lambda cache: (cache / "prepared" / NAME).chmod(0o777),
    "manifest": lambda cache: (cache / "prepared" / NAME / MANIFEST).chmod(0o666),
    "examples": lambda cache: (cache / "prepared" / NAME / EXAMPLES).chmod(0o666),
    "third user": lambda cache: os.chown(cache / "prepared" / NAME / EXAMPLES, 54321, -1),
    "link": lambda cache: linked_examples(cache / "prepared" / NAME),
    "damaged": lambda cache: os.truncate(cache / "prepared" / NAME / EXAMPLES, 9),
    "absent": lambda cache: (cache / "prepared" / NAME).rename(cache / "prepared" / "x"),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("change", [None, *SHARED])
def test_a_named_cache_of_another_user_is_read_if_nobody_else_could_have_written_to_it(change, tmp_path) -> None:
    tmp_path.chmod(0o755)
    cache = tmp_path / "cache"
    open_or_build(cache, NAME, build)
    given(cache, 12345)
    with pytest.raises(DataError, match=r"cache belongs to another user \(uid 12345\); use a directory of your own"):
        open_or_build(cache, NAME, build)  # not named
    if change is None:
        assert open_or_build(cache, NAME, pytest.fail, is_named=True).ids(1).tolist() == [2, 3, 4]
        return
    SHARED[change](cache)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"^data\.cache_dir: .*cache belongs to another user \(uid 12345\); "):
        open_or_build(cache, NAME, pytest.fail, is_named=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize(("uid", "gid", "mode"), [(0, 0, 0o777), (0, 2, 0o2777), (1001, 0, 0o775)])
def test_a_mounted_directory_of_a_container_names_a_directory_in_it(uid, gid, mode, tmp_path, monkeypatch) -> None:
    """An `emptyDir` of Kubernetes, and the directories of images that run as a random user of the group root."""
    tmp_path.chmod(0o755)
    (cache := tmp_path / "cache").mkdir()
    os.chown(cache, uid, gid)
    cache.chmod(mode)
    monkeypatch.setattr(os, "geteuid", lambda: 1_000_650_000)
    monkeypatch.setattr("arctic_hydra.files.ownership._is_ours", lambda info, folder: info.st_uid in (0, 1_000_650_000))
    with pytest.raises(DataError, match=f"or use a new directory in it: {cache}/<name>, or pass data.cache_dir="):
        open_or_build(cache, NAME, build, is_named=True)
    monkeypatch.undo()
    assert len(open_or_build(cache / "mine", NAME, build)) == 2


def test_a_cache_may_be_a_link_to_another_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to("disk")
    open_or_build(tmp_path / "cache", NAME, build)
    assert cache_command.main(["--cache-dir", str(tmp_path / "cache"), "prune", "--all"]) == 0
    assert "deleted 1 of 1" in capsys.readouterr().out


def test_a_lock_of_the_wrong_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "prepared" / f"{NAME}.lock").mkdir(parents=True)
    with pytest.raises(DataError, match=rf"data\.cache_dir: cannot lock .*{NAME}\.lock"):
        open_or_build(tmp_path, NAME, build)
