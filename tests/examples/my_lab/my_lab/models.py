"""Models of one's own: their configs, and what `model=spec` makes of them."""

from __future__ import annotations

from dataclasses import dataclass

from arctic_hydra.model.registry import ModelSpec, register_model_spec


@dataclass
class DecoderConfig:
    """Sizes of a decoder."""

    vocab_size: int = 4096
    hidden_size: int = 64
    intermediate_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    tie: bool = True


@dataclass
class GRUConfig:
    """Sizes of a recurrent model."""

    vocab_size: int = 4096
    hidden_size: int = 64
    num_layers: int = 2


@register_model_spec(
    "decoder",
    flavors={"debug": DecoderConfig(), "base": DecoderConfig(hidden_size=512, num_hidden_layers=8, tie=False)},
)
def decoder() -> ModelSpec:
    from my_lab.decoder import Block, Decoder, LlamaLayout

    return ModelSpec(model=Decoder, layer_class=Block, state_dict_adapter=LlamaLayout)


@register_model_spec("gru", flavors={"debug": GRUConfig()})
def gru() -> ModelSpec:
    from my_lab.gru import GRULanguageModel

    return ModelSpec(model=GRULanguageModel)
