"""The DeepSpeed engine: its configuration, its initialization and the optimizer step.

The only module that imports deepspeed.
"""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from arctic_hydra.component import Component, choice, component
from arctic_hydra.errors import ConfigError
from arctic_hydra.human_numbers import HumanFloat, convert_leaves, number
from arctic_hydra.model.layers import expert_blocks
from arctic_hydra.model.names import DTYPE_ALIASES
from arctic_hydra.optimizer import deepspeed_ops
from arctic_hydra.redaction import redact

if TYPE_CHECKING:
    import deepspeed
    import torch

_OURS = {"optimizer": "the config group optimizer", "scheduler": "the config group scheduler"}


@dataclass(kw_only=True)
class EngineFactory(Component):
    """Base of the engine options."""

    stage: int = choice(0, range(4))
    """ZeRO stage: 0 replicates all state, 1 shards optimizer state over the ranks, 2 also gradients, 3 also parameters."""
    offload_optimizer: bool = False
    """Keep optimizer states and fp32 weights in host memory and run the optimizer step there (ZeRO-1 and up)."""
    offload_parameters: bool = False
    """Also keep the model weights in host memory until a layer needs them (ZeRO-3)."""
    config: dict[str, Any] = field(default_factory=dict)
    """Free-form DeepSpeed configuration; overrides the generated values and must not contradict the rest of the config."""

    @property
    def clipping(self) -> float:
        """Norm that gradients are clipped to; 0 where they are not."""
        return 0.0

    @property
    def offloads(self) -> bool:
        """Whether the optimizer steps on the CPU, through our fields or the free-form configuration."""
        zero = self.config.get("zero_optimization")
        chosen = zero.get("offload_optimizer") if isinstance(zero, dict) else None
        return self.offload_optimizer or (isinstance(chosen, dict) and chosen.get("device", "none") != "none")

    def training_problems(self, dtype: str) -> Iterator[str]:
        """Yield why weights of this dtype cannot be trained, although they can be evaluated and exported."""
        if dtype == "fp16" and self.stage == 0:  # https://github.com/deepspeedai/DeepSpeed/pull/8393
            yield (
                "model.dtype: got fp16, but at ZeRO-0 DeepSpeed divides the gradients by a scale with which it does not multiply the "
                "loss, so updates vanish; pass deepspeed=zero1, or model.dtype=bf16"
            )

    @abstractmethod
    def problems(self, micro_batch_size: int, accumulation: int, world_size: int, dtype: str) -> Iterator[str]:
        """Yield each value of `config` that is unknown or contradicts the run."""

    @abstractmethod
    def fill(
        self, micro_batch_size: int, accumulation: int, world_size: int, dtype: str, hidden_size: int
    ) -> dict[str, Any]:
        """Return the complete DeepSpeed dictionary: defaults from the run, then the user's values on top."""


@component(group="deepspeed", name="zero")
class ZeROFactory(EngineFactory):
    """A DeepSpeed engine at one ZeRO stage (Rajbhandari et al. 2020)."""

    gradient_clipping: HumanFloat = number(1.0, minimum=0)
    """Maximum gradient norm; 0 disables clipping."""

    @property
    def clipping(self) -> float:
        """Norm that gradients are clipped to; 0 where they are not."""
        return float(self.gradient_clipping)

    def validate(self) -> None:
        if self.stage not in (0, 1, 2, 3):
            raise ValueError(f"stage: got {self.stage}, expected 0, 1, 2 or 3")
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("offload_optimizer: got true, but ZeRO-0 cannot offload; expected stage 1, 2 or 3")
        if self.offload_parameters and self.stage != 3:
            raise ValueError(
                f"offload_parameters: got true at stage {self.stage}, but only ZeRO-3 can; expected stage 3"
            )
        self.config = convert_leaves(self.config)

    def problems(self, micro_batch_size: int, accumulation: int, world_size: int, dtype: str) -> Iterator[str]:
        """Yield each value of `config` that is unknown or contradicts the run."""
        if not self.config:
            return
        from arctic_hydra.assets import deepspeed_keys  # reads its table, which runs without such keys do not need

        refused = list(deepspeed_keys.problems(self.config))
        yield from refused
        for problem in self._contradictions(micro_batch_size, accumulation, world_size, dtype):
            section = ".".join(problem.partition(":")[0].split(".")[:3])
            if not any(line.startswith(section) for line in refused):
                yield problem

    def _contradictions(self, micro_batch_size: int, accumulation: int, world_size: int, dtype: str) -> Iterator[str]:
        """Yield each value of `config` that differs from the run's own."""
        for key in sorted(_OURS.keys() & self.config.keys()):
            yield f"deepspeed.config.{key}: is set by {_OURS[key]}; remove it here"
        total = micro_batch_size * accumulation * world_size
        product = (
            f"micro_batch_size {micro_batch_size} x gradient_accumulation_steps {accumulation} x ranks {world_size}"
        )
        expected: dict[str, tuple[Any, str]] = {
            "train_batch_size": (total, f"{product} = {total}"),
            "train_micro_batch_size_per_gpu": (micro_batch_size, f"trainer.micro_batch_size={micro_batch_size}"),
            "gradient_accumulation_steps": (accumulation, f"trainer.gradient_accumulation_steps={accumulation}"),
        }
        for key, (value, source) in expected.items():
            if key in self.config and self.config[key] != value:
                yield f"deepspeed.config.{key}: got {self.config[key]!r}, but {source}; set it in one place only"
        zero = self.config.get("zero_optimization", {})
        if isinstance(zero, dict) and zero.get("stage", self.stage) != self.stage:
            yield (
                f"deepspeed.config.zero_optimization.stage: got {zero['stage']}, but the chosen option has stage {self.stage}; "
                f"pass deepspeed=zero{zero['stage']}"
            )
        for name in ("offload_param", "offload_optimizer"):
            chosen = zero.get(name) if isinstance(zero, dict) else None
            if isinstance(chosen, dict) and chosen.get("device") == "nvme" and not chosen.get("nvme_path"):
                yield f"deepspeed.config.zero_optimization.{name}.device: got nvme, but nvme_path is not set; set it to a local folder"
        for key, owner in (("bf16", "bf16"), ("bfloat16", "bf16"), ("fp16", "fp16")):
            section = self.config.get(key)
            if isinstance(section, dict) and bool(section.get("enabled", True)) != (dtype == owner):
                yield f"deepspeed.config.{key}.enabled: got {section.get('enabled', True)}, but model.dtype={dtype}; set model.dtype only"
            if isinstance(section, dict) and not section.get("check_grad_overflow", True):
                yield (
                    f"deepspeed.config.{key}.check_grad_overflow: got {section['check_grad_overflow']}, but steps with non-finite "
                    "gradients must be skipped; remove it"
                )
        types = self.config.get("data_types")
        summed = types.get("grad_accum_dtype") if isinstance(types, dict) else None
        if self.stage == 0 and summed is not None and summed not in DTYPE_ALIASES[dtype]:
            yield (
                f"deepspeed.config.data_types.grad_accum_dtype: got {summed}, but at ZeRO-0 DeepSpeed sums gradients in the dtype of "
                f"the weights (model.dtype={dtype}); pass deepspeed=zero1, or remove it"
            )
        autocast = self.config.get("torch_autocast")
        half = autocast.get("dtype") if isinstance(autocast, dict) and autocast.get("enabled") else None
        if self.stage == 0 and half in DTYPE_ALIASES["fp16"]:
            yield (
                f"deepspeed.config.torch_autocast.dtype: got {half}, but at ZeRO-0 the scale of its loss would be part of the gradients "
                "that are clipped; pass deepspeed=zero1, or bfloat16"
            )

    def fill(
        self, micro_batch_size: int, accumulation: int, world_size: int, dtype: str, hidden_size: int
    ) -> dict[str, Any]:
        """Return the complete DeepSpeed dictionary: defaults from the run, then the user's values on top."""
        zero: dict[str, Any] = {"stage": self.stage}
        if self.stage:
            zero["reduce_bucket_size"] = max(hidden_size * hidden_size, 1 << 20)
        if self.stage == 3:
            zero["stage3_prefetch_bucket_size"] = int(0.9 * hidden_size * hidden_size)
            zero["stage3_param_persistence_threshold"] = 10 * hidden_size
        if self.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if self.offload_parameters:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
        filled: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": micro_batch_size,
            "gradient_accumulation_steps": accumulation,
            "train_batch_size": micro_batch_size * accumulation * world_size,
            "gradient_clipping": self.gradient_clipping,
            "zero_optimization": zero,
            "bf16": {"enabled": dtype == "bf16"},
            "fp16": {"enabled": dtype == "fp16"},
            "steps_per_print": 10**9,
            "wall_clock_breakdown": False,
            "prescale_gradients": False,
            "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW steps on the CPU as well
            "zero_allow_untested_optimizer": True,  # those that DeepSpeed tested are Adam, AdamW, Adagrad and its own
        }
        for key, value in self.config.items():
            known = filled.get(key)
            filled[key] = {**known, **value} if isinstance(known, dict) and isinstance(value, dict) else value
        return filled


@contextmanager
def model_init(config: dict[str, Any]) -> Iterator[None]:
    """Within this context `from_pretrained` partitions parameters while loading, if `config` is ZeRO-3."""
    if config["zero_optimization"]["stage"] != 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    ds = import_deepspeed()
    ds.init_distributed(dist_init_required=False, auto_mpi_discovery=False, verbose=False)  # takes over torch's group
    keep_alive = HfDeepSpeedConfig(config)
    try:
        with _explain_config_errors(ds.__version__):
            yield
    finally:
        unset_hf_deepspeed_config()
        del keep_alive


def import_deepspeed() -> Any:
    """Import deepspeed without importing mlflow and, from DeepSpeed 0.19.8 on, without running a compiler."""
    with _without("mlflow"):
        import deepspeed

    # The gloo backend would compile a shared-memory collective with g++ on first use (30 s), which only inference needs.
    # Marking it as incompatible makes DeepSpeed use plain gloo. Since 0.19.8 the table is filled when it is first read, by
    # compiling test programs; an entry that is set before takes its place.
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Make the import of `module` fail within this context, unless it is already imported.

    Importing mlflow takes a second, and only DeepSpeed's autotuner uses it.
    """
    is_blocked = module not in sys.modules
    if is_blocked:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if is_blocked:
            sys.modules.pop(module, None)


def _optimizer_class(name: str) -> Any:
    """Return an optimizer class of DeepSpeed; its kernels are compiled when it is first instantiated."""
    ds = import_deepspeed()
    if name != "MuonWithAuxAdam":
        return getattr(ds.ops.adam, name)
    import torch
    from deepspeed.runtime import compiler

    compile_ = compiler.compile
    if not torch.cuda.is_available():  # on the CPU, compiling takes a minute without a benefit
        compiler.compile = lambda: lambda function: function
    try:
        from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
    finally:
        compiler.compile = compile_
    return MuonWithAuxAdam


deepspeed_ops.provide(_optimizer_class)


def initialize(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]
) -> deepspeed.DeepSpeedEngine:
    """Return the engine for `model` and `optimizer`; the trainer keeps the learning-rate schedule.

    fp32 buffers (the RoPE frequencies) stay fp32: DeepSpeed would cast them with the weights, and bf16 cannot
    distinguish positions beyond 256.
    """
    config = dict(config)
    if is_plain(config):
        config["gradient_clipping"] = 0.0  # `optimizer_step` clips, because it needs the norm to skip non-finite steps
    if any("ns_method" in group for group in optimizer.param_groups):  # DeepSpeed's Muon needs whole gradients
        config["zero_optimization"] = {"reduce_scatter": False, **config["zero_optimization"]}
    with _undo_initial_step(optimizer):
        engine = _wrap(model, config, optimizer=optimizer)
    engine.config = redact(engine.config)  # DeepSpeed has parsed it, and writes it into every checkpoint
    return engine  # type: ignore[no-any-return]


def _wrap(model: torch.nn.Module, config: dict[str, Any], **more: Any) -> Any:
    """Return DeepSpeed's engine for a model, which keeps its fp32 buffers; `more` are arguments of `deepspeed.initialize`."""
    ds = import_deepspeed()
    if config["zero_optimization"]["stage"] == 3:
        for block in expert_blocks(model):
            ds.utils.set_z3_leaf_module(block, True)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.dtype.is_floating_point}
    with _explain_config_errors(ds.__version__):
        engine = ds.initialize(model=model, config=config, dist_init_required=False, **more)[0]
    for name, buffer in engine.module.named_buffers():
        if name in buffers and buffer.dtype != buffers[name].dtype:
            buffer.data = buffers[name].to(buffer.device)
    return engine


def freeze(model: torch.nn.Module, config: dict[str, Any], device: torch.device) -> Any:
    """Return a model that is not trained, ready for forward passes on `device`; at ZeRO-3 an engine that shards it. Collective."""
    model.requires_grad_(False)
    if config["zero_optimization"]["stage"] != 3:
        return _with_autocast(model.to(device).eval(), config, device)
    zero = {key: value for key, value in config["zero_optimization"].items() if key != "offload_optimizer"}
    engine = _wrap(model, {**config, "zero_optimization": zero})
    engine.eval()
    return engine


def _with_autocast(model: torch.nn.Module, config: dict[str, Any], device: torch.device) -> torch.nn.Module:
    """Return a model that no engine wraps, with a forward in the precision in which an engine of `config` would run it."""
    import torch

    settings = import_deepspeed().runtime.config
    if settings.get_torch_autocast_enabled(config):
        autocast = torch.autocast(device.type, settings.get_torch_autocast_dtype(config))
        vars(model)["forward"] = autocast(model.forward)
    return model


def release(model: torch.nn.Module) -> None:
    """Free the weights of what `freeze` returned. At ZeRO-3, DeepSpeed refers to its modules until the process ends."""
    for parameter in model.parameters():
        for tensor in (parameter, getattr(parameter, "ds_tensor", parameter)):
            tensor.data = tensor.data.new_empty(0)


@contextmanager
def _explain_config_errors(version: str) -> Iterator[None]:
    """Turn an error of DeepSpeed about its configuration into a ConfigError.

    `deepspeed_keys` finds errors of single keys before any rank starts, but not of their combinations, such as
    `compute_grad_norm: false` at ZeRO-3.
    """
    from deepspeed.runtime.config import DeepSpeedConfigError
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        found = [(".".join(map(str, item["loc"])), item["msg"]) for item in error.errors()]
        problems = [f"deepspeed.config: {key + ': ' if key else ''}{text} (DeepSpeed {version})" for key, text in found]
        raise ConfigError(problems) from error
    except DeepSpeedConfigError as error:
        raise ConfigError(f"deepspeed.config: {' '.join(str(error).split())} (DeepSpeed {version})") from error


@contextmanager
def _undo_initial_step(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Undo the step with zero gradients that DeepSpeed takes to allocate the optimizer states.

    That step would apply weight decay once and, at ZeRO-0 in bf16, leave Adam's step count at 1, which makes the first
    real update a quarter too small.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    yield
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in (*optimizer.param_groups, *optimizer.state.values()):
        if "step" in state:  # a plain number in DeepSpeed's own optimizers
            state["step"] = state["step"] * 0
    for state in optimizer.state.values():
        for value in state.values():
            if hasattr(value, "zero_"):
                value.zero_()


def is_plain(config: dict[str, Any]) -> bool:
    """Whether DeepSpeed uses the optimizer without a wrapper: ZeRO-0 in fp32."""
    half = any(config[key]["enabled"] for key in ("bf16", "fp16"))
    return not half and config["zero_optimization"]["stage"] == 0


def optimizer_step(engine: deepspeed.DeepSpeedEngine, config: dict[str, Any]) -> tuple[float, bool]:
    """Apply the accumulated gradients; return their norm before clipping and whether the weights were updated.

    A step with a non-finite norm changes neither weights nor optimizer states. DeepSpeed skips such steps at ZeRO-1 and
    up and in half precision; at ZeRO-0 in fp32 it would write NaN into the weights, so this function skips them itself.
    """
    if not is_plain(config):
        engine.step()
        norm = engine.get_global_grad_norm()
        applied = bool(engine.was_step_applied())
        return (float(norm) if norm is not None and applied else math.nan), applied
    import torch

    limit = config["gradient_clipping"] or math.inf
    norm = float(torch.nn.utils.clip_grad_norm_(engine.module.parameters(), limit))
    if math.isfinite(norm):
        engine.step()
        return norm, True
    engine.zero_grad()
    engine.global_steps += 1
    engine.skipped_steps += 1
    return norm, False
