"""Jobs of this machine."""

from __future__ import annotations

import signal
import subprocess

from arctic_hydra.sweep.__main__ import main as look_after
from tests.sweep.sweeps import sweep_of


def test_cancelling_the_only_job_of_a_search_leaves_the_search_alone(tmp_path, capsys):
    """This process conducts the sweep; to cancel the whole of it would be to send SIGTERM to this process."""
    sweep = sweep_of(tmp_path, ["seed=1"], kind="search")
    sweep.lock()
    directory = sweep.jobs[0].directory
    directory.create()
    lock = directory.lock()
    directory.update_record(status="running")
    child = subprocess.Popen(["sleep", "60"], pass_fds=[lock])
    sweep.jobs[0].submission = {"kind": "local", "pid": child.pid}
    sweep.save()
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        assert look_after(["cancel", str(tmp_path), "--job", "0"]) == 0
        assert (child.wait(10), seen) == (-signal.SIGTERM, [])
        assert look_after(["cancel", str(tmp_path)]) == 0
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "asked the sweep process" in capsys.readouterr().out
