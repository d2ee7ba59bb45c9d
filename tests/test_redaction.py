"""Secrets are hidden from files."""

from __future__ import annotations


def test_secrets_do_not_reach_files(tmp_path):
    from arctic_hydra.redaction import redact, redact_override

    assert redact_override("a.hf_token=hf_x") == "a.hf_token=***"
    assert redact_override("data.x={token: hf_SECRET, b: 1}") == "data.x={token: ***, b: 1}"
    assert redact_override("tracking.mlflow.uri=http://a:b@host/") == "tracking.mlflow.uri=http://***@host/"
    shown = ["optimizer.lr=1e-3", "tokenizer.add_tokens=[a,b]", "tokenizer={add_special_tokens: [c], revision: v}"]
    assert [redact_override(item) for item in shown] == shown
    assert redact({"hub_tokens": "x", "add_tokens": "y", "key": "z"}) == {
        "hub_tokens": "***",
        "add_tokens": "y",
        "key": "***",
    }
    assert redact({"x": {"api_key": "k", "n": 1}, "u": ["s3://u:p@b"]}) == {
        "x": {"api_key": "***", "n": 1},
        "u": ["s3://***@b"],
    }
