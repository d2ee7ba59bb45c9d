"""Progress as plain lines; on a terminal, above a bar."""

from __future__ import annotations

import pytest

from arctic_hydra import display, log
from arctic_hydra.display import Display


def values(step, **more):
    return {"step": step, "loss": 1.23456, "lr": 0.001, "tokens_per_second": 12345.0, **more}


def test_plain_output_has_the_first_and_the_last_step_and_about_one_a_second(capsys, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(display.time, "monotonic", lambda: 1000 + next(clock) / 10)
    shown = Display(horizon=100, done=10, enabled=True)
    for step in range(11, 101):
        shown.step(values(step))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 11/100  loss 1.2346  lr 0.001  12.3K tokens/s  left ?"
    assert lines[-1].startswith("step 100/100") and lines[-1].endswith("left 0.0s")
    assert 5 < len(lines) < 40


def test_a_skipped_step_has_no_loss_and_an_evaluation_has_a_line(capsys):
    shown = Display(horizon=1, done=0, enabled=True)
    shown.step(values(1, loss=None))
    shown.evaluation({"step": 1, "eval/loss": 2.0, "eval/perplexity": 7.389, "eval/accuracy": 0.5})
    shown.evaluation({"step": 1, "eval/loss": 2.0, "eval/accuracy": 0.5, "eval/margin": 1.0})
    shown.evaluation({"step": 1, "eval/loss": 2.0, "eval/rewards/margins": 0.25, "eval/kl": 0.5})
    lines = capsys.readouterr().out.splitlines()
    assert "loss n/a" in lines[0]
    assert lines[3] == "evaluation at step 1: loss 2.0000, margin 0.25, KL 0.5"
    assert lines[2] == "evaluation at step 1: loss 2.0000, 50.0% of pairs ranked right, margin 1"
    assert lines[1] == "evaluation at step 1: loss 2.0000, perplexity 7.389, accuracy 50.0%"


def test_ranks_that_do_not_print_are_silent(capsys):
    shown = Display(horizon=1, done=0, enabled=False)
    shown.step(values(1))
    shown.say("x")
    shown.close()
    assert capsys.readouterr() == ("", "")


def test_a_closed_pipe_does_not_end_the_run(monkeypatch):
    def broken(*words, **options):
        raise BrokenPipeError

    shown = Display(horizon=1, done=0, enabled=True)
    monkeypatch.setattr("builtins.print", broken)
    shown.say("x")
    monkeypatch.undo()
    assert not shown.enabled


@pytest.mark.parametrize("columns", ["60", "120"])
def test_a_bar_prints_records_above_itself_and_gives_the_terminal_back(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(display.sys.stdout, "isatty", lambda: True)
    shown = Display(horizon=2, done=0, enabled=True)
    assert log._TerminalHandler.say is not None
    shown.step(values(1))
    shown.say("a line above")
    shown.close()
    assert log._TerminalHandler.say is None
    assert "a line above" in capsys.readouterr().out
