"""The configs of an export: stop, padding and bos tokens, the KV cache, and no secrets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra.redaction import redact
from arctic_hydra.redaction.masking import mask_certain

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SpecialTokens = dict[str, int | list[int] | None]


@contextmanager
def generation_configs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, trained: Sequence[int]
) -> Iterator[SpecialTokens]:
    """Within this context, give the model configs for generation; the training configs are restored afterwards.

    The configs have the `special_tokens`, which are yielded, and the `use_cache` setting that training had disabled.
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
    """Return the ids of the stop, padding and bos tokens by transformers' names: an int for one, a list for several.

    Generation stops at the stop tokens that were `trained`, at the tokenizer's eos token, and at the stop tokens in the
    model's configs if they are special tokens of this tokenizer other than bos and unk.
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


def token_list(tokens: int | list[int] | None) -> list[int]:
    """Return the ids in a value of `SpecialTokens`, or in the entry of a generation config."""
    return tokens if isinstance(tokens, list) else [] if tokens is None else [tokens]


def mask_configs(folder: Path) -> None:
    """Mask secrets in the configs of an export, which may hold values of `model.hf_config_kwargs`; exports are published.

    Numbers stay: libraries need them, whatever the name, such as `projection_prng_key` of VeRA. Tokenizers are data, like
    the weights: their vocabularies contain words such as `password`.
    """
    for name in ("config.json", "generation_config.json", "adapter_config.json"):
        path = folder / name
        held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        clean = redact(held, numbers=False)
        if "label2id" in held:
            clean["label2id"] = held["label2id"]  # the labels of a classifier may be called `secret`
        if clean != held:
            path.write_text(json.dumps(clean, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    template = folder / "chat_template.jinja"
    if template.exists() and (text := mask_certain(whole := template.read_text(encoding="utf-8"))) != whole:
        template.write_text(text, encoding="utf-8")


def _configured_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> list[int]:
    """Return the ids set explicitly in the model's configs that are special tokens of this tokenizer.

    Defaults of a config class, such as Llama's 2, are skipped: they may be any token of another tokenizer.
    """
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    config = model.config.get_text_config()
    found: list[Any] = []
    for source in (getattr(model, "generation_config", None), model.config, config):
        value = getattr(source, name, None)
        if value != getattr(type(config), name, None):
            found += token_list(value)
    return [token for token in found if token in special]


def _set_if_accepted(config: PretrainedConfig, name: str, value: int | list[int] | None) -> None:
    """Set a value of a config; if its class rejects a list, set the first element, or nothing if it rejects that too."""
    from huggingface_hub.errors import StrictDataclassError

    for accepted in (value, *value[:1]) if isinstance(value, list) else (value,):
        try:
            setattr(config, name, accepted)
        except StrictDataclassError:  # some accept a single stop token only, some require a bos token
            continue
        return
