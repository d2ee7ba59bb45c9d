"""Scores generated answers to the held-out questions of `task=evaluate` by exact match; all ranks share the questions."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arctic_hydra import distributed
from arctic_hydra.config import Run
from arctic_hydra.data.base import Loader
from arctic_hydra.data.formats.messages import Chat, PlainText
from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.errors import DataError
from arctic_hydra.files.state_file import replace_text
from arctic_hydra.generation.answers import Answer, Decoding, Generator, generating
from arctic_hydra.generation.prompts import PromptEncoder
from arctic_hydra.redaction import mask

logger = logging.getLogger(__name__)

FILE = "answers.jsonl"
"""File in the folder of the task: a `Scored` as JSON per question."""


@dataclass(frozen=True)
class Question:
    """A held-out question."""

    source: str
    row: int
    """Row number within the source."""
    prompt: list[int]
    """Tokens up to the answer."""
    question: str
    reference: str
    expected: str
    """The result in the reference answer."""


@dataclass(frozen=True)
class Scored:
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


def read_questions(run: Run, tokenizer: Any, loader: Loader) -> list[Question]:
    """Return the questions: the conversation before the last answer, of up to `exact_match.rows` rows of each held-out source.

    These are rows that the loss is evaluated on. Raises DataError for rows without a question or a result.
    """
    assert isinstance(run.data, SFTDataFactory), "checked for every config"
    split = "eval" if run.data.eval_sources else "train"
    chosen = dict.fromkeys((example.source, example.row) for example in loader.preview(run.exact_match.rows))
    prompts, found = PromptEncoder(tokenizer), list[Question]()
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
            found.append(Question(name, row, prompt, question, reference, expected))
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


def score(run: Run, run_dir: Path, questions: Sequence[Question]) -> dict[str, Any]:
    """Answer the questions, write a table to `answers.jsonl`, and return the number of correct ones. Collective."""
    trainer, world = run.trainer, run.trainer.world
    engine = trainer.tools.engine
    if world.is_main:
        logger.info("generating answers to %d questions", len(questions))
    mine = questions[world.rank :: world.size]
    generator = Generator(
        engine.module,
        trainer.tools.state.tokenizer,
        trainer.tools.stop_tokens(),
        Decoding(max_new_tokens=run.max_new_tokens),
        device=trainer.device,
        synchronized=trainer.zero_stage == 3 and world.size > 1,
    )
    with generating(engine.module), trainer.trial():
        answers = list(_answer(generator, mine, questions, run.generation_batch_size, world.size))
    engine.empty_partition_cache()
    scored = [_scored(run, question, answer) for question, answer in zip(mine, answers, strict=True)]
    by_rank = distributed.gather_objects(scored)
    whole = [by_rank[index % world.size][index // world.size] for index in range(len(questions))]
    path = run_dir / FILE
    if world.is_main:
        rows = [
            {key: mask(held) if isinstance(held, str) else held for key, held in asdict(item).items()} for item in whole
        ]
        replace_text(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    correct = sum(item.correct for item in whole)
    return {
        "eval/exact_match": correct / len(whole),
        "exact_match": {"correct": correct, "questions": len(whole), "answers": str(path)},
    }


def _answer(
    generator: Generator, mine: Sequence[Question], everything: Sequence[Question], size: int, ranks: int
) -> Iterator[Answer]:
    """Yield the answers to a rank's questions; every rank generates as many batches as the one with the most questions."""
    most = -(-len(everything) // ranks)
    for start in range(0, most, size):
        batch = [question.prompt for question in mine[start : start + size]]
        answers = generator.answer(batch or [everything[0].prompt])
        yield from answers[: len(batch)]


def _scored(run: Run, question: Question, answer: Answer) -> Scored:
    found = run.exact_match.result(answer.text)
    return Scored(
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
