"""Secrets are masked before anything is written, printed or sent."""

from __future__ import annotations

from arctic_hydra.redaction import redact, redact_override, without_credentials


def test_secrets_are_masked_in_overrides_and_configs():
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


def test_credentials_in_urls_are_masked_and_other_urls_stay():
    text = "cannot reach http://me:pw@host:5000/x, see https://example.org/@user"
    assert without_credentials(text) == "cannot reach http://***@host:5000/x, see https://example.org/@user"
    assert without_credentials("sqlite://a:b@host/x", mark="") == "sqlite://host/x"
