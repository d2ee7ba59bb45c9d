"""Base class of the model factories."""

from __future__ import annotations

import importlib.util
import logging
import math
import re
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.component import CAUSAL_LM, SEQUENCE_CLASSIFIER, Component, choice
from arctic_hydra.distributed import count_gpus
from arctic_hydra.errors import FieldError, ModelError
from arctic_hydra.human_numbers import bounded, shorten
from arctic_hydra.model.layers import compile_layers, layers
from arctic_hydra.model.names import (
    ATTENTION,
    DTYPE_ALIASES,
    FLASH_PACKAGES,
    NEEDS_CUDA,
    VARLEN_ATTENTION,
)
from arctic_hydra.model.score_head import check_score_head, score_head

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)

_MOST = (
    (r"(layers?|heads?|experts|blocks)$", 100_000),
    (r"vocab_size", 10**8),
    (r"(position|positions|position_embeddings|n_ctx)$", 10**9),
    (r"(_size|_dim|_rank|d_model|d_ff|d_kv|n_embd|n_inner)$", 10**7),
)
"""The most that a value of a config may be, by the end of its name; larger ones name no model that a machine can hold."""
_NOT_NEGATIVE = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(kw_only=True)
class ModelFactory(Component):
    """Base of the model factories: `create_config()` returns the model's config, `create_model(config)` the model."""

    dtype: str = choice("bf16", tuple(DTYPE_ALIASES))
    """bf16, fp16 (at ZeRO-1 and up) or fp32: data type of weights and activations; optimizer state is always fp32."""
    attn_implementation: str = choice(VARLEN_ATTENTION, ATTENTION)
    """`arctic_varlen` isolates packed documents on CPU and CUDA; or one of transformers' own names."""
    disable_activation_checkpoint: bool = False
    """Keep all activations instead of recomputing them in the backward pass."""
    activation_checkpoint_every_n_layers: int = bounded(1, minimum=1)
    """Recompute the activations of every n-th layer only and keep the others; 1 recomputes all layers."""
    compile: bool = False
    """Compile each layer with torch.compile; packs are padded to their full length to keep shapes constant."""
    compile_backend: str = "inductor"
    """Backend of torch.compile: `inductor`, or `aot_eager`, which traces but generates no code."""
    save_name: str | None = None
    """Directory name of this model's exports, instead of `checkpoint.hf.save_name`."""

    stored: ClassVar[bool] = False
    """Whether the weights are read from files, so that each start of the run can read them again."""

    shares_sequences: ClassVar[bool] = True
    """Whether `arctic_varlen` computes the model's attention, which can communicate across ranks that share a sequence."""

    is_base_for_peft: ClassVar[bool] = True
    """Whether peft can load an exported adapter over this model's files."""

    excluded_from_id: ClassVar[frozenset[str]] = frozenset({"save_name"})

    @property
    def weights_source(self) -> tuple[str, str | None] | None:
        """Hub id or path of the weights, and the revision on the hub; None if they are not read from files."""
        return (str(self.__dict__["name_or_path"]), self.__dict__.get("revision")) if self.stored else None

    @property
    def trusts_remote_code(self) -> bool:
        """Whether code from the model's repository may run (`trust_remote_code` of the options that load one)."""
        return bool(self.__dict__.get("trust_remote_code", False))

    @property
    def position_limit(self) -> int | None:
        """Maximum number of positions, if a field sets it; None if only the model's own config does."""
        return self.__dict__.get("max_position_embeddings")

    @property
    def stored_position_limit(self) -> int | None:
        """Maximum number of positions in the config of a model on this machine, read from its file; None if unknown."""
        return None

    def validate(self) -> None:
        found = [name for name, aliases in DTYPE_ALIASES.items() if str(self.dtype).lower() in aliases]
        if not found:
            raise ValueError(f"dtype: got {self.dtype!r}, expected one of {', '.join(DTYPE_ALIASES)}")
        self.dtype = found[0]
        if self.attn_implementation not in ATTENTION:
            raise ValueError(
                f"attn_implementation: got {self.attn_implementation!r}, expected one of {', '.join(ATTENTION)}"
            )

        every = self.activation_checkpoint_every_n_layers
        if every < 1:
            raise ValueError(f"activation_checkpoint_every_n_layers: got {every}, expected 1 or more")
        if every > 1 and self.disable_activation_checkpoint:
            raise ValueError(
                f"activation_checkpoint_every_n_layers: got {every}, which has no effect with "
                f"disable_activation_checkpoint=true; drop one of them"
            )
        values = self.__dict__.get("hf_config_kwargs", {})
        problems = [
            *config_value_problems(values, "hf_config_kwargs"),
            *unbuildable_problems(values, "hf_config_kwargs."),
        ]
        if problems:
            raise FieldError(problems)

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as a `torch.dtype`."""
        import torch

        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[self.dtype]

    @property
    def auto_class(self) -> Any:
        """The class of transformers that creates what the run's trainer trains; a causal model without a trainer."""
        import transformers

        return getattr(transformers, self._run.auto_class if self._run is not None else CAUSAL_LM)

    @property
    def is_classifier(self) -> bool:
        """Whether the run's trainer trains a sequence classifier, whose head computes a score."""
        return self._run is not None and self._run.auto_class == SEQUENCE_CLASSIFIER

    @abstractmethod
    def create_config(self) -> PretrainedConfig:
        """Return the config that `create_model` builds the model from; raises ModelError."""

    @abstractmethod
    def create_model(self, config: PretrainedConfig) -> PreTrainedModel:
        """Return the model on the CPU, in `dtype`; under ZeRO-3 its parameters may already be partitioned."""

    def check_model(self) -> None:
        """Check the model's code, before data is prepared and weights are read; raises ConfigError or ModelError."""

    def own_names(self, weights: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Return the weights of an exported full model by the names of `model`; raises ModelError."""
        return weights

    def parallelize(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the converted model, compiled if `compile` is set; called before the optimizer and the engine are built."""
        if self.compile:
            compile_layers(model, self.compile_backend)
        return model

    def post_optimizer_build(self, optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> None:
        """Act on the optimizer, before the schedule and the engine are built."""

    def check_files(self) -> Iterator[str]:
        """Yield a problem if the files that the model is read from are missing."""
        return iter(())

    def check_environment(self) -> Iterator[str]:
        """Yield a problem if files are missing, or if the chosen attention needs a GPU or a package that this machine lacks."""
        yield from self.check_files()
        packages = FLASH_PACKAGES.get(self.attn_implementation, ())
        if self.attn_implementation in NEEDS_CUDA and count_gpus() == 0:
            yield (
                f"attn_implementation: got {self.attn_implementation}, which trains on CUDA only, and this machine has no GPU; "
                f"pass model.attn_implementation={VARLEN_ATTENTION}"
            )
        elif packages and not any(importlib.util.find_spec(name) for name in packages):
            yield (
                f"attn_implementation: got {self.attn_implementation}, but {' and '.join(packages)} are not installed; install "
                f"one, or pass model.attn_implementation={VARLEN_ATTENTION} (the flash attention inside torch)"
            )

    def check_dtype(self) -> None:
        """Raise ModelError for a dtype that this machine's GPU does not support."""
        import torch

        if self.dtype == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False):
            raise ModelError(
                f"model.dtype: got bf16, which {torch.cuda.get_device_name()} does not support; pass "
                "model.dtype=fp16 deepspeed=zero1, or model.dtype=fp32"
            )

    def create_meta_model(self, config: PretrainedConfig) -> PreTrainedModel:
        """Return the model without reading or initializing weights, for the memory estimate's fake tensors.

        With a config that is not of transformers, this is `create_model`.
        """
        from transformers import PretrainedConfig
        from transformers.initialization import no_init_weights

        if not isinstance(config, PretrainedConfig):
            return self.create_model(config)
        self.register_attention()
        with (
            self.explain_attention_errors(config),
            no_init_weights(),
        ):  # some initialize depending on the weights' values
            model = self.auto_class.from_config(
                config,
                dtype=self.torch_dtype,
                attn_implementation=self.attn_implementation,
                trust_remote_code=self.trusts_remote_code,
            )
        model.tie_weights()
        return self.finish(model)

    def register_attention(self) -> None:
        """Register `arctic_varlen` with transformers if this model uses it."""
        if self.attn_implementation == VARLEN_ATTENTION:
            from arctic_hydra.model.attention import register

            register()

    @contextmanager
    def explain_attention_errors(self, config: PretrainedConfig) -> Iterator[None]:
        """Turn the error of an architecture without the chosen attention into a ModelError.

        Most architectures look attention up in transformers' AttentionInterface, where ours is registered; older ones
        have their own table, or none.
        """
        try:
            yield
        except (KeyError, ValueError) as error:
            unknown = isinstance(error, KeyError) and error.args == (self.attn_implementation,)
            if not unknown and not ("does not support" in str(error) and "ttention" in str(error)):
                raise
            kind = self.auto_class._model_mapping[type(config)]
            known = "eager or sdpa" if kind._supports_sdpa else "eager"
            raise ModelError(
                f"model.attn_implementation: got {self.attn_implementation}, which {kind.__name__} does not support; pass "
                f"model.attn_implementation={known}, plus data.packing=false if packed documents then attend to each other"
            ) from error

    def finish(self, model: PreTrainedModel) -> PreTrainedModel:
        """Apply the settings that all options share, such as activation checkpointing; return the model.

        The key-value cache is switched off; the config's own `use_cache` is kept on the model as `exported_use_cache`, for
        exports.
        """
        if hasattr(model.config, "use_cache"):
            model.exported_use_cache = model.config.use_cache
            model.config.use_cache = False
        if self.is_classifier:
            check_score_head(model)
        freeze_unused_towers(model)
        train_pad_token(model)
        if not self.disable_activation_checkpoint:
            if not model.supports_gradient_checkpointing:
                raise ModelError(
                    f"model.disable_activation_checkpoint: got false, but {type(model).__name__} cannot recompute "
                    f"activations; pass model.disable_activation_checkpoint=true"
                )
            # Non-reentrant: the reentrant form loses gradients when the inputs do not require them (frozen base).
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            for index, layer in enumerate(layers(model)):
                layer.gradient_checkpointing = index % self.activation_checkpoint_every_n_layers == 0
        return model


def config_value_problems(values: dict[str, Any], key: str) -> Iterator[tuple[str, str]]:
    """Yield key and text of each value that no architecture can use, but that only its first forward pass would refuse."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from config_value_problems(value, f"{key}.{name}")
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{key}.{name}", f"got {value!r}, expected a finite number"
        elif str(name).endswith(("dropout", "_drop", "_pdrop", "dropout_prob", "dropout_rate")) and not (
            value is None or isinstance(value, bool) or (isinstance(value, int | float) and 0 <= value <= 1)
        ):
            yield f"{key}.{name}", f"got {value!r}, expected a probability from 0 to 1"


def unbuildable_problems(values: dict[str, Any], key: str = "") -> Iterator[tuple[str, str]]:
    """Yield key and text of each value of a config, as a file or the user gives it, from which no model may be built.

    Architectures make lists as long as their layers while the config is read. A name of attention with a slash is a repository,
    whose code transformers runs if the package `kernels` is installed.
    """
    for name, value in values.items():
        if isinstance(value, dict):
            yield from unbuildable_problems(value, f"{key}{name}.")
        limit = next((most for pattern, most in _MOST if re.search(pattern, str(name))), None)
        if limit is not None and isinstance(value, int | float) and value > limit:
            yield f"{key}{name}", f"got {shorten(value)}, expected {limit:,} or less"
        if name in _NOT_NEGATIVE and isinstance(value, int | float) and value < 0:
            yield f"{key}{name}", f"got {shorten(value)}, expected 0 or more"
        if str(name) in _TOKENS and not all(map(_is_token, value if isinstance(value, list) else [value])):
            yield f"{key}{name}", f"got {shorten(value)}, expected the number of a token, or a list of them"
        if isinstance(value, str) and "/" in value and "_implementation" in f"{key}{name}":
            yield (
                f"{key}{name}",
                f"got {shorten(value)}, expected a name without a slash; transformers would run code of that repository",
            )


def _is_token(value: Any) -> bool:
    return value is None or (type(value) is int and abs(value) < 1 << 31)


def freeze_unused_towers(model: PreTrainedModel) -> None:
    """Freeze the vision and audio towers of a multimodal model, which get no gradient from text.

    From ZeRO-1 on, the optimizer updates one flat buffer, in which weight decay would shrink them nevertheless.
    """
    if model.config.get_text_config() is model.config:
        return
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings(), score_head(model))
    reached = {id(parameter) for part in parts if part is not None for parameter in part.parameters()}
    unused = {name: p for name, p in model.named_parameters() if id(p) not in reached and p.requires_grad}
    for parameter in unused.values():
        parameter.requires_grad_(False)
    if unused:
        towers = sorted({name.removeprefix("model.").partition(".")[0] for name in unused})
        log.info("froze %s of %s: text-only training never uses it", " and ".join(towers), type(model).__name__)


def train_pad_token(model: PreTrainedModel) -> None:
    """Let the embedding row of the pad token get gradients.

    transformers builds the input embedding with the config's pad token as `padding_idx`, and torch gives that row no
    gradient. Where a tokenizer has no pad token, a stop token takes its place, which is also an input of the model. The
    loss does not depend on padding, so a separate pad token gets no gradient in any case.
    """
    embedding: Any = model.get_input_embeddings()
    if getattr(embedding, "padding_idx", None) is not None:
        embedding.padding_idx = None
