"""A small built-in Llama with random weights."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Any

from arctic_hydra.component import choice, component
from arctic_hydra.errors import FieldError
from arctic_hydra.human_numbers import HumanInt, integer
from arctic_hydra.model.base import ModelFactory
from arctic_hydra.model.hf import check_config_values, explain_config_errors
from arctic_hydra.model.names import DTYPE_ALIASES

if TYPE_CHECKING:
    from transformers import LlamaConfig, PretrainedConfig, PreTrainedModel

_SHAPE = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "max_position_embeddings tie_word_embeddings"
).split()


@component(group="model", name="tiny")
class TinyModelFactory(ModelFactory):
    """A Llama of about 5 million parameters, initialized from the run's seed; trains on two CPU cores in minutes."""

    dtype: str = choice("fp32", tuple(DTYPE_ALIASES))
    """fp32 by default: fast on every CPU."""
    disable_activation_checkpoint: bool = True
    """True by default: the activations of such a small model are kept."""
    vocab_size: HumanInt = integer(4096, minimum=1, maximum=10**8)
    """Rows of the embedding; at least the tokenizer's length."""
    hidden_size: HumanInt = integer(256, minimum=1, maximum=1_000_000)
    """Width of the residual stream."""
    intermediate_size: HumanInt = integer(1024, minimum=1, maximum=10**7)
    """Width of the gated MLP."""
    num_hidden_layers: HumanInt = integer(4, minimum=1, maximum=100_000)
    """Transformer layers."""
    num_attention_heads: HumanInt = integer(4, minimum=1, maximum=100_000)
    """Query heads; divides hidden_size."""
    num_key_value_heads: HumanInt = integer(4, minimum=1, maximum=100_000)
    """Key and value heads; divides num_attention_heads."""
    max_position_embeddings: HumanInt = integer(4096, minimum=1, maximum=10**9)
    """Longest document, in tokens."""
    tie_word_embeddings: bool = True
    """Share the embedding with the head."""
    hf_config_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further values of LlamaConfig, such as {attention_dropout: 0.1}."""

    def validate(self) -> None:
        super().validate()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size: got {self.hidden_size}, expected a multiple of num_attention_heads={self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads: got {self.num_key_value_heads}, expected a divisor of num_attention_heads={self.num_attention_heads}"
            )

        if twice := [name for name in _SHAPE if name in self.hf_config_kwargs]:
            raise FieldError(
                [(f"hf_config_kwargs.{name}", f"is a field of this model; pass model.{name}=<value>") for name in twice]
            )

    def create_config(self) -> LlamaConfig:
        """Return the LlamaConfig of the fields above; raises ModelError for a value that it does not accept."""
        from transformers import LlamaConfig

        check_config_values(LlamaConfig(), self.hf_config_kwargs, "model.hf_config_kwargs", constructed=True)
        with explain_config_errors("model.hf_config_kwargs"):
            return LlamaConfig(**{name: getattr(self, name) for name in _SHAPE}, **self.hf_config_kwargs)

    def create_model(self, config: PretrainedConfig) -> PreTrainedModel:
        """Initialize in fp32 from torch's generator, so that ranks and ZeRO stages start equal, then cast."""
        self.check_dtype()
        self.register_attention()
        config._attn_implementation = self.attn_implementation
        with explain_config_errors("model"):
            model = self.auto_class._model_mapping[type(config)](config)
        for parameter in model.parameters():  # not .to(): RoPE's frequencies, a buffer, stay fp32
            parameter.data = parameter.data.to(self.torch_dtype)
        return self.finish(model)
