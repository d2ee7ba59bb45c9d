"""Worker processes: they exit with their parent process and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.prepare import workers
from arctic_hydra.errors import DataError

ENDS = """
import os, signal
from arctic_hydra.data.prepare import workers
if __name__ == "__main__":
    with workers._pool(1, [], None, None) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        {}
"""


@pytest.mark.parametrize("end", ["os._exit(1)", "os.kill(os.getpid(), signal.SIGKILL)", "raise SystemExit(1)"])
def test_workers_exit_with_their_parent_and_leave_no_file(end: str, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(ENDS.format(end))
    (tmp_path / "files").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "files")}
    done = subprocess.run(
        [sys.executable, "main.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    helper = Path(f"/proc/{int(done.stdout)}")
    patience = time.monotonic() + 30
    while helper.exists() and time.monotonic() < patience:
        time.sleep(0.1)
    assert not helper.exists(), helper
    assert list((tmp_path / "files").iterdir()) == []


def test_a_full_temporary_directory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was reported as a full cache."""
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(open, "/dev/full", "wb"))
    text = rf"data.num_proc: .* file in {tempfile.gettempdir()} \(No space left on device\); set"
    options: Any = None
    with pytest.raises(DataError, match=text), workers._pool(2, [], options, options):
        pass
