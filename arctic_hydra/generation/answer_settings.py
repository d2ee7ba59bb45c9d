"""Checks of the settings of generated answers, for `task=chat` and for the exact match of evaluations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from arctic_hydra.component import CAUSAL_LM, default_of
from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.human_numbers import shorten

if TYPE_CHECKING:
    from arctic_hydra.config import Run


def problems(run: Run) -> Iterator[str]:
    """Yield settings of generated answers that are wrong, or that this task ignores."""
    names = (*_OF_CHAT, *_OF_ANSWERS)
    given = {item.name for item in fields(run) if item.name in names and getattr(run, item.name) != default_of(item)}
    if run.task.name != "chat":
        for name in sorted(given.difference(_OF_ANSWERS if run.exact_match.pattern is not None else ())):
            less, more = (
                (" without exact_match.pattern", "exact_match.pattern=..., or ") if name in _OF_ANSWERS else ("", "")
            )
            got = f"got {shorten(getattr(run, name))}, but task={run.task.name} ignores it{less}"
            yield f"{name}: {got}; pass {more}task=chat, or remove it"
        yield from _exact_match_problems(run)
        return
    if run.prompt is not None and not run.prompt.strip():
        yield "prompt: got an empty text, expected a prompt; leave it out to type prompts"
    if run.prompt is not None and run.prompts is not None:
        yield f"prompts: got {shorten(run.prompts)} together with prompt; expected one of them; remove one"
    if run.out is not None and run.prompts is None:
        yield f"out: got {shorten(run.out)}, which has no effect without prompts=<file>; redirect standard output, or remove it"
    if run.temperature == 0 and (ignored := given & {"top_p", "sampling_seed"}):
        yield f"{min(ignored)}: has no effect with temperature=0, which takes the most probable token; pass a temperature, or remove it"


_OF_CHAT = ("prompt", "prompts", "out", "system", "temperature", "top_p", "sampling_seed")
"""Settings of task=chat only."""
_OF_ANSWERS = ("max_new_tokens", "generation_batch_size")
"""Settings of task=chat and of the exact match."""


def _exact_match_problems(run: Run) -> Iterator[str]:
    """Yield problems of the exact match, which an experiment may set for evaluations and other tasks leave alone."""
    key = "exact_match.pattern"
    yield from run.exact_match.problems()
    if run.exact_match.pattern is None or run.task.name not in ("evaluate", "check"):
        return
    if run.trainer.auto_class != CAUSAL_LM:
        name = run.trainer.option_name
        yield f"{key}: needs generated answers, but trainer={name} trains a model that gives scores instead of text; remove it"
    elif not isinstance(run.data, SFTDataFactory):
        name = run.data.option_name
        yield f"{key}: needs questions with answers, but data={name} has none; expected data of conversations, or remove it"
