"""Whether the hub answers: the first hop is tried, which may be a proxy."""

from __future__ import annotations

import socket
import time
from contextlib import closing

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
def test_the_first_hop_is_tried(endpoint, environment, expected, listening, dead, monkeypatch):
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
