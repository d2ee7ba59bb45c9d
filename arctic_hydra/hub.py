"""Whether the Hugging Face hub answers at all: its clients retry a dead connection for a minute before they say so."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit


def looks_like_path(name: str) -> bool:
    """Whether a name can only be meant as a path: a hub id is `name` or `owner/name`, and no existing path."""
    return name.startswith(("/", "./", "../", "~")) or name in (".", "..") or name.count("/") > 1 or Path(name).exists()


def hub_reachable(timeout_seconds: float = 3.0) -> bool:
    """Whether the hub accepts a connection; true without a try where a proxy stands in between."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    endpoint = urlsplit(constants.ENDPOINT)
    try:
        port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
        socket.create_connection((endpoint.hostname or "", port), timeout_seconds).close()
    except OSError:
        return False
    return True


@contextmanager
def cache_only_when_unreachable() -> Iterator[None]:
    """Let the hub's clients use nothing but their cache while the hub does not answer."""
    import datasets
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or hub_reachable():
        yield
        return
    before = datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = False, before
