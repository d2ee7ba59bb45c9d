"""DeepSpeed's settings and the checkpoint engines of a recipe of ArcticTraining."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arctic_hydra.assets import deepspeed_keys
from arctic_hydra.errors import ConfigError
from arctic_hydra.human_numbers import convert_leaves
from arctic_hydra.migrate.experiment import Experiment
from arctic_hydra.migrate.key_map import mapped_keys
from arctic_hydra.migrate.recipe import fields_of

_FROM_RUN = (
    "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps sequence_parallel_size bf16 bfloat16 fp16"
).split()
"""Settings that follow from the rest of a config, there and here."""
_DEFAULT_STAGE = 2
"""ZeRO stage of a recipe that has no `zero_optimization`; with one, DeepSpeed's own default is 0."""
_OFFLOADS = {"offload_optimizer": "offload_optimizer", "offload_param": "offload_parameters"}
_ENGINES = {"": "deepspeed", "deepspeed": "deepspeed", "huggingface": "hf"}


def convert_deepspeed(made: Experiment, given: Any) -> None:
    """Choose the option of the ZeRO stage, and move all other settings to `deepspeed.config`."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"deepspeed: got {given!r}, expected a dictionary of DeepSpeed's settings")
    rest = {key: value for key, value in convert_leaves(dict(given)).items() if key not in _FROM_RUN}
    zero = fields_of("deepspeed.zero_optimization", rest.pop("zero_optimization", {"stage": _DEFAULT_STAGE}) or {})
    stage = zero.pop("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise ConfigError(f"deepspeed.zero_optimization.stage: got {stage!r}, expected 0, 1, 2 or 3")
    made.choose("deepspeed", f"zero{stage}")
    for name, ours in _OFFLOADS.items():
        target = zero.get(name)
        if (
            isinstance(target, Mapping)
            and str(target.get("device")) == "cpu"
            and target.keys() <= {"device", "pin_memory"}
        ):
            del zero[name]
            made.values[f"deepspeed.{ours}"] = True
    if "gradient_clipping" in rest:
        made.values["deepspeed.gradient_clipping"] = rest.pop("gradient_clipping")
    if zero:
        rest["zero_optimization"] = zero
    for key, value in rest.items():
        if problems := list(deepspeed_keys.problems({key: value})):
            made.lost += [f"deepspeed: {problem.removeprefix('deepspeed.config.')}" for problem in problems]
        else:
            made.values.setdefault("deepspeed.config", {})[key] = value


def convert_checkpoints(made: Experiment, given: Any) -> None:
    """Choose the engines of a recipe, and the one that a stopped run resumes from."""
    made.options["checkpoint"] = []
    known = {mapped.key for mapped in mapped_keys("arctictraining")}
    for entry in given if isinstance(given, list) else [given]:
        if not isinstance(entry, Mapping):
            raise ConfigError(f"checkpoint: got {entry!r}, expected engines: a list of fields with values")
        kind = str(entry.get("type") or "")
        name = _ENGINES.get(kind)
        if name is None or f"checkpoint.{name}.save_every_n_steps" in made.values:
            why = "is a custom engine" if name is None else "appears twice; here an engine saves to one place"
            made.lost.append(f"checkpoint: {kind or name} {why}")
            continue
        made.choose("checkpoint", f"[{name}]")
        values = {"save_every_n_steps": 0, "save_end_of_training": False} | dict(entry)
        for field, value in values.items():
            if f"checkpoint.{field}" not in known:
                made.lost.append(f"checkpoint.{field}: ArcticTraining has no such field")
            elif field != "type" and not (name == "hf" and field == "auto_resume"):
                made.values[f"checkpoint.{name}.{field}"] = value
    if "deepspeed" not in made.options["checkpoint"]:
        made.choose("checkpoint", "[deepspeed]")
        made.values |= {
            "checkpoint.deepspeed.save_every_n_steps": 0,
            "checkpoint.deepspeed.save_end_of_training": False,
        }
        made.changed.append(
            "checkpoint.deepspeed: added; it saves only when the run is stopped, and the same command resumes"
        )
