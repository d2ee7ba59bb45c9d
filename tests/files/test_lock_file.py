"""The lock of a directory, and who is signalled."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arctic_hydra.errors import RunLockedError, StateFileError
from arctic_hydra.files import lock_file
from arctic_hydra.files.lock_file import LockFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


@pytest.fixture
def sleeper():
    """A process that holds no lock."""
    child = subprocess.Popen(["sleep", "60"])
    yield child
    child.kill()
    child.wait()


def test_only_a_process_that_holds_the_lock_is_signalled(path, sleeper):
    lock = LockFile(path)
    descriptor = lock.acquire()
    heir = subprocess.Popen(["sleep", "60"], pass_fds=[descriptor])
    reader = path.open()  # this process holds the lock through another descriptor
    try:
        assert lock.is_held_by(os.getpid()) and lock.is_held_by(heir.pid) and not lock.is_held_by(sleeper.pid)
        lock.release()
        assert not lock.is_held_by(os.getpid()), "it has the file open, but the lock was passed on"
        assert LockFile(path).holder() is not None
        for process in (sleeper.pid, 0, 1, -1, 2**31 - 1, 2**70):
            assert not lock.terminate(process)
        assert sleeper.poll() is None
        assert lock.terminate(heir.pid)
        assert heir.wait(10) == -signal.SIGTERM
        assert not lock.terminate(heir.pid) and lock.holder() is None
    finally:
        reader.close()
        heir.kill()


def test_a_process_that_names_itself_in_the_text_without_the_lock_is_not_signalled(path, sleeper):
    path.write_text(f"process {sleeper.pid} on {socket.gethostname()}, since 2026-01-01 00:00:00")
    lock = LockFile(path)
    assert lock.holder() is None and not lock.terminate(sleeper.pid)
    code = "import fcntl, sys, time; h = open(sys.argv[1]); fcntl.flock(h, fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        holder = str(lock.holder())
        assert LockFile.process_here(holder) == sleeper.pid
        assert not lock.terminate(sleeper.pid) and lock.is_held_by(other.pid)
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize(
    "text", ["", "process x on y", "process 1 on elsewhere, since 2026-01-01 00:00:00", "process 1\x1b[2J on h, since 1", "unknown"]
)  # fmt: skip
def test_a_text_that_names_no_process_of_this_machine(text, path):
    path.write_text(text)
    with path.open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        holder = LockFile(path).holder()
        assert holder is not None and holder.isprintable() and LockFile.process_here(holder) is None


def test_the_text_is_replaced_after_waiting(path):
    path.write_text("process 1 on elsewhere, since 2026-01-01 00:00:00" + "\0" * 500)
    first = LockFile(path)
    first.acquire()
    with pytest.raises(RunLockedError, match="is in use by another run"):
        LockFile(path).acquire(0.2)
    first.release()
    second = LockFile(path)
    second.acquire()
    assert path.read_text().startswith(f"process {os.getpid()} on ")
    second.release()
    path.unlink()
    second.acquire()
    assert path.stat().st_mode & 0o777 == 0o600
    second.release()


def test_a_process_that_only_looks_who_holds_a_lock_keeps_nobody_from_it(path, monkeypatch):
    """`holder` shares the lock for a moment."""
    path.touch()
    looks = path.open()
    fcntl.flock(looks, fcntl.LOCK_SH)
    monkeypatch.setattr(lock_file.time, "sleep", lambda seconds: looks.close())
    lock = LockFile(path)
    lock.acquire()
    lock.release()


def test_a_lock_that_is_a_link_or_no_file_overwrites_nothing(path):
    victim = path.with_name("victim")
    victim.write_text("precious")
    path.symlink_to(victim)
    with pytest.raises(StateFileError, match=r"\.lock: is a symbolic link to .*victim, expected a file; move it away"):
        LockFile(path).acquire()
    path.unlink()
    os.link(victim, path)
    with pytest.raises(
        StateFileError, match=r"\.lock: has 2 names \(hard links\), expected 1; delete it and try again"
    ):
        LockFile(path).acquire()
    path.unlink()
    path.mkdir()
    for act in (LockFile(path).acquire, LockFile(path).holder):
        with pytest.raises(StateFileError, match=r"\.lock: is a directory, expected a file; move it away"):
            act()
    path.rmdir()
    os.mkfifo(path)
    began = time.monotonic()
    with pytest.raises(StateFileError, match="is a pipe"):
        LockFile(path).acquire()
    assert time.monotonic() - began < 2 and victim.read_text() == "precious"


@pytest.mark.parametrize(
    "content", [b"precious", b"\xff" * 500, b"process ids\n", b"{}", b"\nprocess 1 on x\nprecious"], ids=range(5)
)
def test_a_lock_that_another_program_wrote_is_left_alone(content, path):
    path.write_bytes(content)
    before = path.stat()
    with pytest.raises(
        StateFileError, match=r"\.lock: is the file of another program, expected a lock of this package; use"
    ):
        LockFile(path).acquire()
    assert path.read_bytes() == content and path.stat().st_mtime_ns == before.st_mtime_ns
    with path.open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    "content", ["", "\n", "process 12", "process 12 on h", "process 12 on h, since 2026", "\0" * 60]
)
def test_a_lock_that_was_cut_off_is_taken(content, path):
    path.write_text(content)
    lock = LockFile(path)
    lock.acquire()
    assert path.read_text().startswith(f"process {os.getpid()} on ")
    lock.release()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_lock_of_another_user_is_refused(path):
    path.touch()
    os.chown(path, 12345, -1)
    with pytest.raises(StateFileError, match=r"\.lock: cannot be trusted: it belongs to another user \(uid 12345\)"):
        LockFile(path).acquire()


def test_a_file_system_without_locks_is_named(path, monkeypatch):
    def unsupported(handle, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock_file.fcntl, "flock", unsupported)
    with pytest.raises(
        StateFileError, match=r"does not support locks \(Function not implemented\); choose another folder"
    ):
        LockFile(path).acquire()
