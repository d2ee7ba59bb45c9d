"""Secrets are masked before anything is written, printed or sent."""

from __future__ import annotations

import html
import json
import os
import time

import pytest

from arctic_hydra.redaction import contains_secret, mask, redact, redact_override, without_credentials
from arctic_hydra.redaction.masking import learn_overrides, mask_certain, mask_settings


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
    signed = "https://h/x?a=1&sig=abc&X-Amz-Signature=def#token=1"
    assert without_credentials(signed) == "https://h/x?a=1&sig=***&X-Amz-Signature=***#token=1"
    assert without_credentials("http://a:p@ss@host/x") == "http://***@host/x"


@pytest.mark.parametrize(
    "password", ["pa/ss", "pass?word", "p@w#d", "1/2@3", "12ab/3", "p:4/w", "p/w?x#y@z", "/p", "$p"]
)
def test_passwords_in_urls_are_masked_although_they_are_not_quoted(password):
    assert mask(f"at postgresql://u:{password}@h/db, x@y") == "at postgresql://***@h/db, x@y"
    assert mask(f"at redis://:{password}@h/db") == "at redis://***@h/db"


@pytest.mark.parametrize(
    "url",
    [
        "http://host:5000/x@y http://host:80?a=b@c http://[::1]:80/x@y",
        "git+ssh://git@github.com/owner/name.git@v1 ssh://git@host:22/x",
        "abfss://container@account.dfs.core.windows.net/x",
        "https://me:$GH_TOKEN@github.com/x https://me:${GH_TOKEN}@github.com/x",
    ],
)
def test_users_ports_and_references_in_urls_stay(url):
    assert mask(url) == url


def test_a_long_user_of_a_url_is_a_token():
    assert mask("https://0123456789abcdef0123@host/x") == "https://***@host/x"


def test_urls_without_end_take_linear_time():
    start = time.perf_counter()
    mask("://x:a" * 20_000)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abc123", "Authorization: Bearer ***"),
        ("{'Authorization': 'Basic dXNlcjpwYXNz'}", "{'Authorization': ***}"),
        ("cannot log in as me:hunter2@db.example", "cannot log in as ***@db.example"),
        ("curl --api-key=abc -u x", "curl --api-key=*** -u x"),
        ("curl -s -u admin:s3cr3tpw https://h", "curl -s -u admin:*** https://h"),
        ("curl https://h \\\n  --user 'me@x:a;b'", "curl https://h \\\n  --user 'me@x:***'"),
        ("export A_TOKEN='a b' B=$A_TOKEN C_TOKEN=$X", "export A_TOKEN=*** B=$A_TOKEN C_TOKEN=$X"),
        ('{"password": "a, b", "n": 1, "keys": [1]}', '{"password": ***, "n": 1, "keys": [1]}'),
        (
            "hf_abcdefghijklmnopqrstuvwxyz0123, xhf_abcdefghijklmnopqrstuvwxyz0123",
            "***, xhf_abcdefghijklmnopqrstuvwxyz0123",
        ),
        ("a -----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY----- b", "a *** b"),
        ("a -----BEGIN RSA PRIVATE KEY-----\ncut off", "a ***"),
    ],
)
def test_secrets_in_any_text_are_masked(text, shown):
    assert mask(text) == shown
    assert mask(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "tokenizer.api_key: there is no such key; did you mean tokenizer.add_tokens?",
        "sorted(rows, key=len)",
        "load(name, token=token, auth=self.auth, api_key=read('x'), B_TOKEN=$A_TOKEN)",
        "pass api_key=<value>, or use_auth=true",
        "pass --token to the program, --hub-token TOKEN, or --token",
        "pypi-server-of-our-department npm_config_registry r8_model SG.name ya29.x hooks.slack.com x-axis: tokens",
        "the basic launcher, Basic training and bearer tokens",
        "step 3, loss 2.5, tokens=512 max_tokens=3, pass=1",
        "task-evaluate-abcdefghijklmnopqrst hf_config_kwargs hf_mistral7binstructv2",
        "sk-learn-baseline-experiment-one sk-baselinewithtwolayers",
        "tokenizer.revision=refs/pr/1 data.sources.chat.split=train[:10%]",
        "git@github.com:owner/name.git 12:30:01 owner/name:split@revision",
        "{'pad_token': '<pad>', 'token': None, 'auth': False}",
        "sqlite:////runs/mlflow.db http://127.0.0.1:5000/x?page=2&tokens=3",
    ],
)
def test_ordinary_text_stays(text):
    assert mask(text) == text
    assert not contains_secret(text)


@pytest.mark.parametrize(
    "line",
    [
        "pip install git+ssh://git@github.com/owner/name.git",
        "git clone ssh://git@github.com/owner/name.git",
        'export HF_TOKEN="$(cat ~/.token)" A_TOKEN="${HF_TOKEN:?}" B_TOKEN=$(<~/.token)',
        "curl -u me:$TOKEN https://host/x -o a:b; docker run -u 1000:1000 image; rsync -u host:folder .; python -u a:b",
        'export HF_TOKEN=`cat ~/.token` A_TOKEN="`cat ~/.token`"',
        'export SSH_KEY=~/.ssh/id A_KEY=/home/me/.ssh/id B_KEY=../id C_KEY="/run/secrets/x"',
        'curl -H "Authorization: Bearer $TOKEN" -H "Authorization: token $TOKEN" -H "x-api-key: $KEY" https://host/x',
        'hf auth login --token $HF_TOKEN --add-to-git-credential; wandb login --api-key "$(cat key)" --token ~/.token',
    ],
)
def test_shell_commands_that_name_no_secret_stay(line):
    assert not contains_secret(line)


@pytest.mark.parametrize(
    "line",
    [
        "export A_TOKEN='$2b$12$abc'",
        "export A_TOKEN=/AbC+dEf",
        'export A_TOKEN="a b"',
        "pip install git+https://me:pw@host/x",
    ],
)
def test_shell_commands_with_secrets_are_recognized(line):
    assert contains_secret(line)


@pytest.mark.parametrize(
    "secret",
    [
        "npm_" + 18 * "Ab",
        "pypi-AgEIcHlwaS5vcmc" + 20 * "Ab-",
        "nvapi-" + 20 * "A-b",
        "gsk_" + 26 * "Ab",
        "r8_" + 18 * "Ab",
        "dckr_pat_" + 9 * "A-b",
        "xai-" + 40 * "Ab",
        f"SG.{11 * 'Ab'}.{21 * 'A_'}",
        "ya29." + 20 * "a0A",
        "https://hooks.slack.com/services/T0000/B0000/" + 12 * "Ab",
    ],
)
def test_tokens_of_more_services_are_masked(secret):
    assert mask(f"got {secret}, expected a name").endswith("***, expected a name")
    assert not mask(f"name{secret[:9]}").endswith("***")


@pytest.mark.parametrize(
    "text",
    [
        "--token Abc123",
        "--pass Abc123",
        "--api-key 'a b'",
        "Authorization: token abc123",
        "-H 'x-api-key: abcdef'",
        "X-Vault-Token: s.abcdef",
    ],
)
def test_secrets_of_commands_and_headers_are_masked(text):
    assert "***" in mask(text) and "ab" not in mask(text).lower()
    assert mask(mask(text)) == mask(text)


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("++a.auth.user=me", "++a.auth.user=***"),
        ("a.headers={Authorization: Basic dXNlcjpwYXNz, n: 1}", "a.headers={Authorization: ***, n: 1}"),
        ("a={auth: {user: me, ports: [1, 2]}, b: [{passwd: 123}, 4]}", "a={auth: ***, b: [{passwd: ***}, 4]}"),
        ("a.password=x,y", "a.password=***"),
        ("a.use_auth=true", "a.use_auth=true"),
        ("a.x='Bearer abcdef'", "a.x='Bearer ***'"),
        ("--config-dir", "--config-dir"),
    ],
)
def test_overrides_are_masked_by_key_and_value(override, shown):
    assert redact_override(override) == shown


def test_secrets_of_the_command_line_are_masked_from_the_start():
    learn_overrides(
        ["a.token='planted-1'", "a={n: planted-2, password: planted-3, auth: {user: planted-4, list: [planted-5]}}"]
    )
    learn_overrides(["a.password=default", "a.token=abc", "task=export", "b='Authorization: planted-6', c: planted-7"])
    learn_overrides(["a.token=${oc.env:HF_TOKEN}", "a.apikey=choice(planted-8,planted-9)"])
    assert mask("choice HF_TOKEN oc.env planted-8 planted-9") == "choice HF_TOKEN oc.env *** ***"
    text = " ".join(f"planted-{number}" for number in range(1, 8))
    assert (
        mask(f"{text} default abc export password")
        == "*** planted-2 *** *** *** *** planted-7 default abc export password"
    )


def test_only_certain_secrets_are_masked_where_masking_may_do_harm(monkeypatch):
    monkeypatch.setenv("SOME_PASSWORD", "messages")
    monkeypatch.setenv("OTHER_PASSWORD", "longer-than-messages")
    text = "{% for m in messages %}{{ token='x' }}{{ {'key': m} }}"
    assert mask_certain(text) == text
    assert mask_certain("hf_abcdefghijklmnopqrstuvwxyz0123 longer-than-messages") == "*** ***"
    assert contains_secret("x/longer-than-messages") and not contains_secret("x/messages")


@pytest.mark.parametrize("write", [str, repr, json.dumps, html.escape], ids=lambda function: function.__name__)
def test_a_known_value_is_masked_however_it_is_written(write, monkeypatch):
    monkeypatch.setenv("DEPLOY_TOKEN", "q\"1'zz\\secretvalue&<")
    assert "secretvalue" not in mask(f"got {write(os.environ['DEPLOY_TOKEN'])}, expected a number")


def test_a_password_of_digits_leaves_other_numbers_alone(monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", "123456")
    assert mask("loss 0.1234567 of 1234560, login 123456") == "loss 0.1234567 of 1234560, login ***"


def test_many_secrets_are_masked_in_linear_time():
    def seconds(count: int) -> float:
        start = time.process_time()
        assert mask_settings("token: x1\n" * count) == "token: ***\n" * count
        return time.process_time() - start

    seconds(1000)
    assert seconds(80_000) < 40 * seconds(10_000)
