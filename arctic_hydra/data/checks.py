"""Checks of the fields of `TokenizedDataFactory`, as pairs of a field and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from arctic_hydra.human_numbers import parse_human_number

if TYPE_CHECKING:
    from arctic_hydra.data.tokenized import TokenizedDataFactory


def field_problems(data: TokenizedDataFactory) -> Iterator[tuple[str, str]]:
    """Yield the problems of a data factory's fields; reads nothing but the config."""
    if not data.sources:
        yield (
            "sources",
            "got none, expected at least one; choose datasets with data/sources=[<name>,...], or add your own with "
            "+source@data.sources.<name>=json",
        )
    yield from _split_problems(data)
    yield from _order_problems(data)
    yield from _pack_problems(data)
    yield from _padding_problems(data)
    if data.fail_on_missing_cache and (data.streaming or not data.cache):
        other = "data.streaming=true" if data.streaming else "data.cache=false"
        yield "fail_on_missing_cache", f"got true, but {other} uses no cache; remove one of them"
    if data.streaming:
        yield from _streaming_problems(data)


def _split_problems(data: TokenizedDataFactory) -> Iterator[tuple[str, str]]:
    got = data.train_eval_split
    try:
        shares = [float(parse_human_number(share)) for share in got]
    except ValueError as error:
        yield "train_eval_split", str(error)
        return
    if len(shares) != 2 or not all(0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        yield "train_eval_split", f"got {got}, expected two shares from 0 to 1 that sum to 1, such as [0.9, 0.1]"
    elif shares[0] == 0:
        yield "train_eval_split", f"got {got}, which leaves nothing to train on; expected a first share above 0"
    elif shares[1] > 0 and data.eval_sources:
        names = ", ".join(data.eval_sources)
        drop = " ".join(f"~data.eval_sources.{name}" for name in data.eval_sources)
        text = f"got {got} together with eval_sources ({names}); expected one of them; pass [1.0, 0.0], or {drop}"
        yield "train_eval_split", text


def _order_problems(data: TokenizedDataFactory) -> Iterator[tuple[str, str]]:
    if data.group_by_length and data.packing:
        yield "group_by_length", "has no effect together with packing=true, which adds no padding; pass packing=false"
    weights = {name: source.weight for name, source in data.sources.items()}
    without = [name for name, weight in weights.items() if weight is None]
    if 0 < len(without) < len(weights):
        text = "got none, but another source has one; expected a weight for each source or for none"
        yield from ((f"sources.{name}.weight", text) for name in without)
    if data.buffer_rows != type(data).buffer_rows and not data.streaming:
        yield "buffer_rows", "has no effect without data.streaming=true; remove it, or pass data.streaming=true"
    if data.mix_by is not type(data).mix_by and len(without) == len(weights):
        yield "mix_by", "has no effect without a weight on the sources; set data.sources.<name>.weight"
    for name, source in data.eval_sources.items():
        if source.weight is not None:
            yield f"eval_sources.{name}.weight", "has no effect: evaluation uses each example once; remove it"
        if not source.has_split("eval"):
            text = f"a part of its training split; pass train[:1%], and data.sources.{name}.split=train[1%:]"
            yield (
                f"eval_sources.{name}.split",
                f"got none, but this dataset has no evaluation split; expected {text}",
            )


PACK_FIELDS = ("always_max_length", "drop_last", "repeat_to_pack_max_length", "fuse_positions_prob")
"""Fields that determine how packs are filled."""


def _pack_problems(data: TokenizedDataFactory) -> Iterator[tuple[str, str]]:
    for key in PACK_FIELDS:
        if not getattr(data, key):
            continue
        if not data.packing:
            yield key, "has no effect with packing=false, which makes no packs; pass packing=true, or remove it"
        elif data.streaming:
            yield (
                key,
                "got a value together with data.streaming=true, which packs the data piecewise; remove one of them",
            )
    if data.repeat_to_pack_max_length and any(source.weight is not None for source in data.sources.values()):
        text = "got true together with weights of the sources, which repeat data by themselves; remove one of them"
        yield "repeat_to_pack_max_length", text


def _padding_problems(data: TokenizedDataFactory) -> Iterator[tuple[str, str]]:
    length, divisor = data.max_length, data.div_length
    if divisor is None:
        return
    if data.pad_to.name == "longest":
        yield "div_length", f"got {divisor}, which has no effect without padding to it; pass data.pad_to=div_length"
    elif data.pad_to.name == "max_length" and length % divisor:
        below = length // divisor * divisor
        near = f"{below} or {below + divisor}" if below else f"{divisor}"
        yield "div_length", f"got {divisor}, which does not divide max_length={length}; pass data.max_length={near}"


def _streaming_problems(data: TokenizedDataFactory) -> Iterator[tuple[str, str]]:
    for name, source in data.sources.items():
        for key, text in source.streaming_problems(mixed=len(data.sources) > 1):
            yield f"sources.{name}.{key}", text
    if data.train_eval_split != [1.0, 0.0]:
        text = "together with data.streaming=true, which cannot hold rows out; set data.eval_sources"
        yield "train_eval_split", f"got {data.train_eval_split} {text}"
