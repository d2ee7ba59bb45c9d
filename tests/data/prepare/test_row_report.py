"""Reports of a source's rows: warnings, and the error when no example is left."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.formats.messages import has_only_blank_answers
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError
from tests.data.encode.samples import ask, say
from tests.data.samples import (
    CHATML_UNTAGGED,
    LLAMA_3,
    QWEN_TOOLS,
    chat,
    factory,
    geometry,
    make_tokenizer,
    write_lines,
)


def test_nothing_left_is_an_error_with_a_table(tmp_path: Path, tokenizer: Any) -> None:
    rows = [chat("q", "word " * 100), chat("word " * 100, "a")]
    path = write_lines(tmp_path / "long.jsonl", rows)
    table = r"source \| rows \| kept \| overlong\n  data\.sources\.mine \| 2 \| 0 \| 2\n"
    with pytest.raises(DataError, match=rf"(?s)no examples left after filtering.*{table}.*raise data\.max_length"):
        factory(path, max_length=20).build(tokenizer, geometry())


@pytest.mark.parametrize(("empty", "warned"), [(2, True), (1, False)])
def test_many_rows_without_supervised_tokens_are_a_warning_from_the_cache_too(
    empty: int, warned: bool, tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    untrained = chat("q", "a")
    untrained["messages"][1]["weight"] = 0
    path = write_lines(tmp_path / "rows.jsonl", [chat("q", "a")] * (20 - empty) + [untrained] * empty)
    for _ in range(2):
        caplog.clear()
        factory(path).process("train", tokenizer, World())
        said = f"data.sources.mine: {empty} of 20 rows (10%) were dropped because they have no supervised token; check that"
        assert (said in caplog.text) is warned


@pytest.mark.parametrize(
    ("overlong", "said"),
    [
        (
            "drop",
            r"2 of 30 rows \(7%, \d\d% of its tokens\) were dropped because they are longer than data.max_length; raise",
        ),
        (
            "keep_start",
            r"\d\d% of its tokens were cut off, from 2 of 30 rows, because rows are longer than data.max_length; raise",
        ),
    ],
)
def test_tokens_lost_to_the_length_are_a_warning(
    overlong: str, said: str, tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [chat("q", "a")] * 28 + [chat("q", "word " * 200)] * 2)
    factory(path, max_length=40, overlong=overlong).process("train", tokenizer, World())
    assert re.search(rf"data\.sources\.mine: {said} data\.max_length", caplog.text)


def test_reasoning_dropped_by_the_template_is_counted_and_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Llama 3's template ignores reasoning: the rows are trained on without it, and one warning counts them."""
    rows = [{"messages": [ask("q"), say("a", reasoning_content=f"hm {index}")]} for index in range(3)]
    path = write_lines(tmp_path / "thoughts.jsonl", [*rows, chat("q", "a")])
    for template, eos, count in ((LLAMA_3, "<|eot_id|>", 3), (QWEN_TOOLS, "<|im_end|>", 0)):
        for _ in ("built", "from the cache"):
            caplog.clear()
            store = factory(path).process("train", make_tokenizer(template, eos_token=eos), World())
            warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
            assert store.report["mine"]["thoughts_left_out"] == count
            expected = (
                f"data.sources.mine: the reasoning (reasoning_content, reasoning or thinking) of {count} supervised "
                f"turns is dropped by the chat template"
            )
            assert [expected in text for text in warnings] == [True] * bool(count)


def test_blank_answers_are_kept_counted_and_warned_about(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Empty ones and whitespace; a tool call or reasoning is an answer, and so is a later turn with a text."""
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    rows = [
        chat("q", ""), chat("q", " \n"), chat("q", "a"),
        {"messages": [ask("q"), say("", tool_calls=[call])]},
        {"messages": [ask("q"), say("", reasoning_content="hm")]},
        {"messages": [ask("q"), say(""), ask("q"), say("a")]},
    ]  # fmt: skip
    assert [has_only_blank_answers(row["messages"]) for row in rows] == [True, True, False, False, False, False]
    path = write_lines(tmp_path / "rows.jsonl", rows[:3])
    for _ in ("built", "from the cache"):
        caplog.clear()
        store = factory(path).process("train", tokenizer, World())
        assert (store.report["mine"]["kept"], store.report["mine"]["blank_answers"]) == (3, 2)
        assert "data.sources.mine: 2 rows have only blank answers (empty or whitespace)" in caplog.text
    report = factory(path, train_on_eot=False).process("train", tokenizer, World()).report["mine"]
    assert (report["kept"], report["blank_answers"]) == (2, 1), "the empty one has nothing to train on and is dropped"
    assert report["without_template"] == 0
    path = write_lines(tmp_path / "rows.jsonl", [{"prompt": "Two: ", "completion": "2"}] * 2)
    assert factory(path).process("train", tokenizer, World()).report["mine"]["without_template"] == 2


@pytest.mark.parametrize(("eos", "warned"), [("<|im_end|>", False), ("</s>", True)])
def test_a_stop_token_other_than_eos_is_a_warning(
    eos: str, warned: bool, small_chats: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = make_tokenizer(CHATML_UNTAGGED, eos_token=eos)
    for _ in ("built", "from the cache"):
        caplog.clear()
        factory(small_chats).process("train", tokenizer, World())
        said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert [
            ("answers are trained to end in '<|im_end|>', but tokenizer.eos_token is '</s>'" in text) for text in said
        ] == [True] * warned


def test_a_stop_token_outside_the_loss_is_not_a_warning(small_chats: Path, caplog: pytest.LogCaptureFixture) -> None:
    factory(small_chats, train_on_eot=False).process(
        "train", make_tokenizer(CHATML_UNTAGGED, eos_token="</s>"), World()
    )
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
