"""The cache key of tokenized data."""

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

CODE_VERSION = 9
"""Part of the cache key; increment it when the same rows and options give different tokens, masks or reports."""

READ_VERSION = 2
"""Part of the cache key where malformed rows are dropped; increment it when rows are read that were malformed before."""

ANSWERS_VERSION = 1
"""Part of the cache key of pairs and labelled answers; increment it when the same rows give other ones."""


def cache_key(identity: Any, tokenizer: PreTrainedTokenizerBase, options: PrepareOptions) -> str:
    """Return the cache key of a source: a hash of its rows, tokenizer, template, options and the version of this code."""
    backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    backend.no_truncation()
    backend.no_padding()
    templates: list[str] = []
    for with_tools in (False, True):
        with suppress(DataError):  # texts need no template, and encoding reports a missing one
            templates.append(template_of(tokenizer, with_tools))
    parts = {
        "code": [CODE_VERSION, READ_VERSION] if options.malformed == "drop" else CODE_VERSION,
        "source": identity,
        # Options added later are left out while unset, so that the entries from before stay valid.
        "options": {name: value for name, value in asdict(options).items() if value is not None},
        "tokenizer": hashlib.sha256(backend.to_str().encode()).hexdigest(),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "templates": templates,
    }
    if options.answers:
        parts["answers"] = ANSWERS_VERSION
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
