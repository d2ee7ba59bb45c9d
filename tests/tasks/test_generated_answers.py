"""Questions of a held-out set: from the rows that the loss is evaluated on."""

from __future__ import annotations

import pytest

from arctic_hydra import assemble
from arctic_hydra.data.formats.messages import PlainText
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError
from arctic_hydra.generation.prompts import PromptEncoder
from arctic_hydra.tasks.generated_answers import _split, read_questions
from tests.composing import built
from tests.data.samples import chat, write_lines


def _questions(path, *overrides):
    run = built(
        "task=evaluate",
        "data=json",
        f"data.sources.json.path={path}",
        "data.num_proc=1",
        "data.cache=off",
        "exact_match.pattern=#### (.*)",
        *overrides,
    )
    tokenizer = run.tokenizer.create_tokenizer()
    _, loader = run.data.build(tokenizer, assemble.geometry(run, World()))
    return read_questions(run, tokenizer, loader), tokenizer


def test_questions_are_conversations_up_to_the_last_answer_of_the_rows_held_out(tmp_path):
    rows = [chat(f"question {number}", f"#### {number}") for number in range(20)]
    rows[3] = {"messages": [*chat("first", "#### 1")["messages"], *chat("second", "#### 2")["messages"]]}
    write_lines(tmp_path / "a.jsonl", rows)
    path, held_out = tmp_path / "a.jsonl", "data.train_eval_split=[0.5,0.5]"
    found, tokenizer = _questions(path, "data/eval_sources=[json]", f"data.eval_sources.json.path={path}")
    assert [question.row for question in found] == list(range(20)) and found[7].expected == "7"
    assert tokenizer.decode(found[3].prompt).count("<|im_start|>assistant\n") == 2, "an answer before, and the prompt"
    assert (found[3].question, found[3].expected) == ("second", "2")
    split, _ = _questions(path, held_out)
    assert len(split) == 10 and all(question.question in (f"question {question.row}", "second") for question in split)
    assert [question.row for question in _questions(path, held_out, "exact_match.rows=2")[0]] == [
        split[0].row,
        split[-1].row,
    ]


def test_rows_without_a_question_or_a_result_are_errors(tmp_path):
    write_lines(tmp_path / "a.jsonl", [chat("q", "#### 1"), chat("q", "two")])
    evaluated = ("data/eval_sources=[json]", f"data.eval_sources.json.path={tmp_path / 'a.jsonl'}")
    with pytest.raises(
        DataError, match=r"a.jsonl:2: exact_match.pattern='#### \(\.\*\)' finds nothing in the answer 'two'"
    ):
        _questions(tmp_path / "a.jsonl", *evaluated)
    encoder = PromptEncoder(built().tokenizer.create_tokenizer())
    with pytest.raises(DataError, match="row 1: is a text without a question"):
        _split(PlainText("only text"), encoder, "row 1")
    assert _split(PlainText("2 + 2 = 4", 8), encoder, "")[1:] == ("2 + 2 = ", "4")
