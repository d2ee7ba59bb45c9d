"""Questions of a held-out set: from the rows that the loss is evaluated on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arctic_hydra.assembly import run_data
from arctic_hydra.data.formats.messages import PlainText
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError
from arctic_hydra.generation.answers import Answer, Decoding, Generator
from arctic_hydra.generation.prompts import PromptEncoder
from arctic_hydra.tasks.generated_answers import HeldOutQuestion, _answer, _check_lengths, _split, read_questions
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
    _, loader = run.data.build(tokenizer, run_data.geometry(run, World()))
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


class _Counted(Generator):
    """Remembers how many prompts each call has, and waits for no other ranks."""

    def answer(self, prompts, streamer=None) -> list[Answer]:
        self.calls = [*getattr(self, "calls", []), len(prompts)]
        synchronized, self.synchronized = self.synchronized, False
        answers = super().answer(prompts, streamer)
        self.synchronized = synchronized
        return answers


def test_ranks_make_equal_calls_and_batches_change_no_answer():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=4096, max_position_embeddings=16, initializer_range=0.3, **sizes))
    tokenizer = built().tokenizer.create_tokenizer()
    lengths = [3, 5, 14, 2, 7, 13, 4, 1]  # those of 13 and 14 tokens leave room for fewer than 5
    questions = [
        HeldOutQuestion("a", row, [5 + row] * length, "", "", "", f"a.jsonl:{row + 1}", False)
        for row, length in enumerate(lengths)
    ]

    def generator(synchronized: bool = False) -> _Counted:
        found = _Counted(model.eval(), tokenizer, [], Decoding(max_new_tokens=5))
        found.synchronized = synchronized
        return found

    alone = {row: generator().answer([question.prompt])[0] for row, question in enumerate(questions)}
    for ranks, size in ((1, 3), (4, 2), (5, 1)):
        each = [generator() for _ in range(ranks)]
        found = [_answer(one, questions, size, World(rank=rank, size=ranks)) for rank, one in enumerate(each)]
        assert sorted(row for part in found for row in part) == list(alone), "each once"
        assert {row: answer for part in found for row, answer in part.items()} == alone
    together = [generator(synchronized=True) for _ in range(4)]
    for rank, one in enumerate(together):
        found = _answer(one, questions, 2, World(rank=rank, size=4))
        assert all(answer == alone[row] for row, answer in found.items())
    assert [one.calls for one in together] == [[2, 1, 1]] * 4
    with pytest.raises(DataError, match=r"^a.jsonl:2: the conversation has 16 tokens, .*; leave such rows out$"):
        _check_lengths(generator(), [questions[0], replace(questions[1], prompt=[5] * 16)])
