"""One rank and its error report; redaction/test_planted.py shows that it receives the secrets of its config."""

from __future__ import annotations

import gc
import json
from contextlib import suppress

import pytest

from arctic_hydra import without_garbage_collection, worker
from arctic_hydra.errors import ConfigError


@pytest.mark.parametrize(
    ("error", "expected", "code", "problems"),
    [(ConfigError(["a: b", "c: d"]), True, 2, ["a: b", "c: d"]), (KeyError("x"), False, 1, ["'x'"])],
)
def test_an_error_is_written_with_its_traceback_and_exit_code(error, expected, code, problems, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert worker.write_error_report(tmp_path, error) == code
    written = json.loads((tmp_path / "logs" / "error-rank3.json").read_text())
    assert (written["rank"], written["expected"], written["problems"]) == (3, expected, problems)
    assert type(error).__name__ in written["traceback"]


def test_an_error_report_shows_no_secrets(tmp_path):
    worker.write_error_report(tmp_path, ConfigError(["a: got 'http://me:pw@h'", "password='hunter2'"]))
    written = (tmp_path / "logs" / "error-rank0.json").read_text()
    assert "http://***@h" in written and "password=***" in written
    assert "me:pw" not in written and "hunter2" not in written


def test_an_error_that_cannot_be_written_is_in_the_output(tmp_path, monkeypatch, capsys):
    def full(*arguments, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker, "write_error", full)
    assert worker.write_error_report(tmp_path, ConfigError("the cause")) == 2
    written = capsys.readouterr().err
    assert "No space left on device" in written and "ConfigError: the cause" in written


def test_garbage_is_collected_again_after_imports():
    with suppress(ImportError), without_garbage_collection():
        with without_garbage_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
