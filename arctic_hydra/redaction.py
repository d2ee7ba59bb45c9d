"""Masking of secrets before configs and messages are written, printed or sent."""

from __future__ import annotations

import re
from typing import Any

CREDENTIALS = re.compile(r"://[^/@\s]+@")
SECRET_ITEM = re.compile(
    r"""(\b(?!add_(?:special_)?tokens\b)(?:\w*_)?(?:token|key|password|secret|credential)s?['"]?\s*:\s*)[^,}\]]+""",
    re.IGNORECASE,
)
SECRET = re.compile(r"^(?!add_(special_)?tokens$)(.*_)?(token|key|password|secret|credential)s?$", re.IGNORECASE)
"""Names of secrets; `add_tokens` and `add_special_tokens` of a tokenizer are excluded."""


def without_credentials(text: str, mark: str = "***@") -> str:
    """Return `text` with the `user:password@` of every URL replaced by `mark`."""
    return CREDENTIALS.sub(f"://{mark}", text)


def redact_override(text: str) -> str:
    """Return a command-line override with its secrets masked, including those in nested values."""
    key, equals, value = text.partition("=")
    if SECRET.search(key.rpartition(".")[2]) and value:
        return f"{key}{equals}***"
    return key + equals + without_credentials(SECRET_ITEM.sub(r"\1***", value))


def redact(tree: Any) -> Any:
    """Return a plain config with `***` for the values of secret keys (token, key, password, secret, credential) and for
    the credentials in URLs."""
    if isinstance(tree, dict):
        return {k: "***" if SECRET.search(str(k)) and isinstance(v, str) and v else redact(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [redact(item) for item in tree]
    return without_credentials(tree) if isinstance(tree, str) else tree
