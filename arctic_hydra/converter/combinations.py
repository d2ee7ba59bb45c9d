"""Check that converters, adapters and the engine can be combined."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from arctic_hydra.converter.base import ModelConverter, Phase
from arctic_hydra.converter.peft.base import PeftFactory, PeftSlot, is_named, zero3_rows_problem
from arctic_hydra.converter.peft.qlora import QLoraFactory


def problems(
    chosen: dict[str, ModelConverter],
    peft: PeftSlot,
    *,
    stage: int,
    model_is_stored: bool,
    added_tokens: int,
    head_loss: str,
) -> Iterator[str]:
    """Yield each unsupported combination, with full config keys.

    `stage` is the ZeRO stage, `model_is_stored` whether the model's weights are read from files, `head_loss` the trainer's
    setting.
    """
    yield from _order(chosen, peft)
    if not isinstance(peft, PeftFactory):
        return
    if isinstance(peft, QLoraFactory) and not model_is_stored:
        yield "peft: got qlora, but this model has no stored weights to load quantized; pass model=hf"
    if isinstance(peft, QLoraFactory) and stage == 3:
        yield "peft: got qlora, but ZeRO-3 cannot shard quantized weights; pass deepspeed=zero2, or peft=lora"
    if added_tokens and stage == 3 and not peft.trains_in_full:
        yield zero3_rows_problem(added_tokens, ["embed_tokens", "lm_head"])
    targets = peft.values().get("target_modules")
    if head_loss in ("liger", "chunked") and targets not in (None, "all-linear") and is_named(targets, "lm_head"):
        yield (
            f"peft.target_modules: got lm_head, but trainer.head_loss={head_loss} reads the head's weight directly, bypassing its "
            "adapter; pass trainer.head_loss=full, or peft.modules_to_save=[lm_head]"
        )


def _order(chosen: dict[str, ModelConverter], peft: PeftSlot) -> Iterator[str]:
    for (first, before), (second, after) in pairwise(chosen.items()):
        if before.phase > after.phase:
            sorted_names = ",".join(sorted(chosen, key=lambda name: chosen[name].phase))
            yield (
                f"converter: got [{','.join(chosen)}], but {second} replaces modules, so it must run before {first}, which "
                f"selects parameters; pass converter=[{sorted_names}]"
            )
    for name, converter in chosen.items():
        if peft.adapts and converter.phase is Phase.trainable:
            yield (
                f"converter: got {name} with peft={peft.option_name}, which freezes the whole model anyway; "
                f"leave {name} out, and list modules to train in full in peft.modules_to_save"
            )
