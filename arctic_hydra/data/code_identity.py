"""Hash of the user-defined code behind a source; part of the cache key."""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from arctic_hydra.component import Component, default_of
from arctic_hydra.files import code_file

KNOWN_PACKAGES = frozenset((*sys.stdlib_module_names, __name__.partition(".")[0]))


_BY_CLASS = ContextVar("by_class", default=False)


@contextmanager
def legacy_identity(enabled: bool) -> Iterator[None]:
    """Within this context, identify code as before components had names: by class. For runs that began then."""
    token = _BY_CLASS.set(enabled)
    try:
        yield
    finally:
        _BY_CLASS.reset(token)


def code_identity(component: Component) -> dict[str, Any]:
    """Return the class of a source or data factory as plain values, with the code and the added fields of a user-defined one.

    The code is the module of each class in its MRO, except for classes of this package and the standard library. It does
    not cover what these modules import: after a change there, prune the cache or pass `data.cache=off`.
    """
    kind = type(component)
    own = [base for base in kind.__mro__ if base.__module__.partition(".")[0] not in KNOWN_PACKAGES]
    names = {name for base in own for name in base.__dict__.get("__annotations__", {})} - {"_target_"}
    if _BY_CLASS.get():
        return {
            "class": f"{kind.__module__}.{kind.__qualname__}",
            "code": [_module_hash(base) for base in own],
            "fields": {item.name: getattr(component, item.name) for item in fields(component) if item.name in names},
        }
    added = {item.name: getattr(component, item.name) for item in fields(component) if item.name in names}
    usual = {item.name: default_of(item) for item in fields(component)}
    return {
        "component": kind.identity_name(),
        "version": kind.component_version,
        "code": [_module_hash(base) for base in own],
        "fields": {name: value for name, value in added.items() if value != usual[name]},
    }


@cache
def _module_hash(kind: type) -> str:
    """Return a hash of the syntax tree of a class's module, which does not change with its comments.

    For a class of `code=`, it is the hash of the module and of all that it imports from its directory.
    """
    if code_file.owns(kind.__module__):
        return code_file.module_digest(kind.__module__)
    module = sys.modules.get(kind.__module__)
    try:
        content = ast.dump(ast.parse(inspect.getsource(module))).encode()  # type: ignore[arg-type]
    except (OSError, TypeError, SyntaxError):
        file = getattr(module, "__file__", None)
        # Defined in an interactive session, so nothing identifies it: never equal to another class of that name.
        content = Path(file).read_bytes() if file else os.urandom(16)
    return hashlib.sha256(content).hexdigest()
