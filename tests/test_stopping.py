"""Requests to stop: the kill-switch file, and signals that are blocked or forwarded."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from arctic_hydra import stopping
from arctic_hydra.stopping import SIGNALS, StopRequest, blocked_signals, forwarded_signals, one_stop


def send(number: int) -> None:
    signal.pthread_kill(threading.get_ident(), number)


def blocked() -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def test_the_kill_switch_is_seen_where_a_rank_looks_for_it_and_removed_once_acknowledged(tmp_path):
    stop = StopRequest(tmp_path / "STOP")
    assert not stop.requested(look_for_file=True)
    stop.kill_switch.touch()
    assert not stop.requested(look_for_file=False)
    assert stop.requested(look_for_file=True) and stop.reason == f"found the kill switch {tmp_path / 'STOP'}"
    stop.acknowledge()
    assert not stop.kill_switch.exists()
    assert stop.requested(look_for_file=False), "the request is remembered"


def test_a_file_with_content_is_not_removed_as_a_kill_switch(tmp_path):
    for name, content in (("empty", ""), ("notes.txt", "mine")):
        (tmp_path / name).write_text(content)
        StopRequest(tmp_path / name, is_ours=False).acknowledge()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_first_signal_is_the_reason(tmp_path):
    code = (
        "import os, pathlib, signal, sys, time\n"
        "from arctic_hydra.stopping import StopRequest, block_signals\n"
        "block_signals(); stop = StopRequest(pathlib.Path(sys.argv[1])); stop.watch_signals()\n"
        "for number in (signal.SIGUSR2, signal.SIGTERM):\n"
        "    os.kill(os.getpid(), number)\n"
        "    while not stop.reason: time.sleep(0.01)\n"
        "time.sleep(0.1); print(stop.reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "STOP")], capture_output=True, text=True)
    assert done.stdout == "received SIGUSR2\n", done.stderr


def test_children_inherit_the_mask_and_this_thread_gets_its_own_back():
    before = blocked()
    code = "import signal; print(*sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))))"
    with blocked_signals():
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert set(map(int, SIGNALS)) <= set(map(int, child.stdout.split()))
    assert blocked() == before


class Child:
    def __init__(self) -> None:
        self.received: list[int] = []
        self.killed = False

    def kill(self) -> None:
        self.killed = True

    def send_signal(self, number: int) -> None:
        self.received.append(number)


def test_the_first_signal_is_forwarded_and_all_are_seen(capsys):
    child, seen = Child(), []
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with forwarded_signals(lambda: [child], "the jobs", seen) as killed_by:
        for number in (signal.SIGTERM, signal.SIGUSR2):
            send(number)
    assert (child.received, seen, killed_by) == ([signal.SIGTERM, signal.SIGCONT], [signal.SIGTERM, signal.SIGUSR2], [])
    assert "SIGTERM: stopping the jobs; interrupt again to end at once" in capsys.readouterr().err
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    with forwarded_signals(lambda: [child], "at once", seen, saves=False) as killed_by:
        send(signal.SIGTERM)
    assert (child.received[2:], child.killed, killed_by) == ([], True, [signal.SIGTERM])
    assert "SIGTERM: ending at once\n" in capsys.readouterr().err


def test_a_signal_is_forwarded_though_it_cannot_be_reported(monkeypatch):
    """As by `2>&1 | tee` when the terminal is closed: the reader of standard error has ended too."""
    child, seen = Child(), []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: False, write=_closed, flush=_closed))
    with forwarded_signals(lambda: [child], "the jobs", seen):
        send(signal.SIGHUP)
    assert child.received == [signal.SIGHUP, signal.SIGCONT]


def _closed(*given):
    raise BrokenPipeError


TERM, INT, USR2, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP


@pytest.mark.parametrize(
    ("sent", "apart", "ends"),
    [
        ([TERM, TERM], 2.0, True),
        ([TERM, TERM], 0.5, False),  # once from a launcher, once through the process group
        ([TERM, TERM, TERM], 0.6, True),
        ([INT, TERM], 2.0, True),
        ([TERM, INT], 2.0, True),
        ([USR2, INT], 2.0, True),
        ([USR2, TERM], 120.0, False),  # SLURM: USR2 before the time limit, then TERM at the limit
        ([HUP, TERM], 2.0, False),
        ([USR2, TERM, TERM], 2.0, True),
        ([TERM, HUP, USR2, HUP], 2.0, False),
    ],
)
def test_a_second_sigterm_ends_at_once_like_a_second_interrupt(sent, apart, ends, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    child, now = Child(), [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    with forwarded_signals(lambda: [child], "the jobs", []) as killed_by:
        for number in sent:
            send(number)
            now[0] += apart
    assert (child.received, child.killed, bool(killed_by)) == ([sent[0], signal.SIGCONT], ends, ends)


@pytest.mark.parametrize(("apart", "ends"), [(5.0, False), (15.0, True)])
def test_in_an_allocation_of_slurm_sigterm_may_arrive_twice_within_seconds(apart, ends, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    child, now = Child(), [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    with forwarded_signals(lambda: [child], "the jobs", []):
        for _ in range(2):
            send(TERM)
            now[0] += apart
    assert child.killed == ends


def test_signals_around_a_stop_neither_end_the_process_nor_replace_its_exit_code():
    """Whichever thread they go to: numpy's do not inherit what the main thread blocks later."""
    code = (
        "import os, signal, threading, time\n"
        "from arctic_hydra.stopping import SIGNALS, forwarded_signals, ignore_signals, one_stop\n"
        "threading.Thread(target=time.sleep, args=[60], daemon=True).start()\n"
        "def storm():\n"
        "    for number in SIGNALS: os.kill(os.getpid(), number)\n"
        "seen = []\n"
        "with one_stop(seen):\n"
        "    storm()\n"
        "    with forwarded_signals(lambda: [], 'it', seen): storm()\n"
        "    storm()\n"
        "storm(); ignore_signals(); storm(); print(len(seen) > 4, flush=True); raise SystemExit(75)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("True\n", 75), done.stderr


def test_a_context_without_signals_restores_the_handlers():
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with one_stop([]):
        assert [signal.getsignal(number) for number in SIGNALS] != handlers
        with pytest.raises(KeyboardInterrupt), stopping.interruptible():
            signal.raise_signal(INT)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
