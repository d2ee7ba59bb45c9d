"""What a run needs of each rank's memory, before it starts: formulas for the engine, a dry run for the model.

The model's forward and backward run once on fake tensors, which have shapes but no content: every architecture,
converter and checkpointing option is counted by its own code, in about a second and without the weights. What DeepSpeed
holds besides (Rajbhandari et al. 2020, section 3, plus its buckets) is written down in `EngineBytes`.

Units: bytes. P parameters, T trainable ones, N ranks, w bytes of a weight.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arctic_hydra import assemble, distributed
from arctic_hydra.batch import Batch
from arctic_hydra.config import Run
from arctic_hydra.distributed import count_gpus
from arctic_hydra.model.vocabulary import fit_vocabulary

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

GIB = 2**30
FP32 = 4
ZERO3_REUSE_DISTANCE = 10**9
"""DeepSpeed's default of `stage3_max_reuse_distance`, in parameters."""


@dataclass(frozen=True)
class Load:
    """What one micro-batch of one rank holds."""

    rows: int
    tokens: int
    """Tokens per row, of this rank's share of the sequence."""
    supervised: int
    """Positions that reach the head."""


@dataclass(frozen=True)
class Trace:
    """Peaks of a forward and backward pass over weights that are there already, in bytes."""

    parameters: int
    trainable: int
    other: int
    """Buffers, and parameters that no option shards, less what quantised weights save."""
    activations: int
    """Peak of everything but weights and the gradients that stay at them, with one supervised position."""
    head: int
    """What the supervised positions add to that peak."""
    host: int = 0
    """Activations that wait in the host's memory for the backward pass, where that is not the device's."""


@dataclass(frozen=True)
class EngineBytes:
    """What DeepSpeed holds on one rank, in bytes."""

    parameters: int
    optimizer: int
    gradients: int
    buckets: int
    step: int
    """What the optimizer step adds when activations are gone."""
    host: int = 0
    """Kept in the host's memory by offloading, besides all this."""


@dataclass(frozen=True)
class Estimate:
    """The memory of one rank, in bytes."""

    trace: Trace
    engine: EngineBytes
    ranks: int
    device: str

    @property
    def held(self) -> int:
        """What is there in the backward pass and in the optimizer step."""
        engine = self.engine
        offloaded = engine.host if self.device == "cpu" else 0  # to where everything is already
        return engine.parameters + engine.optimizer + engine.gradients + engine.buckets + self.trace.other + offloaded

    @property
    def backward(self) -> int:
        """Peak of the forward and backward passes."""
        return self.held + self.trace.activations + self.trace.head

    @property
    def step(self) -> int:
        """Peak of the optimizer step."""
        return self.held + self.engine.step

    @property
    def total(self) -> int:
        """Peak of the whole run."""
        return max(self.backward, self.step)

    @property
    def host(self) -> int:
        """What offloading keeps in the host's memory, for all ranks of a machine."""
        return (self.engine.host + self.trace.host) * self.ranks

    def lines(self, memory: int | None = None) -> list[str]:
        """Return the estimate for a person; `memory` is what the device has, in bytes."""
        engine, trace = self.engine, self.trace
        phase = "backward pass" if self.backward >= self.step else "optimizer step"
        parts = {
            "parameters": engine.parameters + trace.other,
            "optimizer": engine.optimizer,
            "gradients and buckets": engine.gradients + engine.buckets,
            "activations": trace.activations,
            "head": trace.head,
        }
        figures = ", ".join(f"{name} {size / GIB:.3g}" for name, size in parts.items())
        host = f"; {self.host / GIB:.3g} GiB of host memory for all ranks" if self.host and self.device != "cpu" else ""
        lines = [
            f"{self.total / GIB:.3g} GiB per rank at its peak, in the {phase}{host}",
            f"{figures}; in the optimizer step {engine.step / GIB:.3g}",
        ]
        if memory is not None:
            share = self.total / memory
            verdict = "fits" if share < 0.95 else "DOES NOT FIT"
            lines.append(f"{verdict}: {share:.0%} of the {memory / GIB:.4g} GiB of this machine's {self.device}")
        return lines


def estimate(run: Run, load: Load | None = None, tokenizer: PreTrainedTokenizerBase | None = None) -> Estimate:
    """Return what `run` needs per rank; raises ModelError when the model cannot be described on this machine.

    `tokenizer` is the run's, made here where it is not given and tokens are added.
    """
    device = "cuda" if count_gpus() else "cpu"
    ranks = run.world_size_wanted
    config = run.model.create_config()
    settings = assemble.engine_config(run, config, ranks)
    trace = trace_model(run, config, load or largest_load(run), device, tokenizer)
    return Estimate(trace, engine_bytes(run, settings, trace, ranks), ranks, device)


def largest_load(run: Run, supervised_share: float = 1.0) -> Load:
    """Return the heaviest micro-batch that the data may bring: rows of `data.max_length` tokens."""
    length, micro = run.data.row_tokens or 2048, run.trainer.micro_batch_size
    rows, tokens = (1, micro * length) if run.data.packs else (micro, length)
    tokens = math.ceil(tokens / run.trainer.sequence_parallel_size)
    return Load(rows, tokens, max(1, round(rows * tokens * supervised_share)))


def engine_bytes(run: Run, settings: dict[str, Any], trace: Trace, ranks: int) -> EngineBytes:
    """Return what DeepSpeed holds on each of `ranks` ranks under its configuration `settings`.

    Measured at DeepSpeed 0.19: optimizer state is fp32 beside a master copy of the weights, which only ZeRO-0 in fp32
    lacks; ZeRO-0 and 1 leave whole gradients at the parameters, ZeRO-2 and 3 keep the rank's part (ZeRO-2 twice while
    accumulating); the step turns the rank's gradients into fp32 in one piece, or into one flat buffer to be reduced.
    """
    zero = settings["zero_optimization"]
    stage, weight = int(zero["stage"]), run.model.torch_dtype.itemsize
    everything, trained = trace.parameters, trace.trainable
    part = math.ceil(trained / ranks) if stage else trained
    master = 0 if stage == 0 and weight == FP32 else FP32 * part
    parameters = weight * everything
    if stage == 3:  # gathered parameters stay until they are used again, up to a number of them
        gathered = int(zero.get("stage3_max_reuse_distance", ZERO3_REUSE_DISTANCE))
        parameters = weight * (math.ceil(everything / ranks) + min(everything, gathered))
    accumulating = run.trainer.gradient_accumulation_steps > 1
    gradients = {2: 1 + accumulating, 3: 1}.get(stage, 1) * weight * (part if stage >= 2 else trained)
    bucket = weight * int(zero["reduce_bucket_size"]) if stage else 0
    if stage < 3:  # ZeRO-3 allocates it whole
        bucket = min(bucket, weight * trained)
    step = FP32 * part + (weight * part if stage in (1, 2) else 0)
    states = run.optimizer.state_bytes_per_parameter * part
    optimizer, host = master + states, 0
    if _on_host(zero, "offload_optimizer"):  # its fp32 gradients as well
        optimizer, step, host = 0, 0, master + states + FP32 * part
    if _on_host(zero, "offload_param"):
        shard = weight * math.ceil(everything / ranks)
        parameters, host = parameters - shard, host + shard
    return EngineBytes(parameters, optimizer, gradients, bucket, step, host)


def _on_host(zero: dict[str, Any], section: str) -> bool:
    return bool((zero.get(section) or {}).get("device", "none") != "none")


def trace_model(
    run: Run, config: Any, load: Load, device: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> Trace:
    """Return the peaks of the model's own forward and backward on fake tensors of `device`."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # The mode remembers tensors by weak references, and torch converts no parameter that has any: peft does that.
    mode.fake_tensor_converter.set_tensor_memo = lambda *_: None
    tokens, added = _vocabulary(run, tokenizer)
    with mode, distributed.without_sequence_group(), _experts_in_any_dtype():
        with torch.device(device):
            skeleton = run.model.create_meta_model(config)
            fit_vocabulary(skeleton, tokens, added, run.tokenizer.pad_vocab_to_multiple_of)
            model: torch.nn.Module = skeleton
            saved, largest = quantised(run, model)
            for converter in run.converters:
                model = converter.convert(model)
        run.optimizer.parameter_groups(model, 1.0, 0.0)  # its patterns must match something, as they must in the run
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        staying = 0
        for parameter in trained:
            if run.deepspeed.stage >= 2:  # gradients leave the parameters as soon as they are there
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
            else:
                staying += parameter.numel() * parameter.itemsize
        weights = sum(p.numel() * p.itemsize for p in model.parameters())
        passes = min(2, run.trainer.gradient_accumulation_steps)
        with run.trainer.on_meta_model(model):
            peaks = []
            for supervised in (1, load.supervised):
                model.zero_grad()
                batch = _batch(load, supervised, run.data.packs).to(torch.device(device))
                peaks.append(_peak(run, model, batch, device, passes))
    everything = sum(p.numel() for p in model.parameters())
    buffers = sum(b.numel() * b.itemsize for b in model.buffers())
    other = buffers + weights - everything * run.model.torch_dtype.itemsize - saved
    (least, _), (most, host) = peaks
    trainable = sum(p.numel() for p in trained)
    return Trace(everything, trainable, other, least - staying + largest, max(0, most - least), host)


@contextmanager
def _experts_in_any_dtype() -> Iterator[None]:
    """Describe products of experts by transformers' own operator: torch's grouped product has a description for bf16 alone."""
    import torch
    from transformers.integrations import moe

    original = getattr(moe, "_can_use_grouped_mm", None)  # not public, so it may be gone
    if original is None:
        yield
        return
    moe._can_use_grouped_mm = lambda x, weight, offs: weight.dtype == torch.bfloat16 and original(x, weight, offs)
    try:
        yield
    finally:
        moe._can_use_grouped_mm = original


def _vocabulary(run: Run, tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, list[int]]:
    """Return the tokens that the model must have rows for, as far as its own may not do, and the ids of those added."""
    if not run.tokenizer.add_tokens and not run.tokenizer.add_special_tokens:
        return 0, []
    tokenizer = tokenizer or run.tokenizer.create_tokenizer()
    return len(tokenizer), run.tokenizer.added_ids(tokenizer)


def quantised(run: Run, model: Any) -> tuple[int, int]:
    """Return the bytes that loading `model` in few bits saves, and those of the largest weight while it is unpacked."""
    if run.peft.quantization_config(run.model.torch_dtype) is None:
        return 0, 0
    import torch

    linear = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    packed = [weight for weight in linear if weight is not model.get_output_embeddings().weight]
    saved = sum(weight.numel() * (weight.itemsize - run.peft.bytes_per_weight(weight)) for weight in packed)
    return round(saved), max(weight.nbytes for weight in packed)


def _peak(run: Run, model: torch.nn.Module, batch: Batch, device: str, passes: int) -> tuple[int, int]:
    """Return the most bytes alive at once during `passes` forward and backward passes, weights and buffers left out.

    First those on the device, then those elsewhere, to where activations are offloaded.
    """
    live = _live_bytes(device)
    for tensor in (*model.parameters(), *model.buffers()):
        live.add(tensor)
    base = live.here.now
    with live:
        for _ in range(passes):
            run.trainer.loss(batch).backward()
    return int(live.here.peak - base), int(live.elsewhere.peak)


def _batch(load: Load, supervised: int, packed: bool) -> Batch:
    """Return a micro-batch without content; a packed one is one document, as the data may bring it."""
    import torch

    ids = torch.zeros(load.rows, load.tokens, dtype=torch.int64)
    rows = torch.zeros(supervised, dtype=torch.int64)
    bounds = torch.zeros(2, dtype=torch.int32) if packed else None
    return Batch(ids, ids.clone(), rows, rows.clone(), rows.clone(), bounds, load.tokens, num_tokens=ids.numel())


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


@dataclass
class _Level:
    """Bytes alive in one memory, and the most there were."""

    now: int = 0
    peak: int = 0

    def change(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def _live_bytes(device: str) -> Any:
    """Return a mode that counts the bytes of all tensors alive that were added or made under it, `here` on the device."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_iter

    class LiveBytes(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.here, self.elsewhere = _Level(), _Level()
            self._known: dict[int, Any] = {}

        def add(self, tensor: torch.Tensor) -> None:
            storage = tensor.untyped_storage()
            key, size = id(storage), storage.nbytes()
            if key in self._known:
                return
            level = self.here if tensor.device.type == device else self.elsewhere
            level.change(size)
            self._known[key] = weakref.ref(storage, lambda _: self._gone(key, size, level))

        def _gone(self, key: int, size: int, level: _Level) -> None:
            del self._known[key]
            level.change(-size)

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for tensor in tree_iter(result):
                if isinstance(tensor, torch.Tensor):
                    self.add(tensor)
            return result

    return LiveBytes()


def device_memory() -> int | None:
    """Return the bytes of this machine's GPU, or None without one."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def describe(run: Run, supervised_share: float = 1.0, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
    """Return the lines of the estimate, or why there is none: an estimate that fails must not end a run."""
    try:
        return _estimated(run, supervised_share, tokenizer)
    except Exception as error:
        return _failed(error)


def _estimated(run: Run, supervised_share: float, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    from arctic_hydra import memory

    found = memory.estimate(run, memory.largest_load(run, supervised_share), tokenizer)
    first, *more = found.lines(memory.device_memory())
    return [f"memory   {first}", *(f"         {line}" for line in more)]


def _failed(error: Exception) -> list[str]:
    return [f"memory   not estimated: {(str(error).splitlines() or [type(error).__name__])[0]}"]
