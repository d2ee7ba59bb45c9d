"""One rank: its error report, and the secrets that are put back into its config."""

from __future__ import annotations

import json

import pytest

from arctic_hydra import worker
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


def test_secrets_are_set_by_dotted_key():
    tree = {"tracking": {"mlflow": {"token": "***", "uri": "a"}}, "uris": ["s3://***@b"]}
    worker._set(tree, ["tracking", "mlflow", "token"], "t")
    worker._set(tree, ["uris"], ["s3://u:p@b"])
    assert tree == {"tracking": {"mlflow": {"token": "t", "uri": "a"}}, "uris": ["s3://u:p@b"]}
