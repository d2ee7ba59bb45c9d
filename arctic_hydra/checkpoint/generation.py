"""What the configs of an export say about generation: where it stops, the padding, and the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SpecialTokens = dict[str, int | list[int] | None]


@contextmanager
def generation_configs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, trained: Sequence[int]
) -> Iterator[SpecialTokens]:
    """Give the model, within this context, the configs that its users need; training goes on with its own.

    They hold the `special_tokens`, which are returned, and the cache setting from before training switched it off.
    """
    tokens = special_tokens(model, tokenizer, trained)
    kept, generation = model.config, getattr(model, "generation_config", None)
    model.config = deepcopy(kept)
    if hasattr(model, "exported_use_cache"):
        model.config.use_cache = model.exported_use_cache
    for name, value in tokens.items():
        _set_if_accepted(model.config.get_text_config(), name, value)
        if hasattr(model.config, name):
            _set_if_accepted(model.config, name, value)
    if generation is not None:
        model.generation_config = deepcopy(generation)
        model.generation_config.update(**tokens)
    try:
        yield tokens
    finally:
        model.config = kept
        if generation is not None:
            model.generation_config = generation


def special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, trained: Sequence[int]) -> SpecialTokens:
    """Return the ids of the stop, padding and bos tokens by the names of transformers: an int for one, a list for several.

    Generation stops at the tokens that answers are `trained` to end in, at the tokenizer's eos token, and at the model's
    own stop tokens as far as they are special tokens of this tokenizer, which do not begin a text.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    own = [
        token
        for token in _configured_tokens(model, tokenizer, "eos_token_id")
        if token not in (bos, tokenizer.unk_token_id)
    ]
    stops = list(dict.fromkeys([*trained, *([] if eos is None else [eos]), *own]))
    if bos is None:
        bos = next(iter(_configured_tokens(model, tokenizer, "bos_token_id")), None)
    return {
        "eos_token_id": stops if len(stops) > 1 else next(iter(stops), None),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": bos,
    }


def _configured_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> list[int]:
    """Return the ids in the model's configs that somebody chose and that mean a special token in this tokenizer.

    Nobody chose the default of a config's class, such as Llama's 2: it may mean any token of another tokenizer.
    """
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    config = model.config.get_text_config()
    found: list[Any] = []
    for source in (getattr(model, "generation_config", None), model.config, config):
        value = getattr(source, name, None)
        if value != getattr(type(config), name, None):
            found += value if isinstance(value, list) else [value]
    return [token for token in found if token in special]


def _set_if_accepted(config: PretrainedConfig, name: str, value: int | list[int] | None) -> None:
    """Set a value of a config; where its class refuses it, the first of several, or nothing."""
    from huggingface_hub.errors import StrictDataclassError

    for accepted in (value, *value[:1]) if isinstance(value, list) else (value,):
        try:
            setattr(config, name, accepted)
        except StrictDataclassError:  # some take one stop token only, some need a bos token
            continue
        return
