"""What a run says while it works: phases, steps and evaluations as plain lines, as a bar, and in the log file."""

from __future__ import annotations

import errno
import io
import logging
import re
import time

import pytest
from rich.console import Console

from arctic_hydra import display, log
from arctic_hydra.display import Display

FIGURES = {"epoch": 0.25, "grad_norm": 1.234, "memory_gib": 1.5}


def values(step, **more):
    return {"step": step, "loss": 1.23456, "lr": 0.001, "tokens_per_second": 12345.0, **more}


def test_plain_output_has_the_first_and_the_last_step_and_about_one_a_second(capsys, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(display.time, "monotonic", lambda: 1000 + next(clock) / 10)
    shown = Display(prints=True)
    with shown.training(100, 10):
        for step in range(11, 101):
            shown.step(values(step, **FIGURES))
    *lines, last = capsys.readouterr().out.splitlines()
    figures = "loss 1.2346  epoch 0.25  lr 0.001  norm 1.23  12.3K tok/s  memory 1.50 GiB"
    assert lines[0] == f"step 11/100  {figures}  left ?"
    assert lines[-1].startswith("step 100/100") and lines[-1].endswith("left 0.0s")
    assert 5 < len(lines) < 100
    assert re.fullmatch(r"train    90 steps, [\d.]+ steps/s, [\dms.]+", last)


def test_the_shown_loss_is_the_mean_of_the_last_twenty_lines(capsys):
    shown = Display(prints=True)
    with shown.training(40, 0):
        for step in range(1, 41):
            shown.step(values(step, loss=float(step)))
        shown.step(values(40, loss=None))
        shown.step(values(40, loss=float("nan")))
        shown.step(values(39, loss=50.0))
    said = [re.search(r"loss (\S+)", line)[1] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert said == ["1.0000", "30.5000", "n/a", "nan", "31.9500"], (
        "the last line is always said, also of a run that stops"
    )


def test_an_evaluation_has_a_line(capsys):
    shown = Display(prints=True)
    shown.evaluation({"step": 1, "eval/loss": 2.0, "eval/perplexity": 7.389, "eval/accuracy": 0.5}, seconds=2.5)
    shown.evaluation({"step": 1, "eval/loss": 2.0, "eval/accuracy": 0.5, "eval/margin": 1.0})
    shown.evaluation({"step": 1, "eval/loss": 2.0, "eval/rewards/margins": 0.25, "eval/kl": 0.5})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "evaluation at step 1: loss 2.0000, perplexity 7.389, accuracy 50.0%, 2.5s"
    assert lines[1] == "evaluation at step 1: loss 2.0000, 50.0% of pairs ranked right, margin 1"
    assert lines[2] == "evaluation at step 1: loss 2.0000, margin 0.25, KL 0.5"


def test_a_phase_says_what_was_done_unless_it_is_transient_or_fails(capsys):
    with display.phase("read", "before anything is shown", unit="rows") as phase:
        phase.advance(3)
    with display.shown(prints=True):
        with display.phase("read", "sources.a", unit="rows", total=5) as phase:
            phase.advance(5)
        with display.phase("weights", "from here"):
            pass
        with display.phase("memory", transient=True):
            pass
        with pytest.raises(KeyError), display.phase("engine"):
            raise KeyError
    read, weights = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"read     sources\.a: 5 rows, [\d.]+[KM]? rows/s, 0\.0s", read)
    assert weights == "weights  from here: 0.0s"


def test_a_long_phase_without_a_line_says_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(display, "SECONDS_BETWEEN_LINES", 0.0)
    with display.shown(prints=True), display.phase("tokenize", "all", unit="rows", total=4, transient=True) as phase:
        phase.advance()
        end = time.monotonic() + 10
        while not (said := capsys.readouterr().out) and time.monotonic() < end:
            time.sleep(0.05)
    assert said.startswith("tokenize all: 1/4 rows, ") and ", left " in said


def test_the_log_file_has_the_lines_and_the_terminal_has_them_once(capsys, caplog):
    caplog.set_level(logging.INFO, logger="arctic_hydra")
    shown = Display(prints=True, records=True)
    with shown.training(1, 0):
        shown.step(values(1))
    shown.record("for the file")
    assert [record.getMessage() for record in caplog.records] == [*capsys.readouterr().out.splitlines(), "for the file"]
    assert not any(log._only_ours(record) for record in caplog.records), "the terminal has them already"


def test_ranks_that_do_not_print_are_silent(capsys):
    shown = Display()
    with shown.training(1, 0):
        shown.step(values(1))
    shown.say("x")
    shown.close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("problem", [BrokenPipeError(), OSError(errno.ENOSPC, "full")])
def test_output_that_cannot_be_written_does_not_end_the_run(problem, monkeypatch):
    class Broken(io.StringIO):
        def write(self, text):
            raise problem

    shown = Display(prints=True)
    monkeypatch.setattr("sys.stdout", Broken())
    shown.say("x")
    monkeypatch.undo()
    assert not shown.prints


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_bar_fits_the_terminal_and_names_the_training_and_the_phase_within_it(columns):
    shown, file = Display(), io.StringIO()
    with shown.training(1000, 0), shown.phase("evaluate", "at step 7", unit="batches", total=40) as phase:
        shown.step(values(7, **FIGURES))
        with shown.phase("tokenize", "hidden"):
            phase.advance(10)
        Console(file=file, width=columns, force_terminal=True).print(shown._rows())
    lines = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", file.getvalue()).splitlines()
    assert len(lines) == 3 and all(len(line) <= columns for line in lines)
    assert lines[0].startswith("train ") and "7/1,000 steps" in lines[0]
    assert lines[1].startswith("evaluate at step 7 ") and (columns < 80 or "10/40 batches" in lines[1])
    assert lines[2].startswith("loss 1.2346  epoch 0.25  lr 0.001  norm 1.23  12.3K tok")


@pytest.mark.parametrize("columns", ["60", "120"])
def test_a_bar_prints_records_above_itself_and_gives_the_terminal_back(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(display.sys.stdout, "isatty", lambda: True)
    with display.shown(prints=True) as shown:
        assert log._TerminalHandler.say is not None
        with shown.training(2, 0):
            shown.step(values(1))
            shown.say("a line above")
            print("[of] a callback")
            print("[/INST]", end="", flush=True)
    assert log._TerminalHandler.say is None and display.current() is not shown
    out = capsys.readouterr().out
    assert "a line above" in out and "[/INST]" in out
    assert re.search(r"\x1b\[2K\[of\] a callback", out), "the bar is erased first, or it would cover the text"
    display.restore_terminal()
    assert capsys.readouterr().out == "\r\x1b[K\x1b[?25h"


def test_a_command_that_answers_shows_on_standard_error_that_it_works(capsys, monkeypatch):
    with display.waiting("load"):
        display.current().say("a line")
    assert capsys.readouterr() == ("", ""), "files hold the answer only"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(display.sys.stderr, "isatty", lambda: True)
    with display.waiting("load"):
        print("of a library")
    out, err = capsys.readouterr()
    hides, shows = "\x1b[?25l", "\x1b[?25h"  # what a bar does with the cursor
    assert not out and err.startswith(hides) and "of a library" in err and shows in err


def test_a_long_line_continues_below_its_text_on_a_terminal(capsys, monkeypatch):
    line = "data     996 examples, 284K tokens, 85% of which are trained"
    Display(prints=True).say(line)
    assert capsys.readouterr().out.splitlines() == [line], "a file has whole lines"
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(display.sys.stdout, "isatty", lambda: True)
    shown = Display(prints=True)
    shown.say(line)
    shown.say("step 12/12  loss 7.8304  epoch 0.04  lr 1.01e-05")
    shown.say("run      " + "/tmp/outputs" * 5)
    assert capsys.readouterr().out.splitlines() == [
        "data     996 examples, 284K tokens, 85%",
        "         of which are trained",
        "step 12/12  loss 7.8304  epoch 0.04  lr",
        "  1.01e-05",
        "run",
        "         " + "/tmp/outputs" * 5,
    ]


def test_a_step_on_pairs_says_how_many_are_ranked_right(capsys):
    shown = Display(prints=True)
    with shown.training(1, 0):
        shown.step(values(1, **{"rewards/accuracies": 0.75, "rewards/margins": 0.1234}))
    assert "  ranked right 75%  margin 0.123  12.3K tok/s" in capsys.readouterr().out
