"""The tokens that the trained turns end in: where generation with the trained model has to stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from arctic_hydra.data.base import Example, Loader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLED_EXAMPLES = 200
"""Examples of each source that are searched for stop tokens within turns, where there are several stop tokens."""
SEPARATOR_SHARE = 0.1
"""Share of them from which on a token within turns separates their parts, rather than being part of some text."""


def stop_tokens(loader: Loader, tokenizer: PreTrainedTokenizerBase, ends: Sequence[str] = ()) -> list[int]:
    """Return the ids of the tokens that turns are trained to end in, the most frequent first; of a stream, so far.

    Empty where no end of turn is trained: for texts, which end in the tokenizer's eos token, and beside
    `train_on_eot=false`. `ends` are the run's `data.eot_tokens`. Left out is a token that separates the parts of longer
    turns as well, if another one ends them: stopping at it would cut them, such as gpt-oss's answers after their thoughts.
    """
    found = counted_stops(loader.summary(), tokenizer, ends)
    if len(found) < 2:
        return found
    examples = [
        example
        for example in loader.preview(SAMPLED_EXAMPLES)
        if sum(example.mask)
        < len(example.mask) - 1  # else every token is trained on, and no mask tells the turns apart
    ]
    within = Counter(token for example in examples for token in _within_turns(example, set(found), tokenizer))
    return [token for token in found if within[token] <= SEPARATOR_SHARE * len(examples)] or found


def counted_stops(figures: dict[str, Any], tokenizer: PreTrainedTokenizerBase, ends: Sequence[str] = ()) -> list[int]:
    """Return the last tokens of trained turns, the most frequent first, by the figures that a loader's `summary` gives.

    Ordinary text that a template ends turns with is left out: its last token also occurs within answers.
    """
    counts: Counter[int] = Counter()
    for source in figures.get("sources", {}).values():
        stops = source.get("prepared", {}).get("stops", {})  # a loader of an extension package may not count them
        counts.update({int(token): count for token, count in stops.items()})
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    known = special.union(tokenizer.all_special_ids, tokenizer.convert_tokens_to_ids(list(ends)))
    return sorted(known.intersection(counts), key=lambda token: (-counts[token], token))


def _within_turns(example: Example, stops: set[int], tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the stop tokens that more text of the same turn follows."""
    found: set[int] = set()
    for trained, run in groupby(zip(example.ids, example.mask, strict=True), key=lambda pair: pair[1]):
        ids = [token for token, _ in run] if trained else []
        while ids and (ids[-1] in stops or not str(tokenizer.decode(ids[-1:])).strip()):
            ids.pop()
        found |= stops.intersection(ids)
    return found
