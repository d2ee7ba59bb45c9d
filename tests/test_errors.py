"""Errors whose text is for the user, and their exit codes."""

from __future__ import annotations

import pytest

from arctic_hydra import errors


def test_each_problem_is_a_line_on_standard_error(capsys):
    errors.print_error(errors.ConfigError(["seed: got x", "trainer.epochs: got -1"]))
    errors.print_error(errors.DataError("row 3: no messages"))
    assert capsys.readouterr() == ("", "error: seed: got x\nerror: trainer.epochs: got -1\nerror: row 3: no messages\n")


def test_a_refused_field_keeps_its_name_apart_from_the_text():
    error = errors.FieldError([("lr", "got -1"), ("betas", "got 2")])
    assert error.fields == [("lr", "got -1"), ("betas", "got 2")]
    assert error.problems == ["lr: got -1", "betas: got 2"]


@pytest.mark.parametrize(
    ("kind", "code"),
    [(errors.ConfigError, 2), (errors.DataError, 1), (errors.CheckpointError, 1)],
)
def test_the_kind_of_an_error_is_its_exit_code(kind, code):
    error = kind("text")
    assert (error.exit_code, str(error)) == (code, "text")
    assert isinstance(error, errors.ArcticHydraError)


def test_values_in_messages_neither_break_the_line_nor_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    errors.print_error(errors.ConfigError("name: got 'a\n\x1b[2J\u2028\ud800é', expected text"))
    assert capsys.readouterr().err == "error: name: got 'a\\n\\x1b[2J\\u2028\\ud800é', expected text\n"
    errors.print_error(errors.DataError("rows:\n  a\x07"))
    assert capsys.readouterr().err == "error: rows:\n  a\\x07\n"
