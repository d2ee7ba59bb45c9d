"""Configs are masked by key and by value, and come back whole."""

from __future__ import annotations

import json

import pytest

from arctic_hydra.redaction import mask, redact
from arctic_hydra.redaction.trees import hidden_part, learn_secrets, restore, secret_keys

TREE = {
    "auth": {"user": "me", "ports": [1, 2.5], "on": True, "nothing": None, "empty": ""},
    "passwd": 123456,
    "hub_tokens": ["a", {"b": "c"}],
    "uri": "http://me:pw@host/x",
    "headers": ["Authorization: Bearer abcdefgh", "Accept: text"],
    "plain": {"n": 1, "list": [1, [2]], "max_tokens": 5, "pad_token": "<pad>", "tokens": [3]},
    "dict.with.dots": {"api.key": "x", "y": 2},
    "names": {"hf_AbcdefghAbcdefghAbcdefgh": {"inner": [{"x": 1}]}, "z": "kept"},
    "key": {"_target_": "arctic_hydra.data.source.json.JsonSource", "path": "a.jsonl"},
}


def test_everything_below_a_secret_key_and_secret_values_anywhere_are_masked():
    assert redact(TREE) == {
        "auth": {"user": "***", "ports": ["***", "***"], "on": True, "nothing": None, "empty": ""},
        "passwd": "***",
        "hub_tokens": ["***", {"b": "***"}],
        "uri": "http://***@host/x",
        "headers": ["Authorization: Bearer ***", "Accept: text"],
        "plain": TREE["plain"],
        "dict.with.dots": {"api.key": "***", "y": 2},
        "names": {"***": {"inner": [{"x": 1}]}, "z": "kept"},
        "key": TREE["key"],
    }


def test_values_of_secret_environment_variables_are_masked_in_any_key(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "tok-value")
    monkeypatch.setenv("SHORT_TOKEN", "true1")
    monkeypatch.setenv("GROUP_KEY", "ordinary")
    monkeypatch.setenv("SSL_KEY", "/")
    tree = {"a": "xtok-valuey", "b": ["tok-value"], "c": "true1 ordinary /", "_target_": "tok-value"}
    assert redact(tree) == {"a": "x***y", "b": ["***"], "c": "true1 ordinary /", "_target_": "tok-value"}


def test_words_of_the_package_are_not_masked_although_they_are_values_of_secrets(monkeypatch):
    for name, value in (("DB", "tokenizer"), ("POSTGRES", "mlflow"), ("A", "checkpoint"), ("B", "Default")):
        monkeypatch.setenv(f"{name}_PASSWORD", value)
    learn_secrets({"password": "optimizer"}, {"password": "***"})
    tree = {
        "tokenizer": 1,
        "tracking": {"mlflow": {"_target_": "arctic_hydra.tracking.mlflow.MLflowTracker"}},
        "a": "Default",
    }
    assert redact(tree) == tree and mask(str(tree)) == str(tree)
    assert mask("optimizer.lr: got x") == "optimizer.lr: got x"


def test_keys_are_masked_by_their_form_only(monkeypatch):
    monkeypatch.setenv("MY_PASSWORD", "extension7")
    tree = {"callback": {"extension7": {"x": "extension7"}}, "hf_AbcdefghAbcdefghAbcdefgh": 1, "http://me:pw@host": 2}
    assert redact(tree) == {"callback": {"extension7": {"x": "***"}}, "***": 1, "http://***@host": 2}


def test_a_config_is_restored_from_its_file_and_the_hidden_part():
    clean = redact(TREE)
    hidden = hidden_part(TREE, clean)
    assert "plain" not in hidden and "key" not in hidden and hidden["dict.with.dots"] == {"api.key": "x"}
    assert restore(json.loads(json.dumps(clean)), json.loads(json.dumps(hidden))) == TREE
    assert redact(clean) == clean and hidden_part(clean, clean) == {}
    assert restore(clean, {}) == clean
    learn_secrets(TREE, clean)


@pytest.mark.parametrize(
    ("tree", "shown"),
    [
        ({"password": 12345678}, "got *** and short"),
        ({"uri": "http://h/12345678", "x": {"token": ["12345678"]}}, "got *** and short"),
        ({"password": "short"}, "got 12345678 and short"),
        ({"password": "default"}, "got 12345678 and short"),
    ],
)
def test_what_a_config_hides_is_masked_in_messages(tree, shown):
    learn_secrets(tree, redact(tree))
    assert mask("got 12345678 and short") == shown


def test_what_a_mask_within_a_text_hides_is_learned(monkeypatch):
    """On another machine, the environment variable that it came from may be unset."""
    tree = {"header": "x-learned-from-text-y"}
    learn_secrets(tree, {"header": "x-***-y"})
    assert mask("learned-from-text") == "***"


def test_keys_with_secrets_are_named_where_masking_would_not_do():
    tree = {
        "setup": ["module load cuda", "export A_TOKEN=b"],
        "x": {"password": 1, "auth": None},
        "comment": "sk-" + 30 * "a",
    }
    assert list(secret_keys(tree, "hydra.launcher")) == [
        "hydra.launcher.setup[1]",
        "hydra.launcher.x.password",
        "hydra.launcher.comment",
    ]
    assert list(secret_keys({"hf_" + 30 * "a": 1}, "x")) == ["x.***"]
    assert (
        list(
            secret_keys(
                {"use_auth": True, "auth": False, "partition": "gpu", "exclusive": True, "mem_gb": 0, "setup": []}, "x"
            )
        )
        == []
    )
