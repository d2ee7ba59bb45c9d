"""Masks secrets in plain configs, and restores them: the ranks receive the hidden values through the environment, not the file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from arctic_hydra.redaction.masking import MASK, contains_secret, known_values, learn, mask, mask_known
from arctic_hydra.redaction.secret_names import is_secret_name


def redact(tree: Any, *, numbers: bool = True) -> Any:
    """Return a plain config with `***` for its secrets: every value below a secret key, and secrets within other texts.

    Booleans are never secrets; without `numbers`, no number is one either.
    """
    return _redact(tree, known_values(), numbers, below_secret=False)


def _redact(tree: Any, known: re.Pattern[str] | None, numbers: bool, *, below_secret: bool) -> Any:
    if isinstance(tree, dict):
        inside = below_secret and "_target_" not in tree  # a component may have any name
        return {
            _masked_key(key): value
            if key == "_target_"
            else _redact(value, known, numbers, below_secret=inside or is_secret_name(str(key)))
            for key, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return [_redact(item, known, numbers, below_secret=below_secret) for item in tree]
    if isinstance(tree, str):
        return MASK if below_secret and tree else mask_known(tree, known)
    return MASK if below_secret and numbers and not (tree is None or isinstance(tree, bool)) else tree


def _masked_key(key: Any) -> Any:
    """Mask a key by its form alone: a password may equal the name of an option or a component by chance."""
    return mask_known(key, None) if isinstance(key, str) else key


def hidden_part(tree: Any, clean: Any) -> dict[str, Any]:
    """Return what `redact` has hidden in a config, as a tree of the hidden values alone."""
    return {
        key: hidden_part(value, clean[key]) if _have_same_keys(value, clean[key]) else value
        for key, value in tree.items()
        if clean[key] != value
    }


def restore(clean: dict[str, Any], hidden: dict[str, Any]) -> dict[str, Any]:
    """Return the config that `hidden_part` was taken from."""
    whole = dict(clean)
    for key, value in hidden.items():
        inner: Any = clean.get(key)
        nested = isinstance(value, dict) and isinstance(inner, dict) and value.keys() <= inner.keys()
        whole[key] = restore(inner, value) if nested else value
    return whole


def learn_secrets(tree: dict[str, Any], clean: dict[str, Any]) -> None:
    """Mask what `clean` hides of `tree` in every text from now on."""
    learn(secret for hidden in _hidden_texts(tree, clean) for secret in hidden)


def _hidden_texts(tree: Any, clean: Any) -> Iterator[tuple[str, ...]]:
    """Yield the hidden parts of each value: all of it, or what each `***` replaces."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _hidden_texts(value, clean.get(key) if isinstance(clean, dict) else None)
    elif isinstance(tree, list | tuple):
        for value, shown in zip(tree, clean or (), strict=False):
            yield from _hidden_texts(value, shown)
    elif tree != clean and isinstance(clean, str):
        parts = "(.+)".join(re.escape(part) for part in clean.split(MASK))
        if match := re.fullmatch(parts, str(tree), re.DOTALL):
            yield match.groups()


def secret_keys(tree: Any, prefix: str) -> Iterator[str]:
    """Yield the keys of a plain config whose values contain a secret, for configs that cannot be masked."""
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        key = f"{prefix}[{name}]" if isinstance(tree, list) else f"{prefix}.{name}"
        is_set = not isinstance(value, bool) and value not in (None, "", [], {})
        if contains_secret(str(name)) or (is_secret_name(str(name)) and is_set):
            yield mask(key)
        elif isinstance(value, dict | list):
            yield from secret_keys(value, key)
        elif contains_secret(str(value)):
            yield key


def _have_same_keys(tree: Any, clean: Any) -> bool:
    return isinstance(tree, dict) and isinstance(clean, dict) and tree.keys() == clean.keys()
