"""The thread that sends metrics to a store, which may be slow or unavailable for a while."""

from __future__ import annotations

import itertools
import json
import threading
import time
from pathlib import Path

import pytest

from arctic_hydra.tracking import sender


def write_steps(folder: Path, steps: range) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "loss": 1 / step, "mfu": None, "eval/a@b": 0.5}) + "\n")


class FlakyStore:
    """A connection that stores points and fails on request."""

    in_files = False

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.fail = False
        self.closed = ""

    def open(self) -> None:
        if self.fail:
            raise ConnectionError("away")

    def send(self, points: list[sender.Point]) -> None:
        if self.fail:
            raise ConnectionError("away")
        self.steps += [point.step for point in points if point.step > max(self.steps, default=0)]

    def close(self, status: str) -> None:
        self.closed = status


@pytest.mark.faults
def test_a_store_that_was_unavailable_gets_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sender, "LINGER_SECONDS", 0.01)
    monkeypatch.setattr(sender, "LONGEST_RETRY_SECONDS", 0.05)
    flaky = FlakyStore()
    thread = sender.Sender(flaky, tmp_path / "metrics.jsonl", "tracking.flaky")
    thread.start()

    def steps(numbers: range) -> None:
        for step in numbers:
            write_steps(tmp_path, range(step, step + 1))
            thread.put(step, {"loss": 1.0})
        time.sleep(0.2)

    steps(range(1, 4))
    assert flaky.steps == [1, 2, 3]
    flaky.fail = True
    steps(range(4, 2000))
    flaky.fail = False
    steps(range(2000, 2003))
    thread.finish("stopped")
    assert flaky.steps == list(range(1, 2003))
    assert flaky.closed == "stopped"
    assert [record.getMessage().split(".")[0] for record in caplog.records] == ["tracking"]


def test_a_store_slower_than_the_run_gets_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "QUEUE_POINTS", 4)
    thread = sender.Sender(flaky := FlakyStore(), tmp_path / "metrics.jsonl", "tracking.slow")
    thread.start()
    time.sleep(0.1)
    for step in range(1, 50):
        write_steps(tmp_path, range(step, step + 1))
        thread.put(step, {"loss": 1.0})
    thread.finish("finished")
    assert flaky.steps == list(range(1, 50))


@pytest.mark.parametrize(
    ("in_files", "status", "waits"), [(True, "finished", True), (False, "finished", False), (True, "stopped", False)]
)
def test_the_end_of_a_finished_run_waits_longer_for_files_than_for_a_server(
    in_files: bool,
    status: str,
    waits: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sender, "FINISH_SECONDS", 0.2)
    flaky, opened = FlakyStore(), threading.Event()
    monkeypatch.setattr(flaky, "in_files", in_files)
    monkeypatch.setattr(flaky, "open", lambda: opened.wait(60))
    thread = sender.Sender(flaky, tmp_path / "metrics.jsonl", "tracking.slow")
    thread.start()
    if waits:
        threading.Timer(1.0, opened.set).start()
    thread.finish(status)
    assert (flaky.closed == status) is waits
    opened.set()
    assert ["no response within 0 seconds" in text for text in caplog.messages] == ([] if waits else [True])


def test_steps_from_before_the_connection_keep_their_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read from the file, which has no times, as well as queued."""
    flaky, opened, sent, main = FlakyStore(), threading.Event(), dict[int, float](), threading.current_thread()
    monkeypatch.setattr(flaky, "open", lambda: opened.wait(60))
    monkeypatch.setattr(
        flaky, "send", lambda points: sent.update({p.step: p.seconds for p in points if p.step not in sent})
    )
    seconds = itertools.count(100.0, 100.0)
    monkeypatch.setattr(sender.time, "time", lambda: next(seconds) if threading.current_thread() is main else 0.0)
    thread = sender.Sender(flaky, tmp_path / "metrics.jsonl", "tracking.slow")
    thread.start()
    write_steps(tmp_path, range(1, 3))
    for step in (1, 2):
        thread.put(step, {"loss": 1.0})
    opened.set()
    thread.finish("finished")
    assert sent == {1: 100.0, 2: 200.0}


def test_each_outage_is_reported_and_first_retried_soon(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    thread = sender.Sender(flaky := FlakyStore(), tmp_path / "metrics.jsonl", "tracking.flaky")
    for _ in range(2):
        flaky.fail = True
        for _ in range(8):
            thread._attempt(thread._open)
        assert thread._retry_at > time.monotonic() + 30
        flaky.fail = False
        thread._attempt(thread._open)
        assert thread._failures == 0
    assert ["away" in text for text in caplog.messages] == [True, True]
    sender.warn("tracking.a", "log in.")
    assert "tracking.a: log in. Training continues" in caplog.messages[-1]
