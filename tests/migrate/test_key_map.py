"""The tables of other projects' keys: complete, known to these projects, and every place that they name exists."""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.cli.composition.config_sources import LIST_GROUPS, NAMED_SETS
from arctic_hydra.cli.help.inventory import groups
from arctic_hydra.component import registered
from arctic_hydra.migrate.key_map import PROJECTS, MappedKey, advice, find, mapped_keys, option_advice, options, page
from tests.command import ROOT
from tests.composing import composed

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
OLDER = (
    "evaluation_strategy warmup_ratio group_by_length per_gpu_train_batch_size per_gpu_eval_batch_size no_cuda logging_dir "
    "overwrite_output_dir save_safetensors include_tokens_per_second torch_compile_backend"
).split()
"""Fields of TrainingArguments in earlier versions."""
OF_CALLBACKS = ("early_stopping_patience", "early_stopping_threshold")
_SCHEMA = re.compile(r"/(?:schema/(?P<group>\w+)/(?P<name>\w+)|(?P<other>\w+/sources/\w+))@_here_")


def schema(group: str, option: str) -> type:
    """Return the class whose fields the YAML file of an option has; composing each would take a minute."""
    match = _SCHEMA.search((ROOT / "conf" / group / f"{option}.yaml").read_text())
    assert match, (group, option)
    if match["other"]:
        return schema(*match["other"].rsplit("/", 1))
    return registered(match["group"])[match["group"], match["name"]]


def fields_with(option: str) -> dict[str, type]:
    """Return the classes of the options that `group=option` or `group=[options]` chooses, by the beginning of their keys."""
    group, _, names = option.partition("=")
    if group.startswith("+"):  # `+source@data.sources.<name>`
        group, _, place = group[1:].partition("@")
        return {f"{place}.": schema(group, names)}
    place = group.replace("/", ".")
    many = group in LIST_GROUPS or place in NAMED_SETS
    found = {f"{place}.{name}." if many else f"{place}.": schema(group, name) for name in names.strip("[]").split(",")}
    if place in NAMED_SETS:
        found[f"{place}.<name>."] = next(iter(found.values()))
    return found


def exists(tree: Any, key: str) -> bool:
    """Whether a composed config has a key; `<name>` is the first of several entries."""
    for part in key.split("."):
        part = next(iter(tree), "") if part == "<name>" and isinstance(tree, dict) else part
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def unknown_places(mapped: MappedKey, tree: dict[str, Any]) -> list[str]:
    """Return the options and keys of a mapping that do not exist here; `tree` is the default config."""
    chosen = [option.partition("=") for option in mapped.options if not option.startswith("code=")]
    of_groups = [(group.removeprefix("+").partition("@")[0], names) for group, _, names in chosen]
    lost = [f"{group}={names}" for group, names in of_groups if {*names.strip("[]").split(",")} - {*groups()[group]}]
    classes = {start: cls for group, _, names in chosen for start, cls in fields_with(f"{group}={names}").items()}
    for key in mapped.keys if not lost else ():
        source = re.match(r"data\.(eval_)?sources\.(json)\.", key)  # an entry of data=json
        known = classes | (fields_with("data/sources=[json]") if source else {})
        own = [start for start in known if key.startswith(start)]
        start = max(own, key=len, default="")
        if start and key.removeprefix(start) in {item.name for item in fields(known[start])}:
            continue
        if key not in groups() and not exists(tree, key):
            lost.append(key)
    return lost


@pytest.fixture(scope="module")
def tree() -> dict[str, Any]:
    return composed()


@pytest.mark.parametrize("project", PROJECTS)
def test_every_place_exists(project: str, tree: dict[str, Any]) -> None:
    assert {mapped.key: found for mapped in mapped_keys(project) if (found := unknown_places(mapped, tree))} == {}


@pytest.mark.parametrize("project", PROJECTS)
def test_a_word_stands_once_and_one_without_a_place_says_why(project: str) -> None:
    table = mapped_keys(project)
    assert len({mapped.key for mapped in table}) == len(table)
    assert [mapped.key for mapped in table if not (mapped.exists or mapped.note)] == []


def test_every_field_of_arctictraining_has_a_word() -> None:
    known = [f"{prefix}{name}" for prefix, names in FIELDS.items() for name in names.split()]
    assert len(known) == 79
    assert {*known, *MORE.split()} <= {mapped.key for mapped in mapped_keys("arctictraining")}


def fields_of(module: str, name: str) -> set[str]:
    """Return the fields of a dataclass, read from its source, as importing it takes seconds."""
    package, *rest = module.split(".")
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None
    source = Path(found.origin).parent.joinpath(*rest).with_suffix(".py").read_text()
    [cls] = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name]
    return {
        node.target.id for node in cls.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def test_the_words_of_transformers_are_all_of_its_fields() -> None:
    table = {mapped.key for mapped in mapped_keys("transformers")}
    fields = fields_of("transformers.training_args", "TrainingArguments")
    patterns = tuple(key.removesuffix("*") for key in table if key.endswith("*"))
    assert [name for name in fields - table if not name.startswith(patterns)] == []
    assert {key for key in table - fields if not key.endswith("*")} <= {*OLDER, *OF_CALLBACKS}


def test_the_words_of_peft_are_fields_of_its_config() -> None:
    known = fields_of("peft.tuners.lora.config", "LoraConfig") | {"peft_type", "task_type"}
    assert {mapped.key for mapped in mapped_keys("peft")} <= known


@pytest.mark.parametrize("project", [project for project in PROJECTS if project != "others"])
def test_the_page_of_a_project_is_its_table(project: str) -> None:
    """To write it: python -m arctic_hydra.migrate --table <project> > docs/migrating/<project>.md."""
    assert (ROOT / "docs" / "migrating" / f"{project}.md").read_text() == page(project)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("learning_rate", "learning_rate of transformers and Axolotl is optimizer.lr here"),
        ("trainer.learning_rate", "learning_rate of transformers and Axolotl is optimizer.lr here"),
        ("lr", "it is optimizer.lr here"),
        ("use_liger_kernel", "use_liger_kernel of transformers is model=liger here"),
        (
            "cutoff_len",
            "cutoff_len of LLaMA-Factory is data.max_length here (longer rows are cut there and left out here",
        ),
        ("mix_strategy", "mix_strategy of LLaMA-Factory is data.sources.<name>.weight here"),
        ("preprocessing_batch_size", "preprocessing_batch_size of LLaMA-Factory has no counterpart here: rows are"),
        ("dataloader_num_workers", "dataloader_num_workers of transformers and Axolotl is data.prefetch_steps here"),
        ("loss_watchdog_threshold", "loss_watchdog_threshold of Axolotl has no counterpart here: no limit of the loss"),
        (
            "dataset_name",
            "dataset_name of TRL is data.sources.<name>.path with data=mix and +source@data.sources.<name>=hf here",
        ),
        (
            "hub_model_id",
            "hub_model_id of transformers and Axolotl has no counterpart here: nothing is uploaded; hf upload",
        ),
        ("num_workers", "it is data.prefetch_steps here"),
        ("dl_num_workers", "dl_num_workers of ArcticTraining is data.prefetch_steps here"),
        ("data.sources.mine.name_or_path", "name_or_path of ArcticTraining is data.sources.mine.path here"),
        ("checkpoint.hf.save_steps", "save_steps of transformers and Axolotl is checkpoint.hf.save_every_n_steps here"),
        ("save_steps", "save_steps of transformers and Axolotl is checkpoint.deepspeed.save_every_n_steps here"),
        ("model.peft_config.r", "peft_config of ArcticTraining is peft here (a config group"),
        ("model.foo.learning_rate", ""),
        ("data.column", "column of ArcticTraining is data.column with data=text here"),
        ("nothing", ""),
    ],
)
def test_advice_names_our_key(key: str, text: str) -> None:
    assert advice(key).startswith(text) and bool(advice(key)) == bool(text)


def test_the_options_of_others_are_ours() -> None:
    known = groups()
    assert {
        f"{group}={name}" for group, names in options().items() for name in names.values() if name not in known[group]
    } == set()
    assert [f"{group}={name}" for group, names in options().items() for name in names if name in known[group]] == []
    assert (
        option_advice("model", "huggingface") == "; huggingface is model=hf here" and option_advice("model", "x") == ""
    )


def test_the_tables_to_search_can_be_chosen() -> None:
    assert [mapped.project for mapped in find("micro_batch_size", ("axolotl",))] == ["axolotl"]
