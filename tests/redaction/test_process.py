"""Standard streams mask secrets, and new files are private."""

from __future__ import annotations

import io
import os
import pty
import sys

from arctic_hydra.redaction import process
from tests.command import run


def test_output_is_masked_and_the_stream_behind_is_otherwise_unchanged(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    process.protect(["x.token=my-planted-token"])
    process.protect(["y.options={password: 'my-password', n: 1}"])
    print("a", "my-planted-token", {"n": 1}, "hf_AbcdefghAbcdefghAbcdefgh")
    sys.stdout.writelines(["Bearer abcdefgh\n", "my-password\n"])
    assert stream.getvalue() == "a *** {'n': 1} ***\nBearer ***\n***\n"
    assert sys.stdout.getvalue() == stream.getvalue() and not sys.stdout.isatty()
    assert sys.stdout._stream is stream


def test_new_files_are_private_except_where_the_user_decides(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "_umask_of_user", None)
    before = os.umask(0o027)
    try:
        with process.umask_of_user():
            (tmp_path / "before").touch()
        process.protect()
        process.protect()
        (tmp_path / "private").mkdir()
        (tmp_path / "private" / "file").touch()
        with process.umask_of_user():
            (tmp_path / "shared").touch()
        (tmp_path / "again").touch()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"before": 0o640, "private": 0o700, "file": 0o600, "shared": 0o640, "again": 0o600}


def test_what_is_written_to_a_closed_terminal_is_dropped():
    """As by a run whose ssh connection ends, which then saves and stops."""
    master, terminal = pty.openpty()
    with open(terminal, "w", buffering=1) as behind:
        stream = process.MaskingStream(behind)
        stream.write("before\n")
        os.close(master)
        stream.write("after\n")
        stream.flush()
        assert os.fstat(terminal).st_rdev == os.stat(os.devnull).st_rdev


def test_a_closed_standard_stream_does_not_matter(tmp_path):
    for closed in (">&-", "2>&-", "<&- >&- 2>&-"):
        run(f"--version {closed}", tmp_path, fresh=True)
