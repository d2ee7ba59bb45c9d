"""What the key of stored scores follows."""

from __future__ import annotations

from types import MappingProxyType, SimpleNamespace

import torch

from arctic_hydra.converter.freeze import FreezeConverter
from arctic_hydra.converter.peft.lora import LoraFactory
from arctic_hydra.converter.tiled_mlp import TiledMLP
from arctic_hydra.trainer.scoring.score_identity import scores_depend_on
from arctic_hydra.trainer.scoring.score_store import entry_key
from tests.trainer.loop import tiny_factory


def key(
    checksum="w", converters=(), device="cpu", adapter_off=False, in_chunks=True, engine=MappingProxyType({}), **values
):
    factory = tiny_factory(**values)
    tools = SimpleNamespace(
        model_factory=factory,
        converters=list(converters),
        device=torch.device(device),
        engine_config={"zero_optimization": {"stage": 0}, **engine},
    )
    ways = {"in_chunks": in_chunks, "adapter_off": adapter_off}
    return entry_key(scores_depend_on(tools, factory.create_config(), checksum, **ways))


def test_it_follows_weights_precision_config_kernels_and_converters():
    changed = [
        key(),
        key("other"),
        key(dtype="bf16"),
        key(hf_config_kwargs={"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}),
        key(attn_implementation="sdpa"),
        key(device="cuda"),
        key(in_chunks=False),
        key(engine={"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}),
        key(engine={"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}),
        key(converters=[TiledMLP()]),
        key(converters=[LoraFactory(r=4)]),
        key(converters=[LoraFactory(r=4, lora_alpha=3)]),
    ]
    assert len(set(changed)) == len(changed)


def test_what_does_not_change_the_numbers_keeps_it():
    assert key() == key(engine={"zero_optimization": {"stage": 3}})
    assert key() == key(converters=[FreezeConverter(patterns=["embed"])])
    assert key(adapter_off=True) == key(converters=[LoraFactory(r=4)], adapter_off=True)
