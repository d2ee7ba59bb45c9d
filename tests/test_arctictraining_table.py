"""The page for users of ArcticTraining: complete, and every key that it names exists."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest

from arctic_hydra.cli.help import groups
from tests.command import ROOT
from tests.composing import composed

PAGE = (ROOT / "docs" / "arctictraining.md").read_text()
ROWS = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| ?([^|]*?) ?\|$", PAGE, re.MULTILINE)

FIELDS = {
    "": "type code skip_validation model tokenizer data logger wandb scheduler optimizer deepspeed epochs loss_log_interval "
    "train_log_iter_interval train_log_metrics_path gradient_accumulation_steps micro_batch_size sequence_parallel_size "
    "activation_checkpoint_cpu_offload tiled_mlp_compute seed checkpoint train_iters eval_frequency exit_iteration min_iterations "
    "overfit_first_batch mem_profiler mem_profiler_dir mem_profiler_max_entries kill_switch_path",
    "checkpoint.": "type output_dir enabled auto_resume save_every_n_steps save_every_n_epochs save_end_of_training",
    "data.": "type sources eval_sources train_eval_split max_length num_proc dl_num_workers seed use_data_cache "
    "cache_processed_data cache_dir cache_fs_type",
    "source.": "type split sample_ratio sample_count sample_seed process",
    "logger.": "output_dir level print_output_ranks file_output_ranks",
    "model.": "type name_or_path dtype save_name attn_implementation disable_activation_checkpoint peft_config",
    "optimizer.": "type weight_decay betas lr",
    "scheduler.": "type lr",
    "tokenizer.": "type name_or_path",
    "wandb.": "enable entity project name",
}
"""The fields of ArcticTraining's config reference."""
MORE = (
    "expert_parallel_size eval_interval eval_log_iter_interval exit_iteration_this_run data.fail_on_missing_cache "
    "data.mask_inputs data.pad_to data.div_length data.always_max_length data.filter_samples data.pack_samples data.drop_last "
    "data.fuse_positions_prob data.repeat_to_pack_max_length data.ignore_empty_think data.column data.max_prompt_length "
    "data.dpo_prompt_truncation_mode source.name_or_path source.kwargs source.split_mapping source.role_mapping "
    "ref_model beta label_smoothing ignore_label_index reference_model_deepspeed scheduler.name scheduler.warmup_ratio "
    "scheduler.scheduler_specific_kwargs scheduler.min_lr_ratio"
)
"""Fields of particular components, which that reference does not list."""
ABSENT = (
    "skip_validation train_log_metrics_path arctic_moe enable_arctic_moe_custom_optimization enable_routing_replay "
    "data.cache_fs_type data.tokenize_kwargs source.sql logger.output_dir ignore_label_index reference_model_deepspeed"
)
"""Fields that have no place here; the page says why."""
REQUIRED = {
    "data=json": "data.sources.json.path=x",
    "data=text": "data.sources.text.path=x",
    "data=preference": "data.sources.preference.path=x",
    "trainer=dpo": "data.sources.preference.path=x",
    "model=hf": "model.name_or_path=x",
}
"""Keys without a default, by the option that has them."""


def test_every_field_has_one_row() -> None:
    known = [f"{prefix}{name}" for prefix, names in FIELDS.items() for name in names.split()]
    assert len(known) == 79
    found = [name for name, _, _ in ROWS]
    assert len(found) == len(set(found)) and set(known) | set(MORE.split()) <= set(found)
    assert len(re.findall(r"^\| `", PAGE, re.MULTILINE)) == len(ROWS), "a row without three columns"


def test_a_row_has_a_place_or_says_why_not() -> None:
    for name, place, note in ROWS:
        assert re.findall(r"`([^`]+)`", place) or (place == "–" and note), name
    assert {name for name, place, _ in ROWS if place == "–"} == set(ABSENT.split())


compose_once = cache(composed)


def exists(tree: Any, key: str) -> bool:
    """Whether a composed config has a key; `<name>` is the first of several entries."""
    for part in key.split("."):
        if not isinstance(tree, dict):
            return False
        part = next(iter(tree), "") if part == "<name>" else part
        if part not in tree:
            return False
        tree = tree[part]
    return True


def available(option: str) -> bool:
    group, _, names = option.partition("=")
    return all(name in groups()[group] for name in names.strip("[]").split(","))


PLACES = sorted({place for _, place, _ in ROWS if place != "–"})


@pytest.mark.parametrize("place", PLACES)
def test_every_key_exists_with_the_options_named(place: str) -> None:
    spans = re.findall(r"`([^`]+)`", place)
    options = [span for span in spans if "=" in span and not span.startswith("code=")]
    assert all(available(option) for option in options), options
    needed = [REQUIRED[option] for option in options if option in REQUIRED]
    tree = compose_once(*options, *needed)
    keys = [span for span in spans if "=" not in span]
    assert [key for key in keys if key not in groups() and not exists(tree, key)] == []
