"""Recipes of ArcticTraining become experiments that compose, with the same values and meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from arctic_hydra import config
from arctic_hydra.cli.composition.compose import compose_config
from arctic_hydra.errors import ConfigError
from arctic_hydra.migrate.arctictraining import convert

PACKED = """
type: sft
code: train.py
micro_batch_size: 1
gradient_accumulation_steps: 4
epochs: 2
exit_iteration: 10
loss_log_interval: 5
seed: 7
deepspeed:
  zero_optimization: {stage: 3, offload_optimizer: {device: cpu}, stage3_param_persistence_threshold: 1e4}
  gradient_clipping: 0.5
optimizer: {type: cpu_adam, learning_rate: 1.0e-5, betas: [0.9, 0.95]}
scheduler: {name: cosine_with_min_lr, warmup_ratio: 3%, scheduler_specific_kwargs: {min_lr: 1.0e-6, foo: 1}}
model:
  type: liger
  name_or_path: org/base
  attn_implementation: flash_attention_2
  peft_config: {peft_type: Lora, lora_alpha: 32, target_modules: [q_proj], rank_pattern: {q_proj: 4}}
data:
  sources: [HuggingFaceH4/ultrachat_200k]
  eval_sources: [{name_or_path: HuggingFaceH4/ultrachat_200k, split: "test_sft[:100]"}]
  pack_samples: true
  always_max_length: true
  filter_samples: true
  dl_num_workers: 4
  cache_fs_type: shared
  seed: 8
  max_length: 8Ki
eval_frequency: 50
logger: {level: WARNING, output_dir: logs, print_output_ranks: [0, 1]}
wandb: {enable: true, project: mine}
mem_profiler: step
mem_profiler_max_entries: 1K
checkpoint:
  - {type: huggingface, save_every_n_steps: 300, output_dir: /tmp/ft-model}
  - {type: deepspeed, auto_resume: true, save_every_n_epochs: 1}
weird: 3
"""
CAUSAL = """
type: causal
train_iters: 1000
min_iterations: 10
kill_switch_path: /tmp/stop
model: {name_or_path: org/base, attn_implementation: sdpa, dtype: torch.float32, save_name: mine}
data:
  sources: [{type: huggingface_causal, name_or_path: "org/books:en[:100]", column: body}]
  train_eval_split: [0.9, 0.1]
  use_data_cache: false
  max_length: 512
eval_interval: 100
eval_log_iter_interval: 2
scheduler: {type: wds, name: wsd, num_warmup_steps: 100, num_decay_steps: 90, min_lr_ratio: 0.1}
"""
DPO = """
type: dpo
micro_batch_size: 2
beta: 0.05
label_smoothing: 0.1
ignore_label_index: -100
ref_model: {type: huggingface, name_or_path: org/sft}
model: {name_or_path: org/base, disable_activation_checkpoint: true}
data:
  sources: [HuggingFaceH4/ultrafeedback_binarized]
  max_prompt_length: 512
  max_length: 1024
wandb: {enable: false, project: unused}
"""
BARE = """
model: {name_or_path: org/base, peft_config: {peft_type: IA3, target_modules: [k_proj], feedforward_modules: []}}
data:
  sources: [org/a, {name_or_path: /data/a, process: false, split: train}]
  filter_samples: false
  drop_last: true
  div_length: 64
scheduler: {name: polynomial, scheduler_specific_kwargs: {lr_end: 1.0e-5, power: 2}}
train_log_iter_interval: 0
overfit_first_batch: true
"""


def built(text: str, folder: Path) -> tuple[config.Run, list[str], list[str]]:
    """Return the run of a converted recipe, with what was not carried over and what means something else."""
    made = convert(yaml.safe_load(text), "mine", "recipe.yaml")
    (folder / "experiment").mkdir()
    (folder / "experiment" / "mine.yaml").write_text(made.to_yaml("command"))
    run = config.build(compose_config(["experiment=mine"], "config", str(folder)).job)
    return run, [line.partition(":")[0] for line in made.lost], [line.partition(":")[0] for line in made.changed]


def plain(owner: Any, *names: str) -> list[Any]:
    return [getattr(value, "value", value) for value in (getattr(owner, name) for name in names)]


def test_a_packed_recipe_with_an_adapter_and_zero_3(tmp_path: Path) -> None:
    run, lost, changed = built(PACKED, tmp_path)
    assert (run.name, run.seed, run.log.interval, run.log.level, run.log.print_ranks) == (
        "mine",
        7,
        5,
        "WARNING",
        [0, 1],
    )
    names = ("epochs", "exit_iteration", "micro_batch_size", "gradient_accumulation_steps", "eval_frequency")
    assert plain(run.trainer, *names) == [2, 10, 1, 4, 50]
    assert plain(run.deepspeed, "stage", "offload_optimizer", "offload_parameters", "clipping") == [3, True, False, 0.5]
    assert run.deepspeed.config == {"zero_optimization": {"stage3_param_persistence_threshold": 1e4}}
    assert (run.optimizer.option_name, *plain(run.optimizer, "lr", "betas", "weight_decay")) == (
        "cpu_adam", 1e-5, [0.9, 0.95], 0.1,
    )  # fmt: skip
    assert (run.scheduler.option_name, *plain(run.scheduler, "warmup_ratio", "min_lr_ratio")) == (
        "cosine_with_min_lr", 0.03, 0.1,
    )  # fmt: skip
    assert (run.model.option_name, run.model.attn_implementation) == ("liger", "flash_attention_2")
    assert plain(run.peft, "r", "lora_alpha", "target_modules", "config") == [
        8,
        32,
        ["q_proj"],
        {"rank_pattern": {"q_proj": 4}},
    ]
    names = ("packing", "always_max_length", "overlong", "prefetch_steps", "max_length")
    assert plain(run.data, *names) == [True, True, "drop", 4, 8192]
    [source], [held_out] = run.data.sources.values(), run.data.eval_sources.values()
    assert plain(source, "path", "split_mapping") == [
        "HuggingFaceH4/ultrachat_200k", {"train": "train_sft", "eval": "test_sft"},
    ]  # fmt: skip
    assert held_out.split == "test_sft[:100]"
    assert [*run.tracking] == ["wandb"] and run.tracking["wandb"].project == "mine"
    assert plain(run.callback["memory_profiler"], "mode", "max_entries") == ["step", 1000]
    names = ("save_every_n_steps", "save_every_n_epochs", "save_end_of_training", "auto_resume", "output_dir")
    assert plain(run.checkpoint["hf"], *names) == [300, 0, False, False, "/tmp/ft-model"]
    assert plain(run.checkpoint["deepspeed"], *names) == [0, 1, False, True, None]
    unknown = ["scheduler.scheduler_specific_kwargs.foo", "weird"]
    assert sorted(lost) == sorted(["code", "data.cache_fs_type", "data.seed", "logger.output_dir", *unknown])
    assert changed == ["loss_log_interval"]


def test_a_causal_recipe_with_a_stable_schedule(tmp_path: Path) -> None:
    run, lost, changed = built(CAUSAL, tmp_path)
    names = ("train_iters", "epochs", "min_iterations", "eval_frequency", "eval_log_iter_interval", "kill_switch_path")
    assert (run.trainer.option_name, *plain(run.trainer, *names)) == ("causal", 1000, 1, 10, 100, 2, "/tmp/stop")
    assert plain(run.model, "dtype", "attn_implementation", "save_name") == ["fp32", "sdpa", "mine"]
    assert plain(run.data, "column", "train_eval_split", "cache", "packing") == ["body", [0.9, 0.1], False, True]
    [source] = run.data.sources.values()
    assert plain(source, "path", "split") == ["org/books", "en[:100]"]
    assert (run.scheduler.option_name, *plain(run.scheduler, "warmup_steps", "decay_ratio", "min_lr_ratio")) == (
        "wsd", 100, 0.1, 0.1,
    )  # fmt: skip
    assert plain(run.deepspeed, "stage", "clipping") == [2, 1.0]
    assert plain(run.checkpoint["deepspeed"], "save_every_n_steps", "save_end_of_training") == [0, False]
    assert (lost, sorted(changed)) == ([], ["checkpoint.deepspeed", "scheduler.type"])


def test_a_dpo_recipe(tmp_path: Path) -> None:
    run, lost, changed = built(DPO, tmp_path)
    names = ("micro_batch_size", "beta", "label_smoothing", "reference_path")
    assert (run.trainer.option_name, *plain(run.trainer, *names)) == ("dpo", 2, 0.05, 0.1, "org/sft")
    assert plain(run.data, "overlong", "max_prompt_length", "max_length") == ["keep_start", 512, 1024]
    assert [*run.tracking] == ["mlflow"] and run.model.disable_activation_checkpoint
    assert (lost, changed) == ([], ["checkpoint.deepspeed"])


def test_defaults_that_differ_are_written_or_named(tmp_path: Path) -> None:
    run, lost, changed = built(BARE, tmp_path)
    assert (run.trainer.option_name, run.optimizer.lr, run.scheduler.warmup_ratio) == ("sft", 5e-4, 0.1)
    assert plain(run.scheduler, "power", "min_lr_ratio") == [2, 0.02]
    assert plain(run.data, "packing", "overlong", "pad_to", "div_length") == [False, "error", "div_length", 64]
    assert [plain(source, "path", "process") for source in run.data.sources.values()] == [
        ["org/a", True],
        ["/data/a", False],
    ]
    assert plain(run.peft, "peft_type", "config") == ["IA3", {"target_modules": ["k_proj"], "feedforward_modules": []}]
    assert (run.log.interval, run.trainer.overfit_first_batch) == (0, True)
    assert lost == ["data.drop_last"]
    assert sorted(changed) == ["checkpoint.deepspeed", "data.filter_samples", "data.max_length"]


@pytest.mark.parametrize(
    ("fields", "lost"),
    [
        ({"type": "mine"}, "type: mine is a custom trainer; port it (docs/extending/trainers.md)"),
        ({"model": {"type": "mine"}}, "model.type: mine is a custom factory"),
        ({"data": {"type": "mine"}}, "data.type: mine is a custom factory; port it"),
        (
            {"tokenizer": {"type": "mine"}},
            "tokenizer.type: mine is a custom factory; the tokenizer of the model is used",
        ),
        ({"scheduler": {"type": "mine"}}, "scheduler.type: mine is a custom factory; scheduler.name is used"),
        (
            {"model": {"dtype": "bf16"}, "ref_model": {"type": "liger", "dtype": "fp32", "name_or_path": "a"}},
            "ref_model.dtype: fp32; the reference is loaded as the model is, with model.dtype",
        ),
        ({"optimizer": {"type": "mine"}}, "optimizer.type: mine is a custom factory; adamw is used"),
        (
            {"scheduler": {"name": "reduce_lr_on_plateau"}},
            "scheduler.name: there is no reduce_lr_on_plateau here; linear is used",
        ),
        (
            {"scheduler": {"type": "wsd", "num_decay_steps": 9}},
            "scheduler.num_decay_steps: 9 steps; set scheduler.decay_ratio",
        ),
        (
            {"expert_parallel_size": 2},
            "expert_parallel_size: 2; experts are divided among ranks by deepspeed=zero3 only",
        ),
        ({"arctic_moe": "auto"}, "arctic_moe: models keep the mixture-of-experts layers of transformers"),
    ],
)
def test_what_has_no_counterpart_is_named(fields: dict[str, Any], lost: str) -> None:
    assert [line[: len(lost)] for line in convert(fields, "mine", "x").lost] == [lost]


@pytest.mark.parametrize(
    ("data", "limit"),
    [({"max_length": "8Ki"}, 4096), ({"max_length": "8Ki", "max_prompt_length": 99}, 99), ({"max_length": 4096}, None)],
)
def test_prompts_of_pairs_are_cut_as_there_or_the_difference_is_named(data: dict[str, Any], limit: int | None) -> None:
    made = convert({"type": "dpo", "data": data}, "mine", "x")
    assert made.values["data.overlong"] == "keep_start" and made.values.get("data.max_prompt_length") == limit
    assert any(line.startswith("data.max_prompt_length: unset, so pairs") for line in made.changed) is (limit is None)


def test_a_stable_schedule_that_decays_linearly_is_the_same_here() -> None:
    kwargs = {"num_warmup_steps": 10, "num_decay_steps": 20, "decay_type": "linear"}
    made = convert(
        {"train_iters": 100, "scheduler": {"name": "warmup_stable_decay", "scheduler_specific_kwargs": kwargs}},
        "m",
        "x",
    )
    assert made.lost == [] and not any(line.startswith("scheduler") for line in made.changed)


@pytest.mark.parametrize("named", [{"name": "linear", "type": "huggingface"}, {}])
def test_settings_of_another_schedule_are_named_once(named: dict[str, Any]) -> None:
    made = convert(
        {"scheduler": {**named, "scheduler_specific_kwargs": {"a": 1}, "num_warmup_steps": 2, "num_decay_steps": 3}},
        "mine",
        "x",
    )
    assert [line.partition(":")[0] for line in made.lost] == [
        "scheduler.scheduler_specific_kwargs.a",
        "scheduler.num_warmup_steps",
        "scheduler.num_decay_steps",
    ]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"model": "org/base"}, "model: got 'org/base', expected fields with values"),
        ({"model": {"peft_config": "lora"}}, "model.peft_config: got 'lora', expected fields with values"),
        (
            {"scheduler": {"scheduler_specific_kwargs": "cosine"}},
            "scheduler.scheduler_specific_kwargs: got 'cosine', expected fields with values",
        ),
        ({"deepspeed": {"zero_optimization": 3}}, "deepspeed.zero_optimization: got 3, expected fields with values"),
        (
            {"data": {"sources": [{"name_or_path": "x", "kwargs": "y"}]}},
            "data.sources.kwargs: got 'y', expected fields",
        ),
        ({"scheduler": {"name": "polynomial"}, "optimizer": {"lr": 0}}, "optimizer.lr: got 0, with which nothing"),
        ({"ref_model": "org/base"}, "ref_model: got 'org/base', expected fields with values"),
        (
            {"scheduler": {"name": "polynomial"}, "optimizer": {"lr": "fast"}},
            "a number of the recipe cannot be read: got 'fast'",
        ),
    ],
)
def test_what_is_no_recipe_is_one_sentence(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        convert(fields, "mine", "x")


def test_a_custom_trainer_of_pairs_gets_data_of_pairs() -> None:
    for fields in ({"ref_model": {"name_or_path": "org/base"}}, {"beta": 0.1}):
        made = convert({"type": ["my_dpo"], **fields}, "mine", "x")
        assert (made.options["trainer"], made.options["data"]) == ("dpo", "preference")
        assert made.lost[0].startswith("type: ['my_dpo'] is a custom trainer")


def test_fewer_lines_of_metrics_are_named() -> None:
    made = convert({"loss_log_interval": 10}, "mine", "x")
    assert made.values["log.interval"] == 10
    assert any(text.startswith("loss_log_interval: 10 is the interval of metrics.jsonl too") for text in made.changed)


def test_ranks_that_share_sequences_attend_by_our_own_code() -> None:
    made = convert({"sequence_parallel_size": 4, "model": {"attn_implementation": "flash_attention_2"}}, "mine", "x")
    assert "model.attn_implementation" not in made.values
    assert made.changed[0].startswith("model.attn_implementation: arctic_varlen instead of flash_attention_2")


def test_liger_takes_the_fields_of_the_config_and_rates_are_relative_to_the_one_of_either_section() -> None:
    fields = {"type": "liger", "hf_config_kwargs": {"rope_theta": 5e5}}
    for model in (fields, dict(reversed(fields.items()))):
        made = convert({"model": model}, "mine", "x")
        assert (made.options["model"], made.values["model.hf_config_kwargs"]) == ("liger", {"rope_theta": 5e5})
    schedule = {"name": "cosine_with_min_lr", "scheduler_specific_kwargs": {"min_lr": 1e-6}}
    for key in ("lr", "learning_rate"):
        made = convert({"scheduler": {**schedule, key: 1e-5}}, "mine", "x")
        assert (made.values["optimizer.lr"], made.values["scheduler.min_lr_ratio"]) == (1e-5, 0.1)
