"""The named data sets: each option reads local files in the layout of its set on the hub, every turn in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arctic_hydra.distributed import World
from tests.data.samples import write_lines
from tests.data.test_conf import built

Turns = list[tuple[str, str]]
SETS: dict[str, tuple[list[str], dict[str, Any], Turns]] = {
    # The files on the hub, a row with all of its columns, and the conversation in it.
    "openorca": (
        ["1M-GPT4-Augmented.parquet", "3_5M-GPT3_5-Augmented.parquet"],
        {"id": "niv.242684", "system_prompt": "Be exact.", "question": "2 + 2?", "response": "4"},
        [("system", "Be exact."), ("user", "2 + 2?"), ("assistant", "4")],
    ),
    "slimorca": (
        ["oo-labeled_correct.gpt4.sharegpt.jsonl"],
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
        ["MetaMathQA-395K.json"],
        {
            "type": "MATH_AnsAug",
            "query": "2 + 2?",
            "original_question": "What is 2 + 2?",
            "response": "The answer is: 4",
        },
        [("user", "2 + 2?"), ("assistant", "The answer is: 4")],
    ),
    "magicoder": (
        ["data-oss_instruct-decontaminated.jsonl"],
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
        ["data/general_sft_stage2.parquet"],
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
        ["long.jsonl"],
        {
            "length": 9000,
            "messages": [{"content": "A long text. Why?", "role": "user"}, {"content": "So.", "role": "assistant"}],
        },
        [("user", "A long text. Why?"), ("assistant", "So.")],
    ),
    "longalpaca": (
        ["LongAlpaca-12k.json"],
        {"input": "", "instruction": "A paper. Why?", "output": "So.", "file": "paper.txt"},
        [("user", "A paper. Why?"), ("assistant", "So.")],
    ),
    "lmsys_chat": (
        ["data/train-00000-of-00006-4feeb3f83346a0e9.parquet", "data/train-00001-of-00006-4030672591c2f478.parquet"],
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
        ["data/train_sft-00000-of-00003-a3ecf92756993583.parquet"],
        {
            "prompt": "Hi",
            "prompt_id": "p",
            "messages": [{"content": "Hi", "role": "user"}, {"content": "Hello", "role": "assistant"}],
        },
        [("user", "Hi"), ("assistant", "Hello")],
    ),
}

OTHER_SPLITS = {
    "ultrachat": ["data/test_sft-00000-of-00001-f7dfac4afe5b93f4.parquet"],
    "acemath": ["data/general_sft_stage1.parquet", "data/math_sft.parquet"],
}
"""Files of other splits."""


def write_set(folder: Path, name: str) -> None:
    """Write a data set as its repository on the hub is laid out, with one row per file."""
    files, row, _ = SETS[name]
    for file in [*files, *OTHER_SPLITS.get(name, [])]:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        content = row if file in files else {"no": "row of this split"}
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist([content]), path)
        elif path.suffix == ".json":
            path.write_text(json.dumps([content], indent=1))
        else:
            write_lines(path, [content])
    for name in ("README.md", "LICENSE", ".gitattributes"):
        (folder / name).write_text("not data")
    (folder / "dataset_infos.json").write_text("{}")
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "train.json").write_text("{}")


@pytest.mark.parametrize("name", SETS)
def test_named_sets_read_their_layout(name: str, tmp_path: Path, repository: Path, tokenizer: Any) -> None:
    write_set(tmp_path, name)
    files, _, turns = SETS[name]
    data = built(repository, f"data={name}", f"data.sources.{name}.path={tmp_path}", "data.cache=off").data
    store = data.process("train", tokenizer, World())
    assert len(store) == len(files)
    messages = [{"role": role, "content": text} for role, text in turns]
    answers = [text + "<|im_end|>" for role, text in turns if role == "assistant"]
    for index in range(len(store)):
        assert tokenizer.decode(store.ids(index)) == tokenizer.apply_chat_template(messages, tokenize=False)
        assert tokenizer.decode(store.ids(index)[store.mask(index).astype(bool)]) == "".join(answers)
    json.dumps(store.report)


def test_a_set_is_divided_for_training_and_evaluation(tmp_path: Path, repository: Path, tokenizer: Any) -> None:
    """MetaMathQA has a single split: training and evaluation read disjoint parts of the same file."""
    rows = [{"query": f"{number} + 1?", "response": str(number + 1)} for number in range(20)]
    (tmp_path / "MetaMathQA-395K.json").write_text(json.dumps(rows))
    data = built(
        repository, "data=metamath", "data/eval_sources=[metamath]", f"data.sources.metamath.path={tmp_path}", "data.cache=off",
        "data.sources.metamath.split='train[10%:]'", "data.eval_sources.metamath.split='train[:10%]'",
    ).data  # fmt: skip
    train, evaluation = (data.process(split, tokenizer, World()) for split in ("train", "eval"))
    assert (len(train), len(evaluation)) == (18, 2)
    assert "0 + 1?" in tokenizer.decode(evaluation.ids(0)) and "2 + 1?" in tokenizer.decode(train.ids(0))
