"""Converts a recipe of ArcticTraining.

Fields with the same values here are copied to the place that the table of keys names; `CONVERTERS` has the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from arctic_hydra.errors import ConfigError
from arctic_hydra.human_numbers import parse_human_number
from arctic_hydra.migrate.experiment import Experiment
from arctic_hydra.migrate.key_map import MappedKey, mapped_keys
from arctic_hydra.migrate.recipe import Recipe, fields_of, flatten
from arctic_hydra.migrate.recipe_engine import convert_checkpoints, convert_deepspeed
from arctic_hydra.migrate.recipe_sources import convert_sources

_TRAINERS = {"sft": "mix", "causal": "text", "dpo": "preference"}
"""The trainers, each with the data option for custom sources."""
PACK_FIELDS = ("always_max_length", "drop_last", "fuse_positions_prob", "repeat_to_pack_max_length")
_UNSAID = {
    "data.cache_fs_type": "auto",
    "ignore_label_index": -100,
    "logger.output_dir": "/dev/null",
    "train_log_metrics_path": "train-log-metrics.jsonl",
}
"""Values of fields without a counterpart that have no effect here, such as their defaults."""

Converter = Callable[[Experiment, Recipe, Any], None]


def convert(recipe: Mapping[str, Any], name: str, source: str) -> Experiment:
    """Return the experiment that trains as a recipe does; raises ConfigError if it is not one."""
    flat = flatten(recipe)
    made = Experiment(name, source)
    trainer = str(flat.get("type") or "sft")
    if trainer not in _TRAINERS:
        made.lost.append(f"type: {trainer} is a custom trainer; port it (docs/extending/trainers.md)")
        trainer = "sft"
    _choose_trainer(made, trainer)
    made.choose("model", "hf")
    made.choose("scheduler", "linear")
    known = {mapped.key: mapped for mapped in mapped_keys("arctictraining")}
    for key in _with_defaults(flat, trainer):
        value = flat.get(key)
        if key in CONVERTERS:
            CONVERTERS[key](made, flat, value)
        elif key not in known:
            made.lost.append(f"{key}: ArcticTraining has no such field")
        elif value is not None:
            _copy(made, known[key], value)
    return made


def _with_defaults(flat: Recipe, trainer: str) -> list[str]:
    """Return the fields to convert: those of the recipe, and those whose default is another one here."""
    always = ["deepspeed", "checkpoint", "data.max_length"]
    packs = {"sft": ["data.pack_samples"], "dpo": ["data.dpo_prompt_truncation_mode"]}.get(trainer, [])
    schedule = ["scheduler.name"] if any(key.startswith("scheduler.") for key in flat) else []
    return [*flat, *(key for key in always + packs + schedule if key not in flat)]


def _copy(made: Experiment, mapped: MappedKey, value: Any) -> None:
    """Copy a value to the equivalent key."""
    if not mapped.exists:
        if value and _UNSAID.get(mapped.key) != value:
            made.lost.append(f"{mapped.key}: {mapped.note.replace('`', '')}")
        return
    for option in mapped.options:
        group, name = option.split("=", 1)
        _choose_trainer(made, name) if group == "trainer" else made.choose(group, name)
    made.values[mapped.keys[0]] = value


def _type(group: str, known: tuple[str, ...], port: str) -> Converter:
    """Return the converter of a `type` whose known values other fields choose an option for."""

    def converter(made: Experiment, recipe: Recipe, value: Any) -> None:
        if value not in ("", None, *known):
            made.lost.append(f"{group}.type: {value} is a custom factory; {port}")

    return converter


def _skip(made: Experiment, recipe: Recipe, value: Any) -> None:
    """Leave out a field that the converter of another one reads."""


def _code(made: Experiment, recipe: Recipe, value: Any) -> None:
    made.lost.append(
        f"code: {value} extends classes of ArcticTraining; port them (docs/extending/code.md) and pass code=<file> on the command line"
    )


def _model_type(made: Experiment, recipe: Recipe, value: Any) -> None:
    if value == "liger":
        made.choose("model", "liger")
    elif value not in ("", None, "huggingface"):
        made.lost.append(f"model.type: {value} is a custom factory; port it (docs/extending/models.md)")


def _of_any_model(field: str) -> Converter:
    """Return the converter of a field that both `model=hf` and `model=liger` have; `model.type` chooses one of them."""

    def converter(made: Experiment, recipe: Recipe, value: Any) -> None:
        if value is not None:
            made.values[f"model.{field}"] = value

    return converter


def _attention(made: Experiment, recipe: Recipe, value: Any) -> None:
    if recipe.get("sequence_parallel_size") in (1, None):
        made.values["model.attn_implementation"] = value
    else:
        made.changed.append(f"model.attn_implementation: arctic_varlen instead of {value}, as ranks share sequences")


def _adapter(made: Experiment, recipe: Recipe, value: Any) -> None:
    if value is None:
        return
    given = fields_of("model.peft_config", value)
    kind = str(given.pop("peft_type", "")).upper()
    given.pop("task_type", None)
    if kind != "LORA":
        made.choose("peft", "any")
        made.values |= {"peft.peft_type": kind, **({"peft.config": given} if given else {})}
        return
    made.choose("peft", "lora")
    given = {"r": 8, "lora_alpha": 8} | {name: held for name, held in given.items() if held is not None}
    if "target_modules" not in given:
        made.changed.append(
            "model.peft_config.target_modules: unset, so all linear layers adapt; peft would choose some of them by the model's type, "
            "for Llama q_proj and v_proj; set peft.target_modules"
        )
    own = {mapped.key for mapped in mapped_keys("peft") if mapped.keys == (f"peft.{mapped.key}",)}
    made.values |= {f"peft.{name}": given.pop(name) for name in list(given) if name in own}
    if given:
        made.values["peft.config"] = given


def _optimizer_type(made: Experiment, recipe: Recipe, value: Any) -> None:
    name = str(value or "").removesuffix("_moe")
    if name in ("fused_adam", "cpu_adam"):
        made.choose("optimizer", name)
    elif name:
        made.lost.append(f"optimizer.type: {value} is a custom factory; adamw is used, see --help optimizer")


def _schedule(made: Experiment, recipe: Recipe, value: Any) -> None:
    """Convert type, name and settings of the schedule together."""
    name = str(recipe.get("scheduler.name") or "linear")
    settings = fields_of("scheduler.scheduler_specific_kwargs", recipe.get("scheduler.scheduler_specific_kwargs") or {})
    if recipe.get("scheduler.type") in ("wds", "wsd") or name in ("wsd", "warmup_stable_decay"):
        made.choose("scheduler", "wsd")
        _stable_schedule(made, recipe, settings)
    elif name in _SCHEDULES:
        made.choose("scheduler", _SCHEDULES[name])
        if name == "constant":  # which ignores the warmup
            made.values["scheduler.warmup_ratio"] = 0
        _schedule_settings(made, recipe, name, settings)
    else:
        made.lost.append(f"scheduler.name: there is no {name} here; linear is used, see --help scheduler")
    made.lost += [
        f"scheduler.scheduler_specific_kwargs.{key}: {made.options['scheduler']} has no such key" for key in settings
    ]
    if made.options["scheduler"] != "wsd":
        unread = [key for key in _STABLE if recipe.get(f"scheduler.{key}") is not None]
        made.lost += [f"scheduler.{key}: only schedules of the type wsd have it" for key in unread]


_SCHEDULES = {
    name: name for name in ("linear", "cosine", "polynomial", "inverse_sqrt", "constant", "cosine_with_min_lr")
}
_SCHEDULES |= {"constant_with_warmup": "constant", "cosine_warmup_with_min_lr": "cosine_with_min_lr"}
"""transformers' schedules, and the equivalent options."""


def _schedule_settings(made: Experiment, recipe: Recipe, name: str, settings: Recipe) -> None:
    """Move those settings that the schedule has here to its keys; rates become shares of the highest one."""
    given = (
        recipe.get(f"{section}.{key}") for section in ("optimizer", "scheduler") for key in ("lr", "learning_rate")
    )
    highest = _number(next((rate for rate in given if rate is not None), 5e-4))
    if not highest:
        raise ConfigError("optimizer.lr: got 0, with which nothing is learned; correct the recipe")
    if name == "polynomial":
        made.values["scheduler.power"] = settings.pop("power", 1.0)
        made.values["scheduler.min_lr_ratio"] = float(f"{_number(settings.pop('lr_end', 1e-7)) / highest:.6g}")
    elif name.endswith("with_min_lr"):
        share = settings.pop("min_lr_rate", None)
        lowest = settings.pop("min_lr", None)
        if share is None and lowest is not None:
            share = float(f"{_number(lowest) / highest:.6g}")
        made.values["scheduler.min_lr_ratio"] = 0 if share is None else share
    if name.startswith("cosine") and settings.get("num_cycles") == 0.5:
        del settings["num_cycles"]


def _stable_schedule(made: Experiment, recipe: Recipe, settings: Recipe) -> None:
    given = {key: recipe.get(f"scheduler.{key}", settings.pop(key, None)) for key in _STABLE}
    warmup, decay, lowest = given.values()
    if warmup is not None:
        made.values["scheduler.warmup_steps"] = warmup
    if lowest is not None:
        made.values["scheduler.min_lr_ratio"] = lowest
    if (shape := settings.pop("decay_type", "cosine")) != "linear":
        made.changed.append(f"scheduler.type: wsd decays linearly instead of by {shape}")
    total = _number(recipe.get("train_iters") or 0)
    rest = total - _number(warmup or 0)
    if decay is not None and rest > 0:
        made.values["scheduler.decay_ratio"] = float(f"{min(1.0, _number(decay) / rest):.6g}")
    elif decay is not None:
        made.lost.append(
            f"scheduler.num_decay_steps: {decay} steps; set scheduler.decay_ratio to their share of the steps after the warmup"
        )


_STABLE = ("num_warmup_steps", "num_decay_steps", "min_lr_ratio")


def _warmup(made: Experiment, recipe: Recipe, value: Any) -> None:
    if recipe.get("scheduler.name") != "constant":
        made.values["scheduler.warmup_ratio"] = value


def _log_interval(made: Experiment, recipe: Recipe, value: Any) -> None:
    shown, measured = recipe.get("loss_log_interval"), recipe.get("train_log_iter_interval", 1)
    made.values["log.interval"] = shown if shown else measured
    if shown and shown != measured:
        made.changed.append(f"loss_log_interval: {shown} is the interval of metrics.jsonl too, not {measured}")


def _memory_profiler(made: Experiment, recipe: Recipe, value: Any) -> None:
    if value is None:
        return
    made.choose("callback", "[memory_profiler]")
    made.values["callback.memory_profiler.mode"] = value
    for field, ours in (("mem_profiler_dir", "output_dir"), ("mem_profiler_max_entries", "max_entries")):
        if recipe.get(field) is not None:
            made.values[f"callback.memory_profiler.{ours}"] = recipe[field]


def _experts(made: Experiment, recipe: Recipe, value: Any) -> None:
    if value not in (None, 1):
        made.lost.append(f"expert_parallel_size: {value}; experts are divided among ranks by deepspeed=zero3 only")


def _reference(made: Experiment, recipe: Recipe, value: Any) -> None:
    value = fields_of("ref_model", value)
    if value.get("name_or_path") != recipe.get("model.name_or_path"):
        made.values["trainer.reference_path"] = value.get("name_or_path")
    made.lost += [
        f"ref_model.{field}: {held}; the reference is loaded as the model is, with model.{field}"
        for field, held in value.items()
        if field not in ("type", "name_or_path") and held not in (None, recipe.get(f"model.{field}"))
    ]
    _choose_trainer(made, "dpo")  # also for a custom trainer with its fields


def _choose_trainer(made: Experiment, trainer: str) -> None:
    """Choose a trainer, and the data that it reads."""
    if made.options.get("trainer") == trainer:
        return
    made.choose("trainer", trainer)
    made.choose("data", _TRAINERS[trainer])
    if trainer != "sft":
        made.options["data/sources"] = []


def _tracker(made: Experiment, recipe: Recipe, value: Any) -> None:
    if not value:
        return
    made.choose("tracking", "[wandb]")
    for name in ("entity", "project", "name"):
        if recipe.get(f"wandb.{name}") is not None:
            made.values[f"tracking.wandb.{name}"] = recipe[f"wandb.{name}"]


def _max_length(made: Experiment, recipe: Recipe, value: Any) -> None:
    if value is None:
        made.changed.append("data.max_length: unset, so 2048 instead of the model's longest context; set it")
    else:
        made.values["data.max_length"] = value


def _data_seed(made: Experiment, recipe: Recipe, value: Any) -> None:
    if value != recipe.get("seed", 42):
        made.lost.append(f"data.seed: {value}; the data follows seed, as the weights do")


def _cache(made: Experiment, recipe: Recipe, value: Any) -> None:
    if value is not None:
        made.values["data.cache"] = bool(value)


def _padding(made: Experiment, recipe: Recipe, value: Any) -> None:
    made.values["data.pad_to"] = recipe.get("data.pad_to") or "div_length"
    if recipe.get("data.div_length") is not None:
        made.values["data.div_length"] = recipe["data.div_length"]


def _filter(made: Experiment, recipe: Recipe, value: Any) -> None:
    made.values["data.overlong"] = "drop" if value else "error"
    if not value:
        made.changed.append(
            "data.filter_samples: false kept examples that are longer than max_length; here they are an error; choose data.overlong"
        )


def _packing(made: Experiment, recipe: Recipe, value: Any) -> None:
    made.values["data.packing"] = bool(value)


def _of_packs(field: str) -> Converter:
    """Return the converter of a field that has an effect on packs only, without which it is an error here."""

    def converter(made: Experiment, recipe: Recipe, value: Any) -> None:
        if recipe.get("data.pack_samples"):
            made.values[f"data.{field}"] = value
        elif value:
            made.lost.append(f"data.{field}: has no effect without pack_samples")

    return converter


def _truncation(made: Experiment, recipe: Recipe, value: Any) -> None:
    """Convert how long pairs are cut; ArcticTraining cuts the prompt first, to 4096 tokens by default."""
    made.values["data.overlong"] = value or "keep_start"
    if recipe.get("data.max_prompt_length") is not None:
        return
    if _number(recipe.get("data.max_length") or 0) > 4096:
        made.values["data.max_prompt_length"] = 4096
    else:
        made.changed.append(
            "data.max_prompt_length: unset, so pairs that are too long lose the end of their answers, or the start of their prompt with "
            "data.overlong=keep_end; 4096 there, which leaves no room for answers; set it to less than data.max_length"
        )


def _sources(made: Experiment, recipe: Recipe, value: Any) -> None:
    convert_sources(made, "sources", value)


def _eval_sources(made: Experiment, recipe: Recipe, value: Any) -> None:
    convert_sources(made, "eval_sources", value or [])


def _number(value: Any) -> float:
    try:
        return float(parse_human_number(value))
    except ValueError as error:
        raise ConfigError(f"a number of the recipe cannot be read: {error}") from error


CONVERTERS: dict[str, Converter] = {
    "type": _skip,
    "code": _code,
    "model.type": _model_type,
    **{f"model.{field}": _of_any_model(field) for field in ("name_or_path", "hf_config_kwargs")},
    "model.attn_implementation": _attention,
    "model.peft_config": _adapter,
    "tokenizer.type": _type("tokenizer", ("huggingface",), "the tokenizer of the model is used, see --help tokenizer"),
    "optimizer.type": _optimizer_type,
    "scheduler.type": _type("scheduler", ("huggingface", "wds", "wsd"), "scheduler.name is used, see --help scheduler"),
    "scheduler.name": _schedule,
    "scheduler.scheduler_specific_kwargs": _skip,
    "scheduler.warmup_ratio": _warmup,
    "scheduler.num_warmup_steps": _skip,
    "scheduler.num_decay_steps": _skip,
    "scheduler.min_lr_ratio": _skip,
    "loss_log_interval": _log_interval,
    "train_log_iter_interval": _log_interval,
    "mem_profiler": _memory_profiler,
    "mem_profiler_dir": _skip,
    "mem_profiler_max_entries": _skip,
    "expert_parallel_size": _experts,
    "ref_model": _reference,
    "wandb.enable": _tracker,
    "wandb.entity": _skip,
    "wandb.project": _skip,
    "wandb.name": _skip,
    "deepspeed": lambda made, recipe, value: convert_deepspeed(made, value or {}),
    "checkpoint": lambda made, recipe, value: convert_checkpoints(made, value or []),
    "data.type": _type("data", tuple(_TRAINERS), "port it (docs/extending/data.md)"),
    "data.sources": _sources,
    "data.eval_sources": _eval_sources,
    "data.max_length": _max_length,
    "data.seed": _data_seed,
    "data.use_data_cache": _cache,
    "data.cache_processed_data": _cache,
    "data.pad_to": _padding,
    "data.div_length": _padding,
    "data.filter_samples": _filter,
    "data.pack_samples": _packing,
    **{f"data.{field}": _of_packs(field) for field in PACK_FIELDS},
    "data.dpo_prompt_truncation_mode": _truncation,
}
"""Fields whose values differ here, or that several fields determine together."""
