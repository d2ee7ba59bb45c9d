"""The tokens that supervised turns end in, at which generation with the trained model has to stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from arctic_hydra.data.base import Example, Loader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLED_EXAMPLES = 200
"""Examples per source that are searched for stop tokens within turns, if there are several stop tokens."""
SEPARATOR_SHARE = 0.1
"""A token that occurs within the turns of more than this share of them separates parts of turns."""


def stop_tokens(loader: Loader, tokenizer: PreTrainedTokenizerBase, ends: Sequence[str] = ()) -> list[int]:
    """Return the ids of the tokens that turns are trained to end in, most frequent first; for a stream, those so far.

    Empty if no end of turn is trained: for texts, which end in the tokenizer's eos token, and with `train_on_eot=false`.
    `ends` are the run's `data.eot_tokens`. A token that also separates the parts of longer turns is omitted if another one
    ends them, because stopping at it would truncate them, such as gpt-oss's answers after their reasoning.
    """
    found = counted_stops(loader.summary(), tokenizer, ends)
    if len(found) < 2:
        return found
    # Where every token is supervised, the mask does not delimit turns.
    examples = [one for one in loader.preview(SAMPLED_EXAMPLES) if sum(one.mask) < len(one.mask) - 1]
    within = Counter(token for example in examples for token in _within_turns(example, set(found), tokenizer))
    return [token for token in found if within[token] <= SEPARATOR_SHARE * len(examples)] or found


def counted_stops(figures: dict[str, Any], tokenizer: PreTrainedTokenizerBase, ends: Sequence[str] = ()) -> list[int]:
    """Return the last tokens of supervised turns, most frequent first, from the statistics of a loader's `summary`.

    If a template ends turns with ordinary text, its last token is omitted: it also occurs within answers.
    """
    counts: Counter[int] = Counter()
    for source in figures.get("sources", {}).values():
        stops = source.get("prepared", {}).get("stops", {})  # the loader of an extension package may not count them
        counts.update({int(token): count for token, count in stops.items()})
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    known = special.union(tokenizer.all_special_ids, tokenizer.convert_tokens_to_ids(list(ends)))
    return sorted(known.intersection(counts), key=lambda token: (-counts[token], token))


def _within_turns(example: Example, stops: set[int], tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the stop tokens that are followed by more text of the same turn."""
    found: set[int] = set()
    for trained, run in groupby(zip(example.ids, example.mask, strict=True), key=lambda pair: pair[1]):
        ids = [token for token, _ in run] if trained else []
        while ids and (ids[-1] in stops or not str(tokenizer.decode(ids[-1:])).strip()):
            ids.pop()
        found |= stops.intersection(ids)
    return found
