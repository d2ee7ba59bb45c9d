"""Estimates the memory that each rank needs, before a run starts: formulas for the engine, a dry run for the model.

The model's forward and backward passes run on fake tensors, which have shapes but no data. The estimate therefore uses
the actual code of every architecture, converter and checkpointing option, takes about a second and loads no weights.
`EngineBytes` holds what DeepSpeed allocates in addition (Rajbhandari et al. 2020, section 3, plus its buckets).

All sizes are in bytes.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from arctic_hydra import distributed
from arctic_hydra.assembly import run_model
from arctic_hydra.config import Run
from arctic_hydra.data.batch import Batch
from arctic_hydra.distributed import count_gpus
from arctic_hydra.model.names import DTYPE_ALIASES
from arctic_hydra.model.score_head import score_head
from arctic_hydra.model.vocabulary import fit_vocabulary

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

GIB = 2**30
FP32 = 4
ZERO3_REUSE_DISTANCE = 10**9
"""DeepSpeed's default of `stage3_max_reuse_distance`, in parameters."""


@dataclass(frozen=True)
class MicroBatchShape:
    """The size of one micro-batch of one rank."""

    rows: int
    tokens: int
    """Tokens per row, in this rank's share of the sequence."""
    supervised: int
    """Positions passed to the head."""


@dataclass(frozen=True)
class ModelPeaks:
    """Peaks of a forward and backward pass, in bytes, without the weights, which are already allocated."""

    parameters: int
    trainable: int
    other: int
    """Buffers and parameters that are never sharded, minus what quantized weights save."""
    activations: int
    """Peak without weights and the gradients that remain attached to them, with one supervised position."""
    head: int
    """Increase of that peak by the supervised positions."""
    host: int = 0
    """Activations offloaded to host memory until the backward pass; 0 if the device uses host memory."""
    scoring: int = 0
    """Copies of the model that are in memory only before the first step, with the peak of their forward pass."""


@dataclass(frozen=True)
class EngineBytes:
    """Memory that DeepSpeed allocates on one rank, in bytes."""

    parameters: int
    optimizer: int
    gradients: int
    buckets: int
    step: int
    """Temporary memory of the optimizer step, after activations are freed."""
    host: int = 0
    """Memory offloaded to the host, not included in the other fields."""


@dataclass(frozen=True)
class Estimate:
    """The memory of one rank, in bytes."""

    trace: ModelPeaks
    engine: EngineBytes
    ranks: int
    device: str

    @property
    def held(self) -> int:
        """Memory allocated in both the backward pass and the optimizer step."""
        engine = self.engine
        offloaded = engine.host if self.device == "cpu" else 0  # on the CPU, offloaded state is in the same memory
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
    def scoring(self) -> int:
        """Peak before the first step, while another model scores the data; 0 if none does."""
        return self.held + self.trace.scoring if self.trace.scoring else 0

    @property
    def total(self) -> int:
        """Peak of the whole run."""
        return max(self.backward, self.step, self.scoring)

    @property
    def host(self) -> int:
        """Memory that offloading uses on the host, for all ranks of a machine."""
        return (self.engine.host + self.trace.host) * self.ranks

    def lines(self, memory: int | None = None) -> list[str]:
        """Return the estimate as text; `memory` is the capacity of the device, in bytes."""
        engine, trace = self.engine, self.trace
        phases = {"backward pass": self.backward, "optimizer step": self.step, "scoring of the data": self.scoring}
        phase = max(phases, key=lambda name: phases[name])
        parts = {
            "parameters": engine.parameters + trace.other,
            "optimizer": engine.optimizer,
            "gradients and buckets": engine.gradients + engine.buckets,
            "activations": trace.activations,
            "head": trace.head,
        }
        figures = ", ".join(f"{name} {_in_gib(size)}" for name, size in parts.items())
        host = f"; {self.host / GIB:.3g} GiB of host memory for all ranks" if self.host and self.device != "cpu" else ""
        lines = [
            f"peak {self.total / GIB:.3g} GiB of tensors per rank (predicted), in the {phase}{host}",
            f"of which {figures} GiB; in the optimizer step {_in_gib(engine.step)} GiB",
        ]
        if memory is not None:
            share = self.total / memory
            verdict = "fits" if share < 0.95 else "DOES NOT FIT"
            device = "GPU" if self.device == "cuda" else self.device
            lines.append(f"{verdict}: {share:.0%} of the {memory / GIB:.4g} GiB of this machine's {device}")
        return lines


def _in_gib(size: float) -> str:
    return f"{size / GIB:.3g}" if size >= GIB / 1000 else "below 0.001" if size else "0"


def estimate(
    run: Run, load: MicroBatchShape | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> Estimate:
    """Return the memory that `run` needs per rank; raises ModelError if the model cannot be created on this machine.

    `tokenizer` is the run's; if the run adds tokens and it is not given, it is created here.
    """
    device = "cuda" if count_gpus() else "cpu"
    ranks = run.world_size_wanted
    config = run.trainer.create_config(run.model)
    settings = run_model.engine_config(run, config, ranks)
    trace = measure_model(run, config, load or largest_micro_batch(run), device, tokenizer)
    return Estimate(trace, engine_bytes(run, settings, trace, ranks), run.ranks_per_node, device)


def largest_micro_batch(run: Run, supervised_share: float = 1.0) -> MicroBatchShape:
    """Return the largest micro-batch that the data can produce; 2,048 tokens per row if the data sets no limit."""
    rows, length = run.data.largest_batch(run.trainer.micro_batch_size)
    tokens = math.ceil((length or 2048) / run.trainer.sequence_parallel_size)
    return MicroBatchShape(rows, tokens, max(1, round(rows * tokens * supervised_share)))


def engine_bytes(run: Run, settings: dict[str, Any], trace: ModelPeaks, ranks: int) -> EngineBytes:
    """Return the memory that DeepSpeed allocates on each of `ranks` ranks under its configuration `settings`.

    Measured with DeepSpeed 0.19: optimizer state is in fp32, as is a master copy of the weights, except at ZeRO-0 in fp32,
    which has no copy. ZeRO-0 and 1 keep full gradients at the parameters, ZeRO-2 and 3 only the rank's part (ZeRO-2 twice
    while accumulating). The step converts the rank's gradients to fp32 at once, or into one flat buffer for the reduction.
    """
    zero = settings["zero_optimization"]
    stage, weight = int(zero["stage"]), run.model.torch_dtype.itemsize
    everything, trained = trace.parameters, trace.trainable
    part = math.ceil(trained / ranks) if stage else trained
    master = 0 if stage == 0 and weight == FP32 else FP32 * part
    parameters = weight * everything
    if stage == 3:  # gathered parameters stay for reuse, up to a maximum
        gathered = int(zero.get("stage3_max_reuse_distance", ZERO3_REUSE_DISTANCE))
        parameters = weight * (math.ceil(everything / ranks) + min(everything, gathered))
    accumulating = run.trainer.gradient_accumulation_steps > 1
    gradients = {2: 1 + accumulating, 3: 1}.get(stage, 1) * weight * (part if stage >= 2 else trained)
    summed = (settings.get("data_types") or {}).get("grad_accum_dtype")
    if run.model.dtype == "bf16" and summed in DTYPE_ALIASES["fp32"]:
        if stage == 1:  # every rank sums all of them, in addition to those of the micro-batch
            gradients += FP32 * trained
        elif stage == 3:
            gradients = FP32 * part
    bucket = weight * int(zero["reduce_bucket_size"]) if stage else 0
    if stage < 3:  # ZeRO-3 always allocates the full bucket
        bucket = min(bucket, weight * trained)
    step = FP32 * part + (weight * part if stage in (1, 2) else 0)
    averages = sum(callback.bytes_per_parameter for callback in run.callback.values())
    states = (run.optimizer.state_bytes_per_parameter + averages) * part
    optimizer, host = master + states, 0
    if _on_host(zero, "offload_optimizer"):  # including its fp32 gradients
        optimizer, step, host = 0, 0, master + states + FP32 * part
    if _on_host(zero, "offload_param"):
        shard = weight * math.ceil(everything / ranks)
        parameters, host = parameters - shard, host + shard
    return EngineBytes(parameters, optimizer, gradients, bucket, step, host)


def _on_host(zero: dict[str, Any], section: str) -> bool:
    return bool((zero.get(section) or {}).get("device", "none") != "none")


def measure_model(
    run: Run, config: Any, load: MicroBatchShape, device: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> ModelPeaks:
    """Return the peaks of the model's forward and backward passes, measured with fake tensors on `device`."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # The mode memoizes tensors by weak references; torch refuses to convert parameters that have any, and peft converts them.
    mode.fake_tensor_converter.set_tensor_memo = lambda *_: None
    tokens, added = _vocabulary(run, tokenizer)
    with mode, distributed.without_sequence_group(), _experts_in_any_dtype():
        with torch.device(device):
            skeleton = run.model.create_meta_model(config)
            fit_vocabulary(skeleton, tokens, added, run.tokenizer.pad_vocab_to_multiple_of)
            model: torch.nn.Module = skeleton
            saved, largest = quantized_bytes(run, model)
            for converter in run.converters:
                model = converter.convert(model)
        run.optimizer.parameter_groups(model, 1.0, 0.0)  # raises if its patterns match no parameter, as in the run
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        staying = 0
        for parameter in trained:
            if run.deepspeed.stage >= 2:  # these stages remove gradients from the parameters immediately
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
            else:
                staying += parameter.numel() * parameter.itemsize
        weights = sum(p.numel() * p.itemsize for p in model.parameters())
        passes = min(2, run.trainer.gradient_accumulation_steps)
        with run.trainer.with_fake_tensors(model):
            peaks = []
            for supervised in (1, load.supervised):
                model.zero_grad()
                batch = _batch(load, supervised, run.data.packs).to(torch.device(device))
                peaks.append(_peak(run, model, batch, device, passes))
            frozen = run.trainer.scoring_bytes(model) - run.trainer.scoring_models(model) * saved
            scoring = _share(run, frozen) + _peak(run, model, batch, device, 0)[0] if frozen else 0
    everything = sum(p.numel() for p in model.parameters())
    buffers = sum(b.numel() * b.itemsize for b in model.buffers())
    other = _share(run, run.trainer.frozen_bytes(model) - run.trainer.frozen_models(model) * saved)
    other += buffers + weights - everything * run.model.torch_dtype.itemsize - saved
    (least, _), (most, host) = peaks
    trainable = sum(p.numel() for p in trained)
    return ModelPeaks(everything, trainable, other, least - staying + largest, max(0, most - least), host, scoring)


def _share(run: Run, weights: int) -> int:
    """Return the bytes of a frozen copy of the weights on one rank."""
    return weights // (run.world_size_wanted if run.deepspeed.stage == 3 else 1)


@contextmanager
def _experts_in_any_dtype() -> Iterator[None]:
    """Use transformers' own operator for expert matmuls: torch's grouped matmul supports fake tensors only in bf16."""
    import torch
    from transformers.integrations import moe

    original = getattr(moe, "_can_use_grouped_mm", None)  # private, so a later version may not have it
    if original is None:
        yield
        return
    moe._can_use_grouped_mm = lambda x, weight, offs: weight.dtype == torch.bfloat16 and original(x, weight, offs)
    try:
        yield
    finally:
        moe._can_use_grouped_mm = original


def _vocabulary(run: Run, tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, list[int]]:
    """Return the vocabulary size to which the model must grow (0 if no tokens are added), and the ids of added tokens."""
    if not run.tokenizer.add_tokens and not run.tokenizer.add_special_tokens:
        return 0, []
    tokenizer = tokenizer or run.trainer.create_tokenizer(run.tokenizer)
    return len(tokenizer), run.tokenizer.added_ids(tokenizer)


def quantized_bytes(run: Run, model: Any) -> tuple[int, int]:
    """Return the bytes that quantization of `model` saves, and the size of its largest weight when dequantized."""
    if run.peft.quantization_config(run.model.torch_dtype) is None:
        return 0, 0
    import torch

    linear = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    head = model.get_output_embeddings() or score_head(model)
    packed = [weight for weight in linear if weight is not getattr(head, "weight", None)]
    saved = sum(weight.numel() * (weight.itemsize - run.peft.bytes_per_weight(weight)) for weight in packed)
    return round(saved), max(weight.nbytes for weight in packed)


def _peak(run: Run, model: torch.nn.Module, batch: Batch, device: str, passes: int) -> tuple[int, int]:
    """Return the peak bytes in `passes` forward and backward passes (0: one without gradients), without weights and buffers.

    The first value is for the device, the second for other memory, to which activations are offloaded.
    """
    import torch

    live = _live_bytes(device)
    for tensor in (*model.parameters(), *model.buffers()):
        live.add(tensor)
    base = live.here.now
    with live:
        for _ in range(passes):
            run.trainer.probed_loss(batch).backward()
        if not passes:
            with torch.no_grad():
                run.trainer.probed_loss(batch)
    return int(live.here.peak - base), int(live.elsewhere.peak)


def _batch(load: MicroBatchShape, supervised: int, packed: bool) -> Batch:
    """Return a dummy micro-batch; if packed, it is a single document, the largest that the data can produce."""
    import torch

    ids = torch.zeros(load.rows, load.tokens, dtype=torch.int64)
    rows = torch.zeros(supervised, dtype=torch.int64)
    bounds = torch.zeros(2, dtype=torch.int32) if packed else None
    dummy = Batch(ids, ids.clone(), rows, rows.clone(), rows.clone(), bounds, load.tokens, num_tokens=ids.numel())
    lengths = [load.tokens, 0] if packed else [load.tokens] * load.rows  # for a loss of pairs, which needs two
    return replace(dummy, document_lengths=lengths, document_K=rows.clone())


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


@dataclass
class _Level:
    """Bytes currently allocated in one memory, and their peak."""

    now: int = 0
    peak: int = 0

    def change(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def _live_bytes(device: str) -> Any:
    """Return a dispatch mode that counts the bytes of live tensors added or created under it; `here` is the device."""
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
