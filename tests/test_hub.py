"""Reachability of the hub, directly or through a proxy."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from arctic_hydra.hub import hub_reachable


@pytest.fixture
def listening():
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def dead():
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    return address


CASES = [
    # endpoint, environment, whether it can be reached
    ("http://{up}", {}, True),
    ("http://{up}/mirror", {}, True),
    ("http://{down}", {}, False),
    ("http://{down}", {"http_proxy": "http://{up}"}, True),
    ("http://{up}", {"http_proxy": "http://{down}"}, False),
    ("http://{up}", {"http_proxy": "{down}"}, False),
    ("http://{up}", {"http_proxy": "http://name:secret@{down}"}, False),
    ("http://{up}", {"all_proxy": "socks5://{down}"}, False),
    ("http://{up}", {"https_proxy": "http://{down}"}, True),
    ("https://{up}", {"HTTPS_PROXY": "http://{down}"}, False),
    ("http://{up}", {"http_proxy": "http://{down}", "no_proxy": "127.0.0.1"}, True),
    ("http://{down}", {"http_proxy": "http://{up}", "NO_PROXY": "*"}, False),
    ("http://{up}", {"http_proxy": "http://proxy:nine"}, True),
]


@pytest.mark.parametrize(("endpoint", "environment", "expected"), CASES)
def test_the_hub_or_its_proxy_is_contacted(endpoint, environment, expected, listening, dead, monkeypatch):
    from huggingface_hub import constants

    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(up=listening, down=dead))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint.format(up=listening, down=dead))
    started = time.monotonic()
    assert hub_reachable() is expected
    assert time.monotonic() - started < 2


class Refusing(BaseHTTPRequestHandler):
    """Responds like the hub: one gated model, and no repository for every other name."""

    def do_GET(self):
        code, kind = (403, "GatedRepo") if "/gated/" in self.path else (404, "RepoNotFound")
        self.send_response(code)
        self.send_header("X-Error-Code", kind)
        self.send_header("X-Error-Message", "asked for by the test")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *words):
        pass


@pytest.fixture
def hub():
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


LOADING = """
import sys, time
from arctic_hydra.errors import ModelError
from arctic_hydra.model.hf import HFModelFactory
begun = time.monotonic()
try:
    HFModelFactory(name_or_path=sys.argv[1]).create_config()
except ModelError as error:
    print(f"{time.monotonic() - begun:.0f} {error}")
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gated/model", "'gated/model' cannot be loaded: You are trying to access a gated repo."),
        ("nobody/nothing", "'nobody/nothing' cannot be loaded: nobody/nothing is not a local folder"),
    ],
)
def test_errors_of_the_hub_are_reported_at_once_in_one_line(name, words, hub, tmp_path):
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    asked = kept | {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", LOADING, name], env=asked, capture_output=True, text=True, timeout=120)
    [line] = done.stdout.splitlines()
    seconds, _, said = line.partition(" ")
    assert said.startswith(f"model.name_or_path: {words}"), line
    assert said.endswith("(check the name, your access and the network, or pass a local directory)")
    assert int(seconds) < 30, "retries"
