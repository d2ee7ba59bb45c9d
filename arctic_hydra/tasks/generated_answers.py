"""Scores generated answers to the held-out questions of `task=evaluate` by exact match; all ranks share the questions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arctic_hydra import display, distributed
from arctic_hydra.config import Run
from arctic_hydra.data.base import Loader
from arctic_hydra.data.formats.messages import Chat, PlainText
from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.errors import DataError
from arctic_hydra.files.state_file import replace_text
from arctic_hydra.generation.answers import Answer, Decoding, Generator, generating
from arctic_hydra.generation.exact_match import OPEN_REASONING
from arctic_hydra.generation.prompts import PromptEncoder
from arctic_hydra.redaction import mask

FILE = "answers.jsonl"
"""File in the folder of the task: a `ScoredAnswer` as JSON per question."""


@dataclass(frozen=True)
class HeldOutQuestion:
    """A question from the evaluation data, with its reference answer."""

    source: str
    row: int
    """Row number within the source."""
    prompt: list[int]
    """Tokens up to the answer."""
    question: str
    reference: str
    expected: str
    """The result in the reference answer."""
    where: str
    """Source and row, or file and line, for messages."""
    in_reasoning: bool
    """Whether the prompt opens the reasoning of the answer."""


@dataclass(frozen=True)
class ScoredAnswer:
    """A question with its generated answer."""

    source: str
    row: int
    question: str
    reference: str
    answer: str
    finish_reason: str
    expected: str
    found: str | None
    """The result in the generated answer; None if the pattern finds none."""
    correct: bool


def read_questions(run: Run, tokenizer: Any, loader: Loader) -> list[HeldOutQuestion]:
    """Return the questions: the conversation before the last answer, of up to `exact_match.rows` rows of each held-out source.

    These are rows that the loss is evaluated on. Raises DataError for rows without a question or a result.
    """
    assert isinstance(run.data, SFTDataFactory), "checked for every config"
    split = "eval" if run.data.eval_sources else "train"
    chosen = dict.fromkeys((example.source, example.row) for example in loader.preview(run.exact_match.rows))
    prompts, found = PromptEncoder(tokenizer), list[HeldOutQuestion]()
    for name in dict.fromkeys(source for source, _ in chosen):
        loaded = run.data.load_replaced(split, name)
        if not loaded.process:
            raise DataError(
                f"{loaded.key}: its rows hold tokens, but exact_match.pattern needs conversations; remove it"
            )
        rows = [row for source, row in chosen if source == name]
        for row, content in zip(rows, loaded.rows.take(rows), strict=True):
            where = f"{loaded.key}: {loaded.rows.where(row)}"
            prompt, question, reference = _split(loaded.reading.read(content), prompts, where)
            expected = run.exact_match.result(reference)
            if expected is None:
                raise DataError(
                    f"{where}: exact_match.pattern={run.exact_match.pattern!r} finds nothing in the answer {reference[-60:]!r}; "
                    "correct the pattern, or leave such rows out"
                )
            in_reasoning = str(tokenizer.decode(prompt)).rstrip().endswith(OPEN_REASONING)
            found.append(HeldOutQuestion(name, row, prompt, question, reference, expected, where, in_reasoning))
    return found


def _split(example: Chat | PlainText, prompts: PromptEncoder, where: str) -> tuple[list[int], str, str]:
    """Return the tokens before the last answer, the text of the question, and the answer."""
    if isinstance(example, PlainText):
        question, reference = example.text[: example.start], example.text[example.start :]
        if not question.strip():
            raise DataError(f"{where}: is a text without a question, but exact_match.pattern needs one; remove it")
        return prompts.text(question), question, reference
    last = max(index for index, message in enumerate(example.messages) if message["role"] == "assistant")
    before = example.messages[:last]
    if not before:
        raise DataError(f"{where}: begins with the answer, but exact_match.pattern needs a question; remove it")
    return prompts.chat(before, example.tools), str(before[-1]["content"]), str(example.messages[last]["content"])


def score(run: Run, run_dir: Path, questions: Sequence[HeldOutQuestion]) -> dict[str, Any]:
    """Answer the questions, write a table to `answers.jsonl`, and return the number of correct ones. Collective."""
    trainer, world = run.trainer, run.trainer.world
    engine = trainer.tools.engine
    stops = distributed.broadcast_object(trainer.tools.stop_tokens())  # each rank has seen other rows of a stream
    generator = Generator(
        engine.module,
        trainer.tools.state.tokenizer,
        stops,
        Decoding(max_new_tokens=run.max_new_tokens),
        device=trainer.device,
        synchronized=trainer.zero_stage == 3 and world.size > 1,
    )
    _check_lengths(generator, questions)
    with generating(engine.module), trainer.trial():
        answers = _answer(generator, questions, run.generation_batch_size, world)
    engine.empty_partition_cache()
    everything = {index: answer for part in distributed.gather_objects(answers) for index, answer in part.items()}
    whole = [_scored(run, question, everything[index]) for index, question in enumerate(questions)]
    path = run_dir / FILE
    if world.is_main:
        rows = [
            {key: mask(held) if isinstance(held, str) else held for key, held in asdict(item).items()} for item in whole
        ]
        replace_text(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    correct, cut = sum(item.correct for item in whole), sum(item.finish_reason == "length" for item in whole)
    return {
        "eval/exact_match": correct / len(whole),
        "exact_match": {"correct": correct, "questions": len(whole), "cut": cut, "answers": str(path)},
    }


def _check_lengths(generator: Generator, questions: Sequence[HeldOutQuestion]) -> None:
    """Raise DataError for a question that leaves no room for an answer."""
    for question in questions:
        try:
            generator.check_length(question.prompt)
        except DataError as error:
            raise DataError(f"{question.where}: {error}; leave such rows out") from error


def _answer(
    generator: Generator, questions: Sequence[HeldOutQuestion], size: int, world: distributed.World
) -> dict[int, Answer]:
    """Return this rank's share of the answers by the index of the question; every rank makes equally many calls to the model.

    A question whose answer is limited by the positions of the model is answered alone, so that it limits no other one; if
    calls are collective, by every rank, so that they make equally many tokens.
    """
    limited = [index for index, question in enumerate(questions) if generator.is_limited(question.prompt)]
    others = sorted(set(range(len(questions))) - set(limited))
    mine, most, found = others[world.rank :: world.size], -(-len(others) // world.size), dict[int, Answer]()
    alone = limited if generator.synchronized else limited[world.rank :: world.size]
    about = "" if world.size == 1 else f"on rank {world.rank}"
    with display.phase("generate", about, unit="answers", total=len(mine) + len(alone)) as current:
        for start in range(0, most, size):
            own = mine[start : start + size]
            filled = own + others[:1] * (min(size, most - start) - len(own))
            answers = generator.answer([questions[index].prompt for index in filled])
            found.update(zip(own, answers, strict=False))
            current.advance(len(own))
        for index in alone:
            [found[index]] = generator.answer([questions[index].prompt])
            current.advance()
    return found


def _scored(run: Run, question: HeldOutQuestion, answer: Answer) -> ScoredAnswer:
    found = run.exact_match.result(answer.text, question.in_reasoning)
    return ScoredAnswer(
        question.source,
        question.row,
        question.question,
        question.reference,
        answer.text,
        answer.finish_reason,
        question.expected,
        found,
        found == question.expected,
    )
