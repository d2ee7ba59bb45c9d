"""Secrets of several lines in YAML and JSON, and in diffs of such files."""

from __future__ import annotations

import time

import pytest

from arctic_hydra.redaction.masking import mask_settings

SETTINGS = {
    "literal": ("api_key: |\n  plant\n\n   plant\n# n\nn: 1\n", "api_key: ***\n# n\nn: 1\n"),
    "folded": ("a:\n  token: >-  # c\n    plant\n    plant\n  n: 1", "a:\n  token: ***\n  n: 1"),
    "plain": ("token: plant\n  it's plant, plant\nn: 'x'", "token: ***\nn: 'x'"),
    "one line": ("token: pla'nt, plant\nn: 1", "token: ***\nn: 1"),
    "quoted": ("token: 'it''s plant\n\n  plant'\nn: 'x'", "token: ***\nn: 'x'"),
    "quoted without indent": ('token: "a\nplant"\nn: 1', "token: ***\nn: 1"),
    "list": ("a:\n  passwords:\n  - plant\n  - b: plant\n  n: 1", "a:\n  passwords:\n  ***\n  n: 1"),
    "mapping": ("auth:\n# c\n  x:\n    y: plant\nn: 1", "auth:\n***\nn: 1"),
    "in a list": ("- token: |\n    plant\n  n: 1\n- n: 2", "- token: ***\n  n: 1\n- n: 2"),
    "in lists": ("- - token: |\n      plant\n  - n: 1", "- - token: ***\n  - n: 1"),
    "in braces": ("m: {n: 1, token: plant\n  plant, x: 2}\nn: 1", "m: {n: 1, token: ***, x: 2}\nn: 1"),
    "in braces, last": ("m: {n: {x: 1}, token: plant\n  plant\n}\nn: 1", "m: {n: {x: 1}, token: ***}\nn: 1"),
    "in a brace that stays open": ("m: {n: 1, token: plant\nn: 1", "m: {n: 1, token: ***\nn: 1"),
    "explicit key": ("? token\n: |\n  plant\nn: 1", "? token\n: ***\nn: 1"),
    "quoted key": ("'token': |\n  plant\nn: 1", "'token': ***\nn: 1"),
    "json": ('{\n  "auth": {\n    "x": "plant"\n  },\n  "n": 1}', '{\n  "auth": ***,\n  "n": 1}'),
    "at the end": ("token: |2\n   plant", "token: ***"),
    "no value": ("token:\nn: 1\nauth: null\nm: {x: 1}", "token:\nn: 1\nauth: null\nm: {x: 1}"),
}
"""Settings with a secret of several lines, and what is shown of them."""


@pytest.mark.parametrize("what", SETTINGS)
def test_a_secret_of_several_lines_is_masked_in_settings(what):
    text, shown = SETTINGS[what]
    assert mask_settings(text) == shown
    assert mask_settings(shown) == shown


DIFFS = {
    "context": (" token: |\n-  plant\n+  plant\n   plant\n n: 1\n", " token: ***\n n: 1\n"),
    "added": ("+token: |\n+  plant\n n: 1\n", "+token: ***\n n: 1\n"),
    "replaced": ("-token: |\n-  plant\n+n: 2\n n: 1\n", "-token: ***\n+n: 2\n n: 1\n"),
    "key replaced": ("-token: |\n+n: |\n   plant\n m: 1\n", "-token: ***\n m: 1\n"),
    "end of a part": (" token: |\n   plant\n@@ -1 +1 @@ n: 1\n-  x: 1\n", " token: ***\n@@ -1 +1 @@ n: 1\n-  x: 1\n"),
}


@pytest.mark.parametrize("what", DIFFS)
def test_a_secret_of_several_lines_is_masked_in_both_versions_of_a_diff(what):
    text, shown = DIFFS[what]
    assert mask_settings(text, is_diff=True) == shown


def test_many_secrets_of_one_line_are_masked_in_linear_time():
    def seconds(count: int) -> float:
        start = time.process_time()
        mask_settings("a: 1, token: {x: 1}, " * count)
        return time.process_time() - start

    seconds(1000)
    assert seconds(40_000) < 40 * seconds(5_000)
