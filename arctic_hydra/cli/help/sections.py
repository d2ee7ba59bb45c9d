"""Headings of the keys of large groups on help pages, and units of numbers whose names do not contain them."""

from __future__ import annotations

from collections.abc import Sequence

RUN = "run"
"""Section of the run's own keys, which are in no group."""

SECTIONS: dict[str, dict[str, str]] = {
    RUN: {
        "What to do": "task from_checkpoint init_from preview_examples",
        "Name and folder": "name output_root fresh",
        "Repeatability": "seed deterministic",
        "Objective": "objective objective_direction",
        "Ranks and machines": "ranks nnodes node_rank rendezvous hostfile",
    },
    "trainer": {
        "Length": "epochs train_iters min_iterations exit_iteration exit_iteration_this_run max_minutes",
        "Batches": "micro_batch_size gradient_accumulation_steps overfit_first_batch",
        "Evaluation": "eval_frequency eval_interval eval_log_iter_interval eval_at_start eval_at_end",
        "Loss": "head_loss head_chunk_rows label_smoothing z_loss",
        "Memory and parallelism": "sequence_parallel_size expert_parallel_size activation_checkpoint_cpu_offload tiled_mlp_compute",
        "Faults": "max_consecutive_skipped_steps spike_sigmas spike_window_steps kill_switch_path collective_timeout_seconds",
    },
    "data": {
        "Mixture": "mix_by train_eval_split",
        "Length and packing": "max_length max_prompt_length overlong packing always_max_length drop_last repeat_to_pack_max_length "
        "fuse_positions_prob pad_to div_length group_by_length",
        "What is trained on": "mask_inputs train_on train_roles ignore_empty_think eot_tokens train_on_eot",
        "Rows": "column malformed",
        "Preparation and cache": "num_proc cache cache_dir fail_on_missing_cache prefetch_steps",
        "Streaming": "streaming buffer_rows",
    },
    "source": {
        "Place": "path revision kwargs delimiter",
        "Format": "format process role_mapping content_key",
        "Split, sample and weight": "split split_mapping sample_ratio sample_count sample_seed weight",
    },
    "model": {
        "Weights": "name_or_path revision trust_remote_code allow_missing_weights spec flavor save_name",
        "Shape": "architecture vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "head_dim max_position_embeddings tie_word_embeddings hf_config_kwargs config_kwargs",
        "Precision and kernels": "dtype attn_implementation compile compile_backend fallback",
        "Memory": "disable_activation_checkpoint activation_checkpoint_every_n_layers",
    },
    "optimizer": {
        "Learning rate": "lr adam_lr layerwise_lr_decay groups",
        "Weight decay": "weight_decay no_decay",
        "Moments": "betas eps momentum nesterov ns_steps",
    },
    "checkpoint": {
        "When": "enabled save_every_n_steps save_every_n_epochs save_end_of_training auto_resume",
        "What is kept": "keep_last keep_best best_metric best_when",
        "Files": "output_dir save_name max_shard_size merge asynchronous on_error",
    },
    "hydra/launcher": {
        "Resources": "slots forked nodes gpus_per_node cpus_per_task mem_gb timeout_min gres constraint nodelist exclude exclusive",
        "Queue": "partition account qos name comment dependency mail_type mail_user wckey",
        "Jobs of a sweep": "array_parallelism max_array_size",
        "Script": "setup teardown srun_args additional_parameters python folder snapshot stderr_to_stdout",
        "Time limits": "signal_delay_s max_requeues",
        "Submission": "detach dry_run poll_seconds",
    },
}
"""Headings by group, in the order of the pages, and the fields below each; a field that is not listed follows the one that its class
declares before it."""
ORDER = {head: place for place, head in enumerate(head for heads in SECTIONS.values() for head in heads)}
"""Places of the headings among those of their group."""
_FIELDS = {
    (head, field): place
    for heads in SECTIONS.values()
    for head, names in heads.items()
    for place, field in enumerate(names.split())
}
"""Places of the fields below their heading."""


def places(head: str, fields: Sequence[str]) -> list[int]:
    """Return the place of each field below a heading; one that is not listed has that of the one before it."""
    found: list[int] = []
    for field in fields:
        found.append(_FIELDS.get((head, field), found[-1] if found else 0))
    return found


_UNITS = {
    "steps": "train_iters min_iterations exit_iteration exit_iteration_this_run eval_frequency eval_interval interval",
    "epochs": "epochs",
    "tokens": "max_length max_prompt_length div_length head_chunk_rows max_position_embeddings",
    "rows": "buffer_rows sample_count",
    "packs": "micro_batch_size",
    "micro-batches": "gradient_accumulation_steps",
    "evaluations": "patience eval_log_iter_interval",
    "minutes": "max_minutes timeout_min",
    "seconds": "signal_delay_s",
    "GB": "mem_gb",
}
_UNIT_OF = {name: unit for unit, names in _UNITS.items() for name in names.split()}
_SUFFIXES = ("steps", "tokens", "seconds", "minutes", "epochs", "rows")


def unit_of(field: str) -> str:
    """Return the unit of a number, from the name of its field; empty if it has none."""
    suffix = field.rpartition("_")[2]
    return _UNIT_OF.get(field) or (suffix if suffix in _SUFFIXES else "")


def section_of(group: str, field: str, before: str) -> str:
    """Return the heading for a field; `before` is that of the field before it."""
    return next((head for head, names in SECTIONS.get(group, {}).items() if field in names.split()), before)
