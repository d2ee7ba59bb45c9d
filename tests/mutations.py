"""Random damage to files and random values, for tests that readers return or raise the package's own errors only."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MANY = settings(deadline=None, max_examples=500, suppress_health_check=list(HealthCheck))
FEW = settings(MANY, max_examples=40, derandomize=True)

TEXTS = st.text(max_size=6) | st.sampled_from(
    [
        "",
        "..",
        "../../x",
        "/etc/passwd",
        "a\0b",
        "\ud800",
        "\x1b[31m",
        "\u2028",
        "${x}",
        "{{ x }}",
        "<|im_end|>",
        "é",
        "😀",
        "x" * 5000,
    ]
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([10**400, -1, 2**63]) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
DEEP = "[" * 100_000 + "]" * 100_000
"""JSON that Python's parser refuses with a RecursionError."""


def fuzz(function: Callable[..., None]) -> tuple[Any, Any]:
    """Return two tests of a function of hypothesis' `data`: 40 fixed examples, and 500 random ones for `nox -s faults`."""
    few, many = (kind(given(data=st.data())(function)) for kind in (FEW, MANY))
    return few, pytest.mark.faults(pytest.mark.long(many))


def attempt(function: Callable[[], Any], error: type[Exception], where: Path | str) -> Any:
    """Return the result of a function, or None after an error of this kind, of one line that says where."""
    try:
        return function()
    except error as caught:
        message = str(caught)
    assert str(where) in message and "\n" not in message, message
    return None


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths to all values within a value of JSON, its own first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for name, item in inner for found in places(item, (*place, name)))]


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """Return a copy of a value of JSON in which up to three values anywhere are replaced, removed, or new."""
    result = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        inner = places(result)[1:]
        if not inner:
            return draw(VALUES)
        *path, last = draw(st.sampled_from(inner))
        node = result
        for part in path:
            node = node[part]
        how = draw(st.sampled_from(["replace", "replace", "remove", "insert"]))
        if how == "remove":
            del node[last]
        elif how == "insert" and isinstance(node, dict):
            node[draw(TEXTS)] = draw(VALUES)
        else:
            node[last] = draw(VALUES)
    return result


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Return the bytes of a file after up to three damages: truncated, flipped, inserted, removed."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(result) - 1)))
        how = draw(st.sampled_from(["truncate", "flip", "insert", "remove"]))
        if how == "truncate":
            del result[place:]
        elif how == "flip" and result:
            result[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "insert":
            garbage = st.binary(max_size=8) | st.sampled_from(
                [b"\n", b"{}", b"[]", b",", b"\xff", b"\0" * 99, DEEP.encode()]
            )
            result[place:place] = draw(garbage)
        else:
            del result[place : place + draw(st.integers(1, 40))]
    return bytes(result)


def file_like(value: Any) -> st.SearchStrategy[bytes]:
    """Return files that were this value of JSON before something happened to them."""
    content = as_json(value)
    return damaged(content) | changed(value).map(as_json) | VALUES.map(as_json) | st.binary(max_size=60)


def as_json(value: Any) -> bytes:
    """Return a value as JSON; NaN and lone surrogates stay, as another program may have written them."""
    return json.dumps(value).encode()
