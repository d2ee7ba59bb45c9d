"""The cache key of prepared data."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from arctic_hydra.data.encode.template import template_of
from arctic_hydra.data.prepare.preparer import PrepareOptions
from arctic_hydra.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CODE_VERSION = 7
"""Raise when the same rows and options would give other tokens, masks or reports: it is part of the cache key."""


def cache_key(identity: Any, tokenizer: PreTrainedTokenizerBase, options: PrepareOptions) -> str:
    """Return the cache key of a source: a hash over its rows, tokenizer, template, options and this code's version."""
    backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    backend.no_truncation()
    backend.no_padding()
    templates: list[str] = []
    for with_tools in (False, True):
        with suppress(DataError):  # none: fine for texts, and conversations say so when they are encoded
            templates.append(template_of(tokenizer, with_tools))
    parts = {
        "code": CODE_VERSION,
        "source": identity,
        "options": asdict(options),
        "tokenizer": hashlib.sha256(backend.to_str().encode()).hexdigest(),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "templates": templates,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
