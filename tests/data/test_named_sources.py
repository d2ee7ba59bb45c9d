"""The named data sets: each option reads a small local file in exactly its set's layout, every turn in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.distributed import World
from tests.data.samples import write_lines
from tests.data.test_conf import built

Turns = list[tuple[str, str]]
SETS: dict[str, tuple[str, dict[str, Any], Turns]] = {
    "openorca": (
        "train",
        {"id": "niv.242684", "system_prompt": "Be exact.", "question": "2 + 2?", "response": "4"},
        [("system", "Be exact."), ("user", "2 + 2?"), ("assistant", "4")],
    ),
    "slimorca": (
        "train",
        {
            "conversations": [
                {"from": "system", "weight": None, "value": "Be exact."},
                {"from": "human", "weight": 0.0, "value": "2 + 2?"},
                {"from": "gpt", "weight": 1.0, "value": "4"},
            ]
        },
        [("system", "Be exact."), ("user", "2 + 2?"), ("assistant", "4")],
    ),
    "metamath": (
        "train",
        {
            "type": "MATH_AnsAug",
            "query": "2 + 2?",
            "original_question": "What is 2 + 2?",
            "response": "The answer is: 4",
        },
        [("user", "2 + 2?"), ("assistant", "The answer is: 4")],
    ),
    "magicoder": (
        "train",
        {
            "lang": "python",
            "raw_index": 1,
            "index": 2,
            "seed": "def f",
            "openai_fingerprint": "fp",
            "problem": "Write f.",
            "solution": "def f(): ...",
        },
        [("user", "Write f."), ("assistant", "def f(): ...")],
    ),
    "acemath": (
        "general_sft_stage2",
        {
            "messages": [
                {"role": "user", "content": "2 + 2?"},
                {"role": "assistant", "content": "4"},
                {"role": "user", "content": "And 3?"},
            ],
            "answer": "7",
        },
        [("user", "2 + 2?"), ("assistant", "4"), ("user", "And 3?"), ("assistant", "7")],
    ),
    "longalign": (
        "train",
        {
            "length": 9000,
            "messages": [{"content": "A long text. Why?", "role": "user"}, {"content": "So.", "role": "assistant"}],
        },
        [("user", "A long text. Why?"), ("assistant", "So.")],
    ),
    "longalpaca": (
        "train",
        {"input": "", "instruction": "A paper. Why?", "output": "So.", "file": "paper.txt"},
        [("user", "A paper. Why?"), ("assistant", "So.")],
    ),
    "lmsys_chat": (
        "train",
        {
            "conversation_id": "c",
            "model": "m",
            "conversation": [{"content": "Hi", "role": "user"}, {"content": "Hello", "role": "assistant"}],
            "turn": 1,
            "language": "English",
            "openai_moderation": [{"flagged": False}],
            "redacted": False,
        },
        [("user", "Hi"), ("assistant", "Hello")],
    ),
    "ultrachat": (
        "train_sft",
        {
            "prompt": "Hi",
            "prompt_id": "p",
            "messages": [{"content": "Hi", "role": "user"}, {"content": "Hello", "role": "assistant"}],
        },
        [("user", "Hi"), ("assistant", "Hello")],
    ),
}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", SETS)
def test_named_sets_read_their_layout(name: str, kind: str, tmp_path: Path, repository: Path, tokenizer: Any) -> None:
    split, row, turns = SETS[name]
    if kind == "jsonl":
        write_lines(tmp_path / f"{split}.jsonl", [row])
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{split}-00000-of-00001.parquet")
    data = built(repository, f"data={name}", f"data.sources.{name}.path={tmp_path}", "data.cache=off").data
    store = data.process("train", tokenizer, World())
    messages = [{"role": role, "content": text} for role, text in turns]
    assert tokenizer.decode(store.ids(0)) == tokenizer.apply_chat_template(messages, tokenize=False)
    answers = [text + "<|im_end|>" for role, text in turns if role == "assistant"]
    assert tokenizer.decode(store.ids(0)[store.mask(0).astype(bool)]) == "".join(answers)
    json.dumps(store.report)
