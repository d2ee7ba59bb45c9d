"""Settings of generated answers, on built runs."""

from __future__ import annotations

import pytest

from arctic_hydra.errors import ConfigError
from tests.composing import built


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ("prompt=a", "prompt: got 'a', but task=train ignores it; pass task=chat, or remove it"),
        ("task=export temperature=1", "temperature: got 1.0, but task=export ignores it"),
        (
            "max_new_tokens=9",
            "max_new_tokens: got 9, but task=train ignores it without exact_match.pattern; pass exact_match.pattern=..., or task=chat",
        ),
        ("task=evaluate generation_batch_size=2", "generation_batch_size: got 2, but task=evaluate ignores it"),
        ("exact_match.pattern=a max_new_tokens=9 generation_batch_size=2", ""),
        ("task=chat prompt=", "prompt: got an empty text, expected a prompt; leave it out to type prompts"),
        ("task=chat prompt=a prompts=b", "prompts: got 'b' together with prompt; expected one of them"),
        ("task=chat out=a", "out: got 'a', which has no effect without prompts=<file>"),
        ("task=chat top_p=0.5", "top_p: has no effect with temperature=0, which takes the most probable token"),
        ("task=chat temperature=-1", "temperature: got -1"),
        ("task=chat trainer=reward data.sources.preference.path=p prompt=a", ""),
        ("exact_match.pattern=(", "exact_match.pattern: got '(', not a valid regular expression"),
        ("exact_match.pattern=a", ""),
        (
            "task=evaluate exact_match.pattern=a trainer=reward data.sources.preference.path=p",
            "exact_match.pattern: needs generated answers, but trainer=reward",
        ),
        (
            "task=evaluate exact_match.pattern=a trainer=causal data=text data.train_eval_split=[0.5,0.5] data.sources.text.path=a",
            "exact_match.pattern: needs questions with answers, but data=causal has none; expected data of conversations",
        ),
    ],
)
def test_settings_of_generated_answers(overrides, problem):
    try:
        built(*overrides.split())
        found = ""
    except ConfigError as error:
        found = str(error)
    assert problem in found and bool(problem) == bool(found)
