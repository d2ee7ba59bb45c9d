"""The program as a child: its lines, and what it is told."""

from __future__ import annotations

import io
import sys
from pathlib import Path

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


def test_the_error_is_that_of_the_program():
    assert Ended(1, [], [], False).error() is None
    assert isinstance(Ended(2, ["a", "b"], [], False).error(), arctic_hydra.ConfigError)
    failed = Ended(1, ["in use"], [], False).error()
    assert isinstance(failed, arctic_hydra.RunFailed) and str(failed) == "in use" and failed.run is None


def test_a_child_that_cannot_start_says_why(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    ended = execute({"arguments": ["x" * 200_000]}, tmp_path, progress=True)
    assert (ended.code, ended.problems, ended.output) == (1, [], [])
    assert capsys.readouterr().out == ""


def test_an_order_and_its_error(tmp_path):
    """One new interpreter: a sweep of one job, whose key does not exist."""
    order = {
        "arguments": ["optimizer.lrr=1"],
        "overrides": ["optimizer.lrr=1"],
        "config_name": "config",
        "config_dir": None,
    }
    ended = execute(order, tmp_path, progress=False)
    assert (ended.code, ended.interrupted) == (2, False), ended
    assert ended.problems == ["optimizer.lrr: there is no such key; did you mean optimizer.lr?"]
    assert list(Path(tmp_path).iterdir()) == []
