"""Any torch model that a package has registered as a ModelSpec."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.component import choice, component
from arctic_hydra.distributed import World
from arctic_hydra.errors import ConfigError, ModelError, describe
from arctic_hydra.files.code_file import remedy
from arctic_hydra.files.extensions import load_extensions
from arctic_hydra.model.base import ModelFactory
from arctic_hydra.model.names import SPEC_MODEL_TYPE
from arctic_hydra.model.registry import ModelSpec, StateDictAdapter, registered_spec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from arctic_hydra.model.transformers_wrapper import SpecConfig, SpecModel

log = logging.getLogger(__name__)


@component(group="model", name="spec")
class SpecModelFactory(ModelFactory):
    """A model that a package has registered with `register_model_spec`, initialized by its own code from the run's seed."""

    spec: str
    """Name under which the model is registered."""
    flavor: str | None = None
    """One of its registered configs; the first if unset."""
    config_kwargs: dict[str, Any] = field(default_factory=dict)
    """Values that replace those of the flavor's config, such as {hidden_size: 96}."""
    attn_implementation: str = choice("eager", ["eager"])
    """Fixed: the model's own code decides how it attends."""
    disable_activation_checkpoint: bool = True
    """True by default; false needs a spec with `layer_class`, whose layers are recomputed."""

    shares_sequences: ClassVar[bool] = False
    is_base_for_peft: ClassVar[bool] = False

    def validate(self) -> None:
        super().validate()
        if self.attn_implementation != "eager":
            raise ValueError(
                f"attn_implementation: got {self.attn_implementation}, but with model=spec the model's own code decides how it "
                "attends; leave it out"
            )
        found = registered_spec(self.spec)
        self.flavor = self.flavor or next(iter(found.flavors))
        found.config(self.flavor, self.config_kwargs)

    @cached_property
    def model_spec(self) -> ModelSpec:
        """The registered spec; reading it imports the model's code. Raises ModelError."""
        try:
            found = registered_spec(self.spec).create()
        except Exception as error:
            raise ModelError(
                f"model.spec: the function registered as {self.spec} raises {describe(error)}; {remedy(error)}"
            ) from error
        if not isinstance(found, ModelSpec):
            raise ModelError(
                f"model.spec: the function registered as {self.spec} returned a {type(found).__name__}, expected a ModelSpec"
            )
        return found

    @property
    def position_limit(self) -> int | None:
        """Maximum number of positions, if the flavor's config has `max_position_embeddings`."""
        return getattr(self._values(), "max_position_embeddings", None)

    def _values(self, **changed: Any) -> Any:
        """Return the config of the registered model."""
        return replace(registered_spec(self.spec).config(str(self.flavor), self.config_kwargs), **changed)

    def create_config(self) -> SpecConfig:
        """Return the flavor's values as a config of transformers, whose `values` `create_model` builds the model from."""
        from arctic_hydra.model.transformers_wrapper import SpecConfig

        values = asdict(self._values())
        known = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        shared = {name: values[name] for name in known if name in values}
        return SpecConfig(spec=self.spec, flavor=str(self.flavor), values=values, **shared)

    def create_model(self, config: Any) -> Any:
        """Build the model in fp32 from torch's generator, so that ranks and ZeRO stages start equal, then cast it.

        Raises ConfigError if it lacks a part of the contract in `LanguageModel`.
        """
        self.check_dtype()
        return self.finish(self._build(config))

    def create_meta_model(self, config: Any) -> Any:
        """Return the model for the memory estimate's fake tensors."""
        return self.finish(self._build(config))

    def _build(self, config: Any) -> SpecModel:
        from arctic_hydra.model.transformers_wrapper import SpecModel, structure_problems

        spec, values = self.model_spec, self._values(**config.values)
        model: Any = spec.model(values)
        problems = [*structure_problems(model, values, spec), *self._layer_problems(spec)]
        if problems:
            raise ConfigError([self._problem(model, text) for text in problems])
        for parameter in model.parameters():  # not .to(): buffers, such as RoPE's frequencies, stay fp32
            parameter.data = parameter.data.to(self.torch_dtype)
        create = spec.state_dict_adapter

        def adapter(vocab_size: int) -> StateDictAdapter:
            assert create is not None, "called for a spec with an adapter only"
            return create(replace(values, vocab_size=vocab_size))

        return SpecModel(config, model, spec, adapter if create else None)

    def _layer_problems(self, spec: ModelSpec) -> Iterator[str]:
        if spec.layer_class is None and not self.disable_activation_checkpoint:
            yield "has no layer_class in its spec; model.disable_activation_checkpoint=false needs one"
        if spec.layer_class is None and self.compile:
            yield "has no layer_class in its spec; model.compile=true needs one"

    def _problem(self, model: Any, text: str) -> str:
        return f"model.spec: {self.spec} ({type(model).__name__}) {text}; see docs/extending/models.md"

    def check_model(self) -> None:
        """Build the model on fake tensors and run it; raises ConfigError with all that is wrong, before any data is prepared.

        Code that fails on tensors without data, such as custom kernels, is not judged: if it also fails on real ones, the
        run ends with its traceback, before training.
        """
        from torch._subclasses.fake_tensor import FakeTensorMode

        from arctic_hydra.model.transformers_wrapper import adapter_problems, output_problems

        spec = self.model_spec
        with FakeTensorMode(allow_non_fake_inputs=True):
            try:
                model = self._build(self.create_config())
            except ConfigError:
                raise
            except Exception:
                log.debug("model.spec=%s cannot be built on fake tensors", self.spec, exc_info=True)
                return
            problems: list[str] = []
            try:
                problems += output_problems(model)
            except Exception:
                log.debug("model.spec=%s does not run on fake tensors", self.spec, exc_info=True)
            try:
                problems += adapter_problems(model)
            except Exception as error:
                adapter = getattr(spec.state_dict_adapter, "__name__", "state_dict_adapter")
                problems.append(f"{adapter} raises {type(error).__name__}: {' '.join(str(error).split())}")
        if problems:
            raise ConfigError([self._problem(model.model, text) for text in problems])

    def own_names(self, weights: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
        """Return the weights of an export, or with an adapter of a transformers model, by the names of `model`."""
        try:
            return model.from_export(weights)  # type: ignore[no-any-return]
        except Exception as error:
            raise ModelError(
                f"init_from: the state_dict_adapter of model.spec={self.spec} cannot read the weights: "
                f"{type(error).__name__}: {error}"
            ) from error

    def parallelize(self, model: nn.Module) -> nn.Module:
        """Call the spec's `parallelize`, then compile the layers if `compile` is set; raises ModelError for renamed weights."""
        from arctic_hydra.model.transformers_wrapper import SpecModel

        if self.model_spec.parallelize is not None:
            holder: Any = next(module for module in model.modules() if isinstance(module, SpecModel))
            before = [name for name, _ in holder.named_parameters()]
            holder.model = self.model_spec.parallelize(holder.model, World.from_env())
            if before != [name for name, _ in holder.named_parameters()]:
                raise ModelError(
                    f"model.spec: the hook parallelize of {self.spec} renamed parameters, which checkpoints and exports know by "
                    "name; change modules in place, or wrap their forward"
                )
        return super().parallelize(model)

    def post_optimizer_build(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        """Call the spec's hook with the optimizer and the registered model."""
        from arctic_hydra.model.transformers_wrapper import SpecModel

        if self.model_spec.post_optimizer_build is not None:
            holder: Any = next(module for module in model.modules() if isinstance(module, SpecModel))
            self.model_spec.post_optimizer_build(optimizer, holder.model)


def load_export(path: str | Path) -> SpecModel:
    """Return the model of an export in its own layout, on the CPU, in the dtype of the export; `.model` is the registered one.

    Raises ModelError for an export that transformers or peft loads, and ValueError for a model that is not registered.
    """
    from huggingface_hub import load_torch_model

    from arctic_hydra.model.transformers_wrapper import SpecConfig

    content = SpecConfig.get_config_dict(path)[0]
    if content.get("model_type") != SPEC_MODEL_TYPE:
        raise ModelError(
            f"{path} is not an export in the layout of a registered model; load it with transformers or peft"
        )
    load_extensions()
    config = SpecConfig.from_dict(content)
    factory = SpecModelFactory(spec=config.spec, flavor=config.flavor, dtype=str(content["dtype"]))
    model = factory.finish(factory._build(config))
    missing, unexpected = load_torch_model(model.model, path, strict=False)
    weights = model.model.state_dict()
    loaded = {weights[name].data_ptr() for name in weights.keys() - set(missing)}
    missing = [name for name in missing if weights[name].data_ptr() not in loaded]  # files hold a tied weight once
    if missing or unexpected:
        raise ModelError(
            f"{path}: the weights are not those of {config.spec}, flavor {config.flavor}, as it is registered now: "
            f"{len(missing)} are missing and {len(unexpected)} unknown, such as {', '.join([*missing, *unexpected][:3])}; "
            "restore the code that the model was trained with"
        )
    return model.eval()  # type: ignore[no-any-return]
