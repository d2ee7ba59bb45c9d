"""Loads an export as a user would: with plain transformers, with peft, or with `load_export`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arctic_hydra.checkpoint.hf import lacks_base
from arctic_hydra.component import CAUSAL_LM
from arctic_hydra.model.hf import keep_4bit_differentiable
from arctic_hydra.model.names import SPEC_MODEL_TYPE
from arctic_hydra.model.spec import load_export
from arctic_hydra.trainer.verification.expectation import Expectation

SPARE = 1.2
"""Memory to leave free, relative to the weights: for the largest one, which is copied, and for activations."""
TOKENS_TO_COMPUTE = 128
SLOWEST_FLOPS = 2e10
"""Floating-point operations per second of a slow CPU, for the estimate of the time."""


@dataclass(kw_only=True)
class Loaded:
    """An export in memory."""

    model: Any
    library: str
    """Name of the library that loaded it."""
    missing: list[str] = field(default_factory=list)
    """Names of weights that its files lack, and that transformers initializes."""


def reason_against(folder: Path, expected: Expectation) -> str:
    """Return why the model of an export cannot be loaded here a second time; empty if it can."""
    adapter = _read(folder / "adapter_config.json")
    if expected.problem:
        return expected.problem
    if lacks_base(adapter):
        return "the base model of the adapter is in no file that peft could load"
    if not adapter and (problem := _unknown(_read(folder / "config.json"), expected)):
        return problem
    if expected.quantization is not None and not adapter:
        return "the base was quantized in training, so the merged model has other outputs"
    needed, free = _needed(folder, expected), _free(expected)
    if needed > free:
        return f"it needs {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free"
    seconds = 2 * expected.parameters * TOKENS_TO_COMPUTE / SLOWEST_FLOPS
    if seconds > expected.reload_seconds:
        return f"it may take {seconds / 60:.0f} minutes on the CPU"
    return ""


def load(folder: Path, expected: Expectation) -> Loaded:
    """Load the model of an export on the CPU, in the data type of training. Raises whatever its library raises."""
    import transformers

    if (folder / "adapter_config.json").exists():
        return _load_adapter(folder, expected)
    if _read(folder / "config.json").get("model_type") == SPEC_MODEL_TYPE:
        return Loaded(model=load_export(folder), library="load_export")
    family = getattr(transformers, expected.auto_class)
    model, about = family.from_pretrained(
        folder, local_files_only=True, trust_remote_code=expected.trusts_remote_code, output_loading_info=True
    )
    return Loaded(model=model.eval(), library="transformers", missing=sorted(about["missing_keys"]))


def _load_adapter(folder: Path, expected: Expectation) -> Loaded:
    import peft

    options: dict[str, Any] = {"dtype": expected.dtype, "trust_remote_code": expected.trusts_remote_code}
    if expected.quantization is not None:
        options["quantization_config"] = expected.quantization
    if expected.auto_class == CAUSAL_LM:
        family: Any = peft.AutoPeftModelForCausalLM
    else:
        family, options = peft.AutoPeftModelForSequenceClassification, {**options, "num_labels": 1}
    model = family.from_pretrained(str(folder), **options).eval()
    if expected.quantization is not None:
        keep_4bit_differentiable(model)  # the kernels for its other form, without a backward pass, round in another way
    return Loaded(model=model, library="peft")


def _unknown(config: dict[str, Any], expected: Expectation) -> str:
    """Return why transformers cannot load a model with this config; empty if it can."""
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind == SPEC_MODEL_TYPE or kind in CONFIG_MAPPING or (expected.trusts_remote_code and config.get("auto_map")):
        return ""
    return f"no library loads a model of type {kind!r}" if kind else "no library loads this class of models"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _needed(folder: Path, expected: Expectation) -> float:
    """Return the bytes that the model takes when it is loaded, an adapter with its base."""
    if expected.quantization is not None:
        return SPARE * expected.held_bytes
    if (folder / "adapter_config.json").exists():
        return SPARE * expected.parameters * int(expected.dtype.itemsize)
    return SPARE * sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _free(expected: Expectation) -> float:
    """Return the free bytes of the memory that the model is loaded to: a quantized one to the GPU, if there is one."""
    import psutil
    import torch

    if expected.quantization is not None and torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    return min(float(psutil.virtual_memory().available), _free_in_group())


def _free_in_group() -> float:
    """Return the bytes that the control group of this process may still take; infinity without a limit.

    Cached files do not count as taken: the kernel drops them when memory is needed.
    """
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return float("inf")
    taken = dict(line.split() for line in lines)
    return float("inf") if limit == "max" else float(int(limit) - int(taken["anon"]) - int(taken["shmem"]))
