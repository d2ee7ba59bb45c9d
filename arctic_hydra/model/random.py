"""Models of any shape with random weights, for benchmarks and for training from scratch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import field
from typing import TYPE_CHECKING, Any

from arctic_hydra.component import component
from arctic_hydra.distributed import World
from arctic_hydra.errors import ModelError, did_you_mean
from arctic_hydra.human_numbers import HumanInt, integer
from arctic_hydra.model.base import ModelFactory
from arctic_hydra.model.hf import check_config_values, check_model_directory, explain_config_errors, read_config
from arctic_hydra.model.layers import layer_configs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

_SIZES = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "max_position_embeddings"
).split()


@component(group="model", name="random")
class RandomModelFactory(ModelFactory):
    """A causal language model with random weights, initialized on the device, in the shape of a config or of the fields below."""

    name_or_path: str | None = None
    """Hub id or local directory of a config that defines the shape; no weights are read."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run model code that comes with the config; recorded in the run record."""
    architecture: str | None = None
    """Model type of transformers such as `qwen3`, instead of `name_or_path`, with the sizes below."""
    vocab_size: HumanInt | None = integer(None, minimum=1, maximum=10**8)
    """Rows of the embedding, at least the tokenizer's length. This and the sizes below default to the config's values."""
    hidden_size: HumanInt | None = integer(None, minimum=1, maximum=1_000_000)
    """Width of the residual stream."""
    intermediate_size: HumanInt | None = integer(None, minimum=1, maximum=10**7)
    """Width of the MLP."""
    num_hidden_layers: HumanInt | None = integer(None, minimum=1, maximum=100_000)
    """Transformer layers."""
    num_attention_heads: HumanInt | None = integer(None, minimum=1, maximum=100_000)
    """Query heads."""
    num_key_value_heads: HumanInt | None = integer(None, minimum=1, maximum=100_000)
    """Key and value heads."""
    head_dim: HumanInt | None = integer(None, minimum=1, maximum=100_000)
    """Width of a head."""
    max_position_embeddings: HumanInt | None = integer(None, minimum=1, maximum=10**9)
    """Longest document, in tokens."""
    hf_config_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further config values, such as {tie_word_embeddings: true}."""

    def validate(self) -> None:
        super().validate()
        if (self.name_or_path is None) == (self.architecture is None):
            got = "both" if self.architecture else "neither"
            raise ValueError(
                f"architecture: got {got} of name_or_path and architecture; pass model.name_or_path=<config to take the "
                f"shape from>, or model.architecture=<model type> with model.hidden_size and so on"
            )

    def check_files(self) -> Iterator[str]:
        """Yield a problem if a local model directory is missing or contains no config."""
        if self.name_or_path is not None:
            yield from check_model_directory(self.name_or_path)

    def create_config(self) -> PretrainedConfig:
        """Return the named config, or the architecture's default, with the given values; raises ModelError."""
        sizes = {name: getattr(self, name) for name in _SIZES if getattr(self, name) is not None}
        if self.name_or_path is None:
            from transformers import AutoConfig

            config = _config_of(str(self.architecture))
            check_config_values(config, sizes, "model", constructed=True)
            check_config_values(config, self.hf_config_kwargs, "model.hf_config_kwargs", constructed=True)
            with explain_config_errors("model"):
                return _checked(AutoConfig.for_model(self.architecture, **{**sizes, **self.hf_config_kwargs}))
        config = read_config(self.name_or_path, self.revision, self.trust_remote_code)
        check_config_values(config, sizes, "model", constructed=True)
        check_config_values(config, self.hf_config_kwargs, "model.hf_config_kwargs", constructed=True)
        with explain_config_errors("model"):
            return _checked(_resized(config, {**sizes, **self.hf_config_kwargs}))

    def create_model(self, config: PretrainedConfig) -> PreTrainedModel:
        """Initialize the weights, with a seed per module: the same at every ZeRO stage and on every rank.

        Under ZeRO-3, one module at a time is gathered, on rank 0. Raises ModelError for a config without a causal model.
        """
        import torch
        from transformers.initialization import no_init_weights

        self.check_dtype()
        self.register_attention()
        device = torch.device(World.from_env().device)
        with explain_config_errors("model"), self.explain_attention_errors(config), device, no_init_weights():
            model = self.auto_class.from_config(
                config,
                dtype=self.torch_dtype,
                attn_implementation=self.attn_implementation,
                trust_remote_code=self.trust_remote_code,
            )
        model.tie_weights()
        _initialize_weights(model, torch.initial_seed())
        return self.finish(model)


def _config_of(architecture: str) -> PretrainedConfig:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        hint = did_you_mean(architecture, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise ModelError(
            f"model.architecture: got {architecture!r}, expected a model type that transformers has a causal model for, such as "
            f"llama, qwen3 or gemma2{hint}"
        )
    return AutoConfig.for_model(architecture)


def _checked(config: PretrainedConfig) -> PretrainedConfig:
    """Return the config; raises ModelError for sizes that contradict each other."""
    for layer in layer_configs(config):
        heads, shared = (getattr(layer, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
        if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
            raise ModelError(
                f"model.num_key_value_heads: got {shared}, expected a divisor of the {heads} attention heads; pass "
                f"model.num_key_value_heads={heads}, or a smaller divisor"
            )
    text = config.get_text_config()
    rows, padding = getattr(text, "vocab_size", None), getattr(text, "pad_token_id", None)
    if isinstance(rows, int) and isinstance(padding, int) and padding >= rows:
        raise ModelError(
            f"model.vocab_size: got {rows}, but the config's pad_token_id={padding} is not below it; pass "
            "model.hf_config_kwargs={pad_token_id: null} (padding follows the tokenizer), or a larger vocabulary"
        )
    return config


def _resized(config: PretrainedConfig, values: dict[str, Any]) -> PretrainedConfig:
    """Return the config rebuilt with `values`; what was derived from replaced values is derived again."""
    old, text = config.to_dict(), config.get_text_config()
    derived = set(values)
    if "num_hidden_layers" in values:  # lists with an entry per layer
        derived |= {
            name for name, value in old.items() if isinstance(value, list) and len(value) == text.num_hidden_layers
        }
    heads = getattr(layer_configs(config)[0], "num_attention_heads", None)
    default_head = heads and old.get("head_dim") == text.hidden_size // heads
    if default_head and values.keys() & {"hidden_size", "num_attention_heads"}:
        derived.add("head_dim")
    kept = {name: value for name, value in old.items() if name not in derived}
    return type(config).from_dict({**kept, **values})


def _initialize_weights(model: PreTrainedModel, seed: int) -> None:
    """Run the architecture's own initialization, seeded for each module by its name; collective under ZeRO-3."""
    import torch
    from transformers import PreTrainedModel
    from transformers.integrations import is_deepspeed_zero3_enabled
    from transformers.integrations.deepspeed import initialize_weights_zero3

    names = {id(part): name for name, part in model.named_modules()}

    def seeded(initialize: Callable[[nn.Module], None]) -> Callable[[nn.Module], None]:
        def run(part: nn.Module) -> None:
            digest = hashlib.sha256(f"{seed} {names[id(part)]}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:8], "big", signed=True))
            initialize(part)

        return run

    families = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    for part in model.modules():
        part._is_hf_initialized = False  # type: ignore[assignment]
    for part in families:
        part._init_weights = seeded(part._init_weights)  # type: ignore[method-assign]
    device = World.from_env().device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if is_deepspeed_zero3_enabled():
            initialize_weights_zero3(model)
        else:
            model.initialize_weights()
    for part in families:
        del part._init_weights
