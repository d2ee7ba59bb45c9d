"""The program as a child: its lines, and what it is told."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading

import pytest

import arctic_hydra
from arctic_hydra.api import child_command
from arctic_hydra.api.child_command import Ended, Output, execute

STEPS = [
    "run      here",
    "step 1/9  loss 2.0000  lr 0.1",
    "step 2/9  loss 1.0",
    "step 9/9  loss 1.0000",
    "save     done",
    "step 9",
]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "shown"),
    [
        (io.StringIO(), "\n".join(STEPS) + "\n"),
        (
            Terminal(),
            "run      here\nstep 1/9  loss 2.0000\rstep 2/9  loss 1.0   \rstep 9/9  loss 1.0000\nsave     done\nstep 9\n",
        ),
    ],
)
def test_steps_replace_each_other_on_a_terminal(stream, shown, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "22")
    output = Output()
    for line in (*STEPS, None):
        output.line(line)
    assert stream.getvalue() == shown


def test_what_the_stream_cannot_show_is_replaced(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    Output().line("lr 1\u00b7")
    assert written.getvalue() == b"lr 1?\n"


@pytest.mark.parametrize("stream", [None, io.StringIO(), Terminal()])
def test_a_closed_stream_does_not_end_the_run(stream, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/echo")
    monkeypatch.setattr(sys, "stdout", stream)
    if stream is not None:
        stream.close()
    ended = execute({"arguments": []}, tmp_path, progress=True)
    assert ended.code == 0 and ended.output[0].endswith("-m arctic_hydra.api")
    with (tmp_path / "printed").open("w+b") as file:
        file.write(b"one\ntwo\n")
        file.flush()
        lines = child_command._Lines(file, lambda text: sys.stdout.write(text) if stream else None)
        lines.end()
    assert list(lines.last) == ["one", "two"]


def test_a_notebook_is_like_a_terminal(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert Output()._replaces


def test_lines_come_whole(tmp_path):
    with (tmp_path / "printed").open("w+b") as file:
        shown: list[str | None] = []
        lines = child_command._Lines(file, shown.append)
        for part, complete in ((b"on", []), (b"e\ntw", ["one"]), (b"o\n\xff", ["one", "two"])):
            file.seek(0, 2)
            file.write(part)
            file.flush()
            lines.follow()
            assert shown == complete
        lines.end()
        assert shown == ["one", "two", "\ufffd", None] and list(lines.last) == shown[:-1]


def test_an_interrupt_loses_no_line(tmp_path):
    def show(text):
        shown.append(text)
        if text == "two":
            raise KeyboardInterrupt

    shown: list[str | None] = []
    with (tmp_path / "printed").open("w+b") as file:
        file.write(b"one\ntwo\nthree\nfo")
        file.flush()
        lines = child_command._Lines(file, show)
        with pytest.raises(KeyboardInterrupt):
            lines.follow()
        lines.end()
    assert shown == ["one", "two", "three", "fo", None] and list(lines.last) == shown[:-1]


def test_the_end_of_the_child_is_awaited_in_spite_of_ctrl_c():
    """The child ends at the second Ctrl-C only."""
    code = (
        "import signal, time\nsignal.signal(signal.SIGINT, lambda *_: signal.signal(signal.SIGINT, signal.SIG_DFL))\n"
        "print('ready', flush=True)\nwhile True: time.sleep(0.01)"
    )
    timers = [threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)) for seconds in (0.2, 0.7)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        for timer in timers:
            timer.start()
        child_command._wait(child)
    finally:
        for timer in timers:
            timer.cancel()
        signal.signal(signal.SIGINT, before)
        child.kill()
    assert child.returncode == -signal.SIGINT


def test_the_error_is_that_of_the_program():
    assert Ended(1, [], [], False).error() is None
    assert isinstance(Ended(2, ["a", "b"], [], False).error(), arctic_hydra.ConfigError)
    failed = Ended(1, ["in use"], [], False).error()
    assert isinstance(failed, arctic_hydra.RunFailed) and str(failed) == "in use" and failed.run is None


def test_a_child_that_cannot_start_says_why(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    ended = execute({"arguments": ["x" * 200_000]}, tmp_path, progress=True)
    assert (ended.code, ended.problems, ended.output, ended.crashed) == (1, [], [], True)
    assert capsys.readouterr().out == ""


def test_an_order_and_its_error(tmp_path):
    """One new interpreter: a sweep whose file is damaged, and whose arguments look as if they named code."""
    (tmp_path / "evil.py").write_text("raise SystemExit('evil')")
    order = {
        "arguments": ["--config-name", "code=evil.py", "seed=1"],
        "code": [],
        "notes": ["trainer=x"],
        "overrides": ["seed=1", "hydra.sweep.dir=sweeps/mine"],
        "config_name": "config",
        "config_dir": None,
    }
    folder = tmp_path / "sweeps" / "mine"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text("{")
    ended = execute(order, tmp_path, progress=False)
    assert (ended.code, ended.interrupted, ended.crashed) == (2, False, False), ended
    assert "sweep.json: not JSON" in ended.problems[0] and ended.directory == folder
    assert ended.output == ["default  trainer=x"]
