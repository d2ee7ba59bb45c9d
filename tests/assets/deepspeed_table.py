"""Makes the table of DeepSpeed's keys from the installed DeepSpeed: `python -m tests.assets.deepspeed_table` writes it.

Sections that DeepSpeed reads through a pydantic model are taken from that model; the keys of the others, and those at the
top, from its constants `X = "key"` and `X_DEFAULT`, whose defaults give the types.
"""

from __future__ import annotations

import importlib
import json
import os
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

from arctic_hydra import engine
from arctic_hydra.assets.deepspeed_keys import TABLE

Entry = dict[str, Any]

NAMES = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "text",
    Path: "text",
    list: "list",
    tuple: "list",
    dict: "dict",
}
TOP_LEVEL = """
    TRAIN_BATCH_SIZE TRAIN_MICRO_BATCH_SIZE_PER_GPU GRADIENT_ACCUMULATION_STEPS MANAGED_GRADIENT_ACCUMULATION STEPS_PER_PRINT
    DUMP_STATE DISABLE_PYTHON_GC DISABLE_ALLGATHER COMMUNICATION_DATA_TYPE SEQ_PARALLEL_COMMUNICATION_DATA_TYPE
    PRESCALE_GRADIENTS GRADIENT_PREDIVIDE_FACTOR GRADIENT_ALLREDUCE_OP GRADIENT_CLIPPING ZERO_ALLOW_UNTESTED_OPTIMIZER
    ZERO_FORCE_DS_CPU_OPTIMIZER WALL_CLOCK_BREAKDOWN MEMORY_BREAKDOWN USE_DATA_BEFORE_EXPERT_PARALLEL DATALOADER_DROP_LAST
    LOG_LEVEL VOCABULARY_SIZE
""".split()
FREE = "autotuning data_efficiency datastates_ckpt expert_parallel pipeline optimizer scheduler".split()
"""Sections whose inner keys DeepSpeed passes on or reads in many places: only their type is checked."""
DTYPES = ["fp16", "bf16", "fp32"]


def table() -> Entry:
    """Return the table of the installed DeepSpeed."""
    version = engine.import_deepspeed().__version__
    config = importlib.import_module("deepspeed.runtime.config")
    removed = config._REMOVED_TOP_LEVEL_CONFIG_KEYS
    keys = _scalars() | _models(config) | _sections() | {name: {"types": ["dict"]} for name in FREE}
    keys |= {name: {"removed": _sentence(text)} for name, text in removed.items()}
    keys["zero_optimization"]["keys"] |= {
        name: {"removed": _sentence(text)} for name, text in config._REMOVED_ZERO_CONFIG_KEYS.items()
    }
    for size in ("sequence_parallel_size", "data_parallel_size"):  # read by `deepspeed.initialize`
        keys[size] = {"types": ["integer"], "minimum": 1}
    return {"deepspeed": version, "keys": dict(sorted(keys.items()))}


def _sentence(text: str) -> str:
    return text.partition(" See http")[0].strip().rstrip(".")


def _models(config: Any) -> dict[str, Entry]:
    """Return the sections with a model, by top-level key."""

    def model(module: str, name: str) -> Entry:
        return _section(getattr(importlib.import_module(f"deepspeed.{module}"), name))

    bf16 = model("runtime.precision_config", "DeepSpeedBF16Config")
    monitor = model("monitor.config", "DeepSpeedMonitorConfig")["keys"]
    zero = model("runtime.zero.config", "DeepSpeedZeroConfig")
    for entry in zero["keys"]["leaf_module"]["keys"].values():
        entry["types"].append("text")  # its validator wraps a single name in a list
    timer = model("utils.config", "DeepSpeedThroughputTimerConfig")
    return {
        "zero_optimization": zero,
        "bf16": bf16,
        "bfloat16": bf16,
        "fp16": model("runtime.precision_config", "DeepSpeedFP16Config"),
        "comms_logger": model("comm.config", "CommsLoggerConfig"),
        "compile": model("compile.config", "CompileConfig"),
        "hybrid_engine": _section(config.HybridEngineConfig),
        "tensor_parallel": model("runtime.tensor_parallel.config", "TPTrainingConfig"),
        "timers": {"types": ["dict"], "keys": {"throughput": timer}},
        "weight_quantization": model("inference.config", "WeightQuantConfig"),
        **monitor,
    }


def _section(model: Any) -> Entry:
    keys = {}
    for name, item in sorted(model.model_fields.items()):
        entry = _entry(item.annotation) | _bounds(item.metadata)
        for key in (name, *([item.alias] if item.alias else [])):
            keys[key] = entry
    return {"types": ["dict"], "auto": True, "keys": keys}


def _entry(hint: Any) -> Entry:
    """Return the entry of a type hint of a model's field."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        parts = [_entry(argument) for argument in arguments if argument is not type(None)]
        null = ["null"] if type(None) in arguments else []
        merged = {key: value for part in parts for key, value in part.items()}
        return merged | {"types": [kind for part in parts for kind in part["types"]] + null}
    if origin is typing.Literal:
        return {"types": ["any"], "one_of": list(arguments)}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"types": ["any"], "one_of": [member.value for member in hint]}
    if isinstance(hint, type) and hasattr(hint, "model_fields"):
        return _section(hint)
    if origin is list and arguments:
        return {"types": ["list"], "items": _entry(arguments[0])}
    return {"types": [NAMES.get(origin or hint, "any")]}


def _bounds(metadata: list[Any]) -> Entry:
    names = {"gt": "above", "ge": "minimum", "lt": "below", "le": "maximum"}
    return {names[bound]: getattr(item, bound) for item in metadata for bound in names if hasattr(item, bound)}


def _default(value: Any) -> Entry:
    """Return the entry of a key without a model, whose default has the type that DeepSpeed expects."""
    return {"types": ["any"] if value is None else [{bool: "flag"}.get(type(value)) or NAMES[type(value)]]}


def _scalars() -> dict[str, Entry]:
    constants = importlib.import_module("deepspeed.runtime.constants")
    found = {getattr(constants, name): _default(getattr(constants, f"{name}_DEFAULT")) for name in TOP_LEVEL}
    for key in ("steps_per_print", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        found[key] = {"types": ["integer", "null"], "minimum": 1}
    found["steps_per_print"]["minimum"] = 0
    for key in ("communication_data_type", "seq_parallel_communication_data_type"):
        found[key] = {"types": ["any"], "one_of": [*DTYPES, None]}
    found["gradient_allreduce_op"] = {"types": ["any"], "one_of": [*constants.GRADIENT_ALLREDUCE_OP_SUPPORTED]}
    found["gradient_clipping"] |= {"minimum": 0}
    found["gradient_predivide_factor"] |= {"above": 0}
    return found


def _constants(module: str, prefix: str, **more: Entry) -> Entry:
    """Return a section without a model: its keys are the constants of `module` with a prefix and a default."""
    values = vars(importlib.import_module(f"deepspeed.{module}"))
    names = [name for name in values if name.startswith(prefix) and f"{name}_DEFAULT" in values]
    keys = {values[name]: _default(values[f"{name}_DEFAULT"]) for name in names if isinstance(values[name], str)}
    return {"types": ["dict"], "keys": dict(sorted((keys | more).items()))}


def _sections() -> dict[str, Entry]:
    """Return the sections that DeepSpeed reads key by key."""
    names = importlib.import_module("deepspeed.runtime.model_checkpointing.constants")
    dtype = {"types": ["any"], "one_of": [*DTYPES, None]}
    writer = _constants(names.__name__.removeprefix("deepspeed."), "CHECKPOINT_IO_")["keys"]
    writer |= {names.CHECKPOINT_WRITER_DECOUPLED: {"types": ["flag"]}}
    for name in ("CHECKPOINT_WRITER_TYPE", "CHECKPOINT_DATA_PARALLEL"):
        writer[getattr(names, name)] = {"types": ["text", "null"]}
    steps = {"types": ["integer", "null"]}
    activations = _constants("runtime.activation_checkpointing.config", "ACT_CHKPT_", number_checkpoints=steps)
    checkpoint = {
        "tag_validation": {"types": ["text"]},
        "checkpoint_serialization": {"types": ["flag"]},
        "load_universal": {"types": ["flag"]},
        "use_node_local_storage": {"types": ["flag"]},
        "parallel_write": {"types": ["dict"], "keys": {"pipeline_stage": {"types": ["flag"]}}},
        "writer": {"types": ["dict", "null"], "keys": dict(sorted(writer.items()))},
    }
    data_types = {
        "grad_accum_dtype": dtype, "param_dtype": dtype, "buffer_dtype": dtype,
        "keep_in_fp32_modules": {"types": ["text", "list"]},
    }  # fmt: skip
    autocast = {
        "enabled": {"types": ["flag"]}, "dtype": {"types": ["text"]},
        "lower_precision_safe_modules": {"types": ["list"], "items": {"types": ["text"]}},
    }  # fmt: skip
    output = {"types": ["text", "null"]}
    return {
        "activation_checkpointing": activations,
        "aio": _constants("runtime.swap_tensor.constants", "AIO_"),
        "checkpoint": {"types": ["dict"], "keys": checkpoint},
        "data_types": {"types": ["dict"], "keys": data_types},
        "flops_profiler": _constants("profiling.constants", "FLOPS_PROFILER_", output_file=output),
        "torch_autocast": {"types": ["dict"], "keys": autocast},
    }


def text() -> str:
    """Return the table as the JSON of the package's file: one key of the top level per line."""
    made = table()
    lines = [f"  {json.dumps(key)}: {json.dumps(entry, sort_keys=True)}" for key, entry in made["keys"].items()]
    return f'{{"deepspeed": {json.dumps(made["deepspeed"])}, "keys": {{\n' + ",\n".join(lines) + "\n}}\n"


if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    TABLE.write_text(text(), encoding="utf-8")
