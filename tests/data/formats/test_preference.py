# ruff: noqa: E501 (tables of rows and messages)
"""Preference rows in the layouts of real sets: no column that contains the prompt is lost, none contradicts another."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.formats.messages import RowProblem
from arctic_hydra.data.formats.preference import read_margin, read_preference
from arctic_hydra.data.preference import PreferenceDataFactory
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.distributed import World
from tests.data.samples import shared, write_lines

S, U, A, B = ({"role": role, "content": text} for role, text in (("system", "s"), ("user", "q"), ("assistant", "a"), ("assistant", "b")))  # fmt: skip


FIRST = [{"role": "assistant", "content": "let me look"}, {"role": "user", "content": "ok"}]


GPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


TEXTS = {"chosen": "a", "rejected": "b"}


WHOLE = {"chosen": [U, A], "rejected": [U, B]}


LAYOUTS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "orca_dpo_pairs": ({"system": "s", "question": "q", **TEXTS}, [S, U]),
    "contents in parts": (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": " q"}]}], "chosen": [U, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}], "rejected": [U, B]},
        [U],
    ),
    "question in messages": ({"messages": [U], "chosen": A, "rejected": B}, [U]),
    "alpaca": ({"instruction": "q", "input": "", **TEXTS}, [U]),
    "alpaca with input, history, system": (
        {"instruction": "i", "input": "x", "history": [["q", "a"]], "system": "s", **TEXTS},
        [S, U, A, {"role": "user", "content": "i\nx"}],
    ),
    "distilabel": ({"system": "s", "input": "q", "generations": ["a", "b"], **TEXTS}, [S, U]),
    "answers of several turns": ({"prompt": [U], "chosen": [*FIRST, A], "rejected": [*FIRST, B]}, [U, *FIRST]),
    "answers of several turns, a text before": ({"question": "q", "chosen": [*FIRST, A], "rejected": [*FIRST, B]}, [U, *FIRST]),
    "a greeting": ({"chosen": [*FIRST, A], "rejected": [*FIRST, B]}, FIRST),
    "prompt and system": ({"system": "s", "prompt": [U], **TEXTS}, [S, U]),
    "prompt with its own system": ({"system": "other", "prompt": [S, U], **TEXTS}, [S, U]),
    "system in the prompt alone": ({"prompt": [S, U], **WHOLE}, [S, U]),
    "system and whole conversations": ({"system": "s", **WHOLE}, [S, U]),
    "only a system prompt": ({"prompt": [S], **WHOLE}, [S, U]),
    "the prompt is repeated": ({"prompt": [S, U], "chosen": [S, U, A], "rejected": [S, U, B]}, [S, U]),
    "an earlier exchange": ({"prompt": FIRST[::-1], **WHOLE}, [*FIRST[::-1], U]),
    "ultrafeedback_binarized": ({"prompt": "q", "prompt_id": "1", "messages": [U, A], "score_chosen": 8.0, **WHOLE}, [U]),
    "capybara": ({"conversation": [{"input": "q", "output": "a"}], **WHOLE}, [U]),
    "the last of several questions": ({"prompt": "ok\n", "chosen": [U, *FIRST, A], "rejected": [U, *FIRST, B]}, [U, *FIRST]),
    "sharegpt": ({"conversations": GPT[:1], "system": "s", "chosen": GPT[1], "rejected": {**GPT[1], "value": "b"}}, [S, U]),
    "hh-rlhf": (
        {"chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman:  q \n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman:  q \n\nAssistant: b"},
        [U, A, U],
    ),
    "full-hh-rlhf": ({"prompt": "\n\nHuman: q\n\nAssistant:", "response": "a", **TEXTS}, [U]),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_prompt_of_each_layout_precedes_both_answers(name: str) -> None:
    row, prompt = LAYOUTS[name]
    chosen, rejected = read_preference(row)
    assert chosen.messages == [*prompt, A] and rejected.messages == [*prompt, B]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"id": 3, **TEXTS}, "no prompt for chosen and rejected; got the columns chosen, id, rejected; expected prompt, messages, conv"),
    ({"prompt": "", **TEXTS}, "no prompt for chosen and rejected"),
    ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "b"}, "no prompt for chosen and rejected"),
    ({"prompt": "other", **WHOLE}, "chosen neither repeats nor continues the prompt .*got the columns chosen, prompt, rej"),
    ({"prompt": "x", "question": "y", **TEXTS}, "columns prompt and question contain different prompts; expected one prompt; remove"),
    ({"messages": "q", **TEXTS}, "messages is a str, expected a list of messages: the prompt of the answers"),
    ({"chosen": [U, A, U], "rejected": [U, B, U]}, "chosen ends with a user turn, expected the assistant's answer"),
    ({"prompt": [U, A], "chosen": [B], "rejected": "c"}, "chosen neither repeats nor continues the prompt .*ends with 'assistant', and chosen begins with 'assistant'"),
    ({"prompt": "q", "chosen": "a\0", "rejected": "b"}, "chosen contains a NUL character at position 1"),
    ({"chosen": [U, A], "rejected": [{**U, "content": "other"}, B]}, "differ before their last answer"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "videos": ["x"]}, "column 'videos' contains 1 of them"),
    ({"prompt": "q", "chosen": 1, "rejected": "b"}, "chosen: expected a text, a message or a list"),
    ({"chosen": [U, A], "rejected": [{**U, "content": "other"}, A]}, "differ before their last answer"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_prompt_that_is_missing_or_contradicted_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowProblem, match=message) as caught:
        read_preference(row)
    assert caught.value.reason == "malformed"


def test_the_prompt_reaches_the_tokens(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "orca.jsonl", [LAYOUTS["orca_dpo_pairs"][0], LAYOUTS["hh-rlhf"][0]])
    factory = PreferenceDataFactory(sources={"mine": JsonSource(path=str(path))}, num_proc=1)
    store = factory.process("train", tokenizer, World())
    texts = [tokenizer.decode(store.flat.ids(document)) for document in range(4)]
    assert all("user\nq<|im_end|>" in text for text in texts) and "Human" not in "".join(texts)
    assert all(text.startswith("<|im_start|>system\ns<|im_end|>") for text in texts[:2])


def test_real_preferences_share_their_prompt() -> None:
    rows = json.loads(shared("dpo/dpo_en_demo.json").read_text())
    for row in rows:
        chosen, rejected = read_preference(row)
        assert chosen.messages[-1]["content"] == row["chosen"]["value"]
        assert rejected.messages[-1]["content"] == row["rejected"]["value"]
        assert chosen.messages[:-1] == rejected.messages[:-1] and len(chosen.messages) == len(row["conversations"]) + 1


@pytest.mark.parametrize(("margin", "expected"), [(None, math.nan), (2, 2.0), (-0.5, -0.5), (-3.4e38, -3.4e38)])
def test_the_margin_of_a_pair_is_a_number(margin: Any, expected: float) -> None:
    assert read_margin({"margin": margin}) == pytest.approx(expected, nan_ok=True)
    assert math.isnan(read_margin({}))


@pytest.mark.parametrize("margin", [True, "1", [1.0], math.inf, math.nan, 1e39, pytest.param(-(10**400), id="huge")])
def test_any_other_margin_is_refused(margin: Any) -> None:
    with pytest.raises(
        RowProblem,
        match=r"margin is .*, expected a finite number in the range of float32, by which the score of chosen",
    ):
        read_margin({"margin": margin})
