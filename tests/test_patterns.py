"""Patterns over parameter names."""

from __future__ import annotations

import signal

import pytest

from arctic_hydra import patterns
from arctic_hydra.errors import ConfigError
from arctic_hydra.patterns import check_patterns, matching, near_names

NAMES = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"]


def test_a_pattern_is_found_anywhere_in_a_name():
    assert matching("x", ["q_proj", r"layers\.1\."], NAMES) == set(NAMES[1:])
    assert matching("x", ["^model"], iter(NAMES)) == set(NAMES)
    assert matching("x", [], NAMES) == set()


def test_a_pattern_without_a_match_is_an_error_with_the_key_and_a_near_name():
    with pytest.raises(ConfigError) as caught:
        matching("converter.freeze.patterns", ["k_proj", "q_proj", "zzz"], NAMES)
    first, second = caught.value.problems
    assert first.startswith("converter.freeze.patterns: 'k_proj' matches no parameter; did you mean 'q_proj' (as in")
    assert second == (
        "converter.freeze.patterns: 'zzz' matches no parameter; the names are such as " + ", ".join(NAMES)
    )
    assert near_names("k_proj", []) == "; there are none"


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("", "patterns: got an empty pattern, which matches everything"),
        ("a(", r"patterns: got 'a\(', which is not a valid"),
        ("a{99999999999}", r"patterns: got 'a\{99999999999\}', which is not a valid"),
        ("(?:" * 3000 + ")" * 3000, r"^patterns: got .{80}, which is not a valid regular expression \(maximum"),
    ],
    ids=["empty", "syntax", "repetitions", "nested groups"],
)
def test_what_is_not_a_regular_expression_is_refused(pattern, text):
    with pytest.raises(ValueError, match=text):
        check_patterns("patterns", ["ok", pattern])


def test_a_pattern_that_takes_exponential_time_is_stopped(monkeypatch):
    monkeypatch.setattr(patterns, "MAX_SECONDS", 0.2)
    before = signal.getsignal(signal.SIGPROF)
    message = r"^optimizer.no_decay: got '\(a\|aa\)\+\$', which takes more than 0.2 s on the parameters' names; expected a pattern"
    with pytest.raises(ConfigError, match=message):
        matching("optimizer.no_decay", ["(a|aa)+$"], ["a" * 60 + "b"])
    assert signal.getsignal(signal.SIGPROF) is before
