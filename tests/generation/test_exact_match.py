"""What a pattern finds in an answer, and when two results are equal."""

from __future__ import annotations

import time

import pytest

from arctic_hydra import patterns
from arctic_hydra.errors import ConfigError
from arctic_hydra.generation.exact_match import ExactMatch


@pytest.mark.parametrize(
    ("pattern", "answer", "result"),
    [
        ("#### (.*)", "2 * 3 = 6\n#### 6", "6"),
        ("#### (.*)", "#### 1,234,567 ", "1234567"),
        ("#### (.*)", "####  70   000\n", "70 000"),
        ("#### (.*)", "#### 1, 2, 3", "1, 2, 3"),
        ("#### (.*)", "#### 5\nQuestion: and then?\n#### 8", "8"),
        ("#### (.*)", "<think>perhaps #### 4</think>\n#### 6", "6"),
        ("#### (.*)", "<think>perhaps #### 4</think>\nsix", None),
        ("#### (.*)", "six", None),
        (r"\d+", "from 12 to 14", "14"),
        (r"(?:answer|result) is (\w+)(?:\.|$)", "The answer is yes.", "yes"),
        (r"answer: (a)?", "answer: b", None),
        (r"-?\d*", "from 12 to 14 cats", "14"),
        (r"-?\d*", "six", None),
        ("#### (.*)", "<think>perhaps #### 4", None),
    ],
)
def test_the_last_match_after_the_reasoning_is_the_result(pattern, answer, result):
    assert ExactMatch(pattern=pattern).result(answer) == result


def test_an_answer_has_no_result_before_the_reasoning_that_its_prompt_opened_ends():
    settings = ExactMatch(pattern="#### (.*)")
    assert settings.result("perhaps #### 4", in_reasoning=True) is None
    assert settings.result("perhaps #### 4</think>\n#### 6", in_reasoning=True) == "6"


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("#### (.*", "exact_match.pattern: got '#### (.*', not a valid regular expression (missing ), unterminated"),
        (
            "(a)(b)",
            "exact_match.pattern: got '(a)(b)' with 2 groups, expected at most one, which holds the result; write the others",
        ),
        ("", "exact_match.pattern: got an empty pattern, which finds no result; expected one such as '#### (.+)'"),
        (
            "a{99999999999}",
            "exact_match.pattern: got 'a{99999999999}', not a valid regular expression (the repetition number",
        ),
        ("(?:" * 3000 + ")" * 3000, "exact_match.pattern: got '(?:(?:(?:(?:"),
    ],
    ids=["syntax", "two groups", "empty", "repetitions", "nested groups"],
)
def test_a_pattern_that_holds_no_single_result_is_a_problem(pattern, problem):
    assert next(ExactMatch(pattern=pattern).problems()).startswith(problem)
    assert list(ExactMatch().problems()) == list(ExactMatch(pattern="#### (.*)").problems()) == []


def test_a_pattern_that_takes_exponential_time_is_stopped(monkeypatch):
    monkeypatch.setattr(patterns, "MAX_SECONDS", 0.2)
    message = r"^exact_match.pattern: got '\(a\|aa\)\+\$', which takes more than 0.2 s on the text 'aaa"
    with pytest.raises(ConfigError, match=message):
        ExactMatch(pattern="(a|aa)+$").result("a" * 60 + "b")


def test_a_long_answer_takes_linear_time():
    began = time.process_time()
    assert ExactMatch(pattern="#### (.*)").result("a" * 1_000_000 + "\n#### 6") == "6"
    assert time.process_time() - began < 5
