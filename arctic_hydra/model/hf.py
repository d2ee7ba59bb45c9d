"""Models from the Hugging Face hub or a local directory in its layout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.component import component
from arctic_hydra.distributed import World
from arctic_hydra.errors import ModelError
from arctic_hydra.hub import hub_reachable, looks_like_path
from arctic_hydra.model.base import ModelFactory

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@component(group="model", name="hf")
class HFModelFactory(ModelFactory):
    """A causal language model loaded with `from_pretrained`."""

    name_or_path: str
    """Hub id such as `Qwen/Qwen3-0.6B`, or a local directory."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run model code that comes with the weights; recorded in the run record."""
    hf_config_kwargs: dict[str, Any] = field(default_factory=dict)
    """Values that replace those of the model's own config, such as {attention_dropout: 0.1}."""
    allow_missing_weights: bool = False
    """Accept a checkpoint that lacks weights of the architecture; they start random."""

    stored: ClassVar[bool] = True

    def check_environment(self) -> Iterator[str]:
        """Yield a problem where a local model directory is missing or holds no model."""
        if not looks_like_path(self.name_or_path):
            return
        folder = Path(self.name_or_path).expanduser()
        if not folder.is_dir():
            yield f"name_or_path: got {self.name_or_path!r}, which is no directory; pass a hub id or a local model directory"
        elif not (folder / "config.json").is_file():
            yield f"name_or_path: got {self.name_or_path!r}, which holds no config.json; expected a model directory"

    def create_config(self) -> PretrainedConfig:
        """Return the model's config with `hf_config_kwargs` applied; raises ModelError when it cannot be read."""
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(
                self._location, trust_remote_code=self.trust_remote_code, **self._where()
            )
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        for name, value in self.hf_config_kwargs.items():
            if not hasattr(config, name):
                raise ModelError(
                    f"model.hf_config_kwargs.{name}: {type(config).__name__} has no such value; see its documentation"
                )
            setattr(config, name, value)
        return config

    def create_model(self, config: PretrainedConfig) -> PreTrainedModel:
        """Load the weights; raises ModelError when they are unreadable or do not cover the architecture."""
        from transformers import AutoModelForCausalLM

        self.register_attention()
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                self._location,
                config=config,
                dtype=self.torch_dtype,
                attn_implementation=self.attn_implementation,
                trust_remote_code=self.trust_remote_code,
                output_loading_info=True,
                **self._quantized(),
                **self._where(),
            )
        except Exception as error:
            # safetensors raises its own SafetensorError, transformers OSError, ValueError, RuntimeError or ImportError.
            raise self._unreadable(error) from error
        missing = sorted(info["missing_keys"])
        if missing and not self.allow_missing_weights:
            raise ModelError(
                f"model.name_or_path: {self.name_or_path!r} lacks {len(missing)} weights of {type(model).__name__}, such as "
                f"{', '.join(missing[:3])}; fix the checkpoint, or pass model.allow_missing_weights=true to start them random"
            )
        return self.finish(model)

    def _quantized(self) -> dict[str, Any]:
        """Return the arguments for weights in few bits, which are made on the device of this rank."""
        if self.quantization is None:
            return {}
        return {"quantization_config": self.quantization, "device_map": {"": World.from_env().device}}

    def _where(self) -> dict[str, Any]:
        """Where to look: the hub's client retries a dead connection for a minute, so its cache alone decides then."""
        return {
            "revision": self.revision,
            "local_files_only": looks_like_path(self.name_or_path) or not hub_reachable(),
        }

    @property
    def _location(self) -> str:
        return os.path.expanduser(self.name_or_path)

    def _unreadable(self, error: Exception) -> ModelError:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return ModelError(
            f"model.name_or_path: {self.name_or_path!r} cannot be loaded: {first.strip()} "
            f"(check the name, your access and the network, or pass a local directory)"
        )
