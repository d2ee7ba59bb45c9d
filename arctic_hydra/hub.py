"""Hub ids and paths, and whether the hub is reachable: its clients retry for a minute when there is no network."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

PATH_KEYS = (
    "path",
    "name_or_path",
    "chat_template",
    "output_root",
    "init_from",
    "extend",
    "from_checkpoint",
    "hostfile",
)
_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}


def looks_like_path(name: str) -> bool:
    """Whether `name` is a path rather than a hub id (`name` or `owner/name`)."""
    return (
        name.startswith(("/", "./", "../", "~")) or name in (".", "..") or name.count("/") > 1 or os.path.exists(name)
    )


def absolute(path: str) -> str:
    """Return the absolute form of a path, which may begin with `~`."""
    return str(Path(path).expanduser().absolute())


def holds_path(key: str) -> bool:
    """Whether the config field `key` holds a path, or what may be one."""
    return key in PATH_KEYS or key.endswith(("_path", "_dir"))


def absolute_paths(tree: Any, base: Path) -> Any:
    """Return a plain config with absolute paths: converts the values of path-like keys that exist below `base` or that
    are unambiguous paths (`./x`, `~/x`)."""
    if isinstance(tree, dict):
        tree = {k: _absolute(v, base) if holds_path(k) else absolute_paths(v, base) for k, v in tree.items()}
        if isinstance(tree.get("output_root"), str) and tree["output_root"]:  # need not exist yet
            tree["output_root"] = str((base / os.path.expanduser(tree["output_root"])).absolute())
    return tree


def _absolute(value: Any, base: Path) -> Any:
    if isinstance(value, list):
        return [_absolute(item, base) for item in value]
    if not isinstance(value, str) or not value or "://" in value or "\n" in value or "{" in value:
        return value
    path = Path(os.path.expanduser(value))
    glob = any(letter in value for letter in "*?[")
    if path.is_absolute() or glob or value.startswith(("./", "../", "~")) or os.path.exists(base / path):
        return str((base / path).absolute())
    return value


def hub_reachable(timeout_seconds: float = 3.0) -> bool:
    """Whether the hub, or the proxy in between, accepts a connection."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    endpoint = urlsplit(constants.ENDPOINT)
    proxy = proxy_of(endpoint)
    try:
        # A proxy without a scheme means HTTP, as in the hub's client.
        first = endpoint if proxy is None else urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        address = (first.hostname or "", first.port or _PORTS.get(first.scheme, 80))
    except ValueError:
        return True  # an unknown form of address: let the hub's client report it
    try:
        socket.create_connection(address, timeout_seconds).close()
    except OSError:
        return False
    return True


def proxy_of(endpoint: SplitResult) -> str | None:
    """Return the proxy that the environment sets for `endpoint`, or None."""
    import urllib.request  # takes long, and most commands do not ask

    if urllib.request.proxy_bypass(endpoint.netloc):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(endpoint.scheme) or proxies.get("all")


@contextmanager
def cache_only_when_unreachable() -> Iterator[None]:
    """Switch the hub's clients to offline mode within this context if the hub cannot be reached."""
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
