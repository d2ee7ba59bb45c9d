"""The stop tokens of a run: every token that turns are trained to end in, and none that also occurs within them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.load.stop_tokens import stop_tokens
from arctic_hydra.data.preference import PreferenceDataFactory
from arctic_hydra.data.source.json import JsonSource
from tests.data.samples import (
    CHATML_TAGS_WITHOUT_STOP,
    CHATML_UNTAGGED,
    COHERE_2_TAGS,
    GPT_OSS,
    LLAMA_3,
    PHI_TAGS,
    chat,
    factory,
    geometry,
    make_tokenizer,
    write_lines,
)
from tests.data.test_causal import causal

TEXT_STOP = CHATML_UNTAGGED.replace("<|im_end|>", "###")


TALKS = [chat("q", f"a {index}", "r", "b") for index in range(20)]


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rom"}}}


CALLS = [
    {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "sunny"},
            {"role": "assistant", "content": "Sunny."},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
    }
]


THOUGHTS = [
    {"messages": [*TALKS[0]["messages"][:3], {"role": "assistant", "content": "b", "thinking": f"hm {index}"}]}
    for index in range(20)
]


CASES = {
    # rows, template, fields of the data, stop tokens, the most frequent first
    "tags": (TALKS, None, {}, ["<|im_end|>"]),
    "tags without stop": (TALKS, CHATML_TAGS_WITHOUT_STOP, {}, ["<|im_end|>"]),
    "two in a row": (TALKS, COHERE_2_TAGS, {}, ["<|END_OF_TURN_TOKEN|>"]),
    "another after the last turn": (TALKS + TALKS[:1], PHI_TAGS, {}, ["</s>", "<|end|>"]),
    "another in the last turn": (TALKS, GPT_OSS, {}, ["<|end|>", "<|return|>"]),
    "only the last turn": (TALKS, GPT_OSS, {"train_on": "last"}, ["<|return|>"]),
    "every token": (TALKS, GPT_OSS, {"mask_inputs": False}, ["<|end|>", "<|return|>"]),
    "calls": (CALLS, GPT_OSS, {}, ["<|return|>", "<|call|>"]),
    "after thoughts": (THOUGHTS, GPT_OSS, {}, ["<|return|>"]),
    "said once": ([*TALKS, chat("q", "the mark <|end|> ends a turn")], PHI_TAGS, {}, ["</s>", "<|end|>"]),
    "ordinary text": (TALKS, TEXT_STOP, {}, []),
    "ordinary text that is named": (TALKS, TEXT_STOP, {"eot_tokens": ["#"]}, ["#"]),
    "not trained": (TALKS, LLAMA_3, {"train_on_eot": False}, []),
}


def stops(made: Any, tokenizer: Any) -> list[str]:
    loader, _ = made.build(tokenizer, geometry(steps=3))
    return tokenizer.convert_ids_to_tokens(stop_tokens(loader, tokenizer, getattr(made, "eot_tokens", ())))


@pytest.mark.parametrize(
    ("case", "streaming"), [*((case, False) for case in CASES), ("after thoughts", True), ("calls", True)]
)
def test_every_stop_token_that_is_trained_is_found(case: str, streaming: bool, tmp_path: Path, tokenizer: Any) -> None:
    rows, template, fields, expected = CASES[case]
    if template:
        tokenizer = make_tokenizer(template, eos_token="</s>")
    made = factory(write_lines(tmp_path / "rows.jsonl", rows), streaming=streaming, **fields)
    assert [stops(made, tokenizer) for _ in ("built", "from the cache")] == [expected] * 2


def test_texts_end_in_no_turn(tmp_path: Path, tokenizer: Any) -> None:
    assert stops(causal(write_lines(tmp_path / "texts.jsonl", [{"text": "one two"}])), tokenizer) == []


def test_the_answers_of_preferences_end_in_their_stop_token(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": f"a {index}", "rejected": "b"} for index in range(3)]
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    made = PreferenceDataFactory(sources={"mine": JsonSource(path=str(path))}, num_proc=1)
    assert stops(made, make_tokenizer(LLAMA_3, eos_token="</s>")) == ["<|eot_id|>"]
