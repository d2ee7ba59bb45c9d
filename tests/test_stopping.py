"""Requests to stop: the kill-switch file, and signals that are blocked or forwarded."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

from arctic_hydra.stopping import SIGNALS, StopRequest, blocked_signals, forwarded_signals


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

    def send_signal(self, number: int) -> None:
        self.received.append(number)


def test_the_first_signal_is_forwarded_and_all_are_seen(capsys):
    child, seen = Child(), []
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with forwarded_signals(lambda: [child], "the jobs", seen) as given_up:
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.pthread_kill(threading.get_ident(), number)
    assert (child.received, seen, given_up) == ([signal.SIGTERM], [signal.SIGTERM, signal.SIGUSR2], [])
    assert "SIGTERM: stopping the jobs; interrupt again to end at once" in capsys.readouterr().err
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
