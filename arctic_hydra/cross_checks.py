"""Checks across the components of a run, and of this machine; each problem is one line.

The composing process runs them before it starts anything, so they do not import torch. Only the checks of the machine
access it; the others are pure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from arctic_hydra.callback.base import TRAINER_STATE
from arctic_hydra.callback.early_stopping import EarlyStopping
from arctic_hydra.checkpoint.hf import HuggingFaceCheckpoint
from arctic_hydra.component import CAUSAL_LM, Component, default_of, is_settings
from arctic_hydra.converter import combinations
from arctic_hydra.converter.tiled_mlp import TiledMLP
from arctic_hydra.distributed import count_gpus
from arctic_hydra.files.start_paths import start_problem
from arctic_hydra.generation import answer_settings
from arctic_hydra.hub import holds_path
from arctic_hydra.human_numbers import shorten
from arctic_hydra.model.names import VARLEN_ATTENTION
from arctic_hydra.stopping import kill_switch_problems

if TYPE_CHECKING:
    from arctic_hydra.config import Run

SLOTS = ("model", "data", "optimizer", "scheduler", "tokenizer", "deepspeed")
"""The config groups for which a trainer may declare by a type hint what it works with, and which option is the default."""
LIST_SLOTS = ("checkpoint", "converter", "callback", "tracking")
"""The same without a default: groups of which a run takes several options, or none."""
LONGEST_NAME, LONGEST_PATH = 255, 3500
"""Limits in bytes of Linux file systems, 4,096 for a whole path less what a run appends to it."""
_CHAT_FILES = ("prompts", "out")
"""Full keys of paths that `holds_path` does not know by their name: the prompts of `callback.samples` are texts."""

_USED = {"preview": ("tokenizer", "data"), "export": ("model", "tokenizer", "converter", "peft", "checkpoint")}
"""The config groups that a task on the CPU uses; the others may need a GPU, or files that are on another machine."""


def problems(run: Run) -> Iterator[str]:
    """Yield the problems that do not depend on the machine."""
    if run.task.name != "preview":  # a preview builds only data and tokenizer, so the trainer need not support them
        yield from compatibility(run)
    yield from _path_problems(run, run)
    yield from _task_problems(run)
    yield from _score_problems(run)
    yield from combinations.problems(
        run.converter,
        run.peft,
        stage=run.deepspeed.stage,
        model_is_stored=run.model.stored,
        added_tokens=len(run.tokenizer.add_tokens) + len(run.tokenizer.add_special_tokens),
        head_loss=run.trainer.head_loss_name,
    )
    yield from _length_problems(run)
    yield from _engine_problems(run)
    yield from _sequence_parallel_problems(run)
    yield from _memory_problems(run)
    yield from _evaluation_problems(run)
    yield from _checkpoint_problems(run)


def _path_problems(owner: Any, run: Run, key: str = "") -> Iterator[str]:
    """Yield each path below `owner` that no file system can hold; a blank one would mean the working directory."""
    for item in fields(owner):
        value, name = getattr(owner, item.name), f"{key}{item.name}"
        held = (
            {f"{name}.{inner}": child for inner, child in value.items()} if isinstance(value, dict) else {name: value}
        )
        for inner, child in held.items():
            if (isinstance(child, Component) or is_settings(type(child))) and child is not run:
                yield from _path_problems(child, run, f"{inner}.")
        if (holds_path(item.name) or name in _CHAT_FILES) and value != default_of(item):
            for path in value if isinstance(value, list) else [value]:
                if isinstance(path, str) and (problem := _path_problem(path)):
                    yield f"{name}: got {shorten(path)}, {problem}"
            if value == []:
                yield f"{name}: got an empty list, expected at least one path"


def _path_problem(path: str) -> str:
    if not path.strip():
        return "expected a path; `.` means the working directory"
    if "\0" in path:
        return "which contains a null character, expected a path"
    if "\n" in path or "{" in path or "://" in path:  # a template or a URL
        return ""
    sizes = [len(os.fsencode(part)) for part in path.split("/")]
    if max(sizes) > LONGEST_NAME or sum(sizes) + len(sizes) > LONGEST_PATH:
        return f"expected a path of at most {LONGEST_PATH:,} bytes, with names of at most {LONGEST_NAME}"
    return ""


def supported(trainer: type, slot: str) -> tuple[type[Component], ...]:
    """Return the classes that a trainer's type hint names for a config group, the default first; empty if it names none."""
    return tuple(cls for cls in _named(trainer, slot) if isinstance(cls, type) and issubclass(cls, Component))


def _named(trainer: type, slot: str) -> tuple[Any, ...]:
    """Return the component classes in a trainer's type hint for a config group."""
    declared = get_args(get_type_hints(trainer).get(slot))
    return get_args(declared[0]) or declared if declared else ()


def compatibility(run: Run) -> Iterator[str]:
    """Yield the components that the trainer does not support: its type hints declare which classes it accepts."""
    for slot in (*SLOTS, *LIST_SLOTS):
        classes, held = supported(type(run.trainer), slot), getattr(run, slot)
        if others := [each for each in _named(type(run.trainer), slot) if each not in (Any, *classes)]:
            names = ", ".join(getattr(each, "__name__", str(each)) for each in others)
            yield (
                f"trainer: the type hint {slot} of {type(run.trainer).__name__} names {names}, expected classes of components, such as "
                "AdamWFactory"
            )
        for chosen in held.values() if isinstance(held, dict) else [held]:
            if not classes or isinstance(chosen, classes):
                continue
            options = [_option_name(cls) for cls in classes]
            one = f"{slot}=[{','.join(options)}]" if isinstance(held, dict) else ""
            names = one or ", ".join(f"{slot}={option}" for option in options)
            look = "; task=preview accepts any data" if slot == "data" else ""
            yield (
                f"{slot}: got {_option_name(type(chosen))} ({type(chosen).__name__}), but trainer={_option_name(type(run.trainer))} "
                f"({type(run.trainer).__name__}) works with {names}{look}"
            )


def _option_name(cls: type[Component]) -> str:
    """Return the option name under which a component was registered."""
    return cls.option_name or cls.__name__


def _task_problems(run: Run) -> Iterator[str]:
    task = run.task.name
    if run.from_checkpoint is not None and task not in ("evaluate", "export", "chat"):
        yield (
            f"from_checkpoint: got {run.from_checkpoint}, but task={task} ignores it; pass "
            f"task=evaluate, export or chat, or init_from=<path> to train from its weights"
        )
    yield from answer_settings.problems(run)
    if run.extend is not None and not any(engine.auto_resume for engine in run.checkpoint.values()):
        yield "extend: needs an engine that loads the checkpoint of that run; pass checkpoint=deepspeed or checkpoint=[deepspeed,hf]"
    if run.export not in (None, "best"):
        yield f"export: got {shorten(run.export)}, expected best; select another checkpoint with from_checkpoint=<step|path>"
    elif run.export and task != "export":
        yield f"export: got best, but task={task} ignores it; after the training, pass task=export export=best"
    elif run.export and run.from_checkpoint not in (None, "best"):
        yield f"export: got best, but from_checkpoint={run.from_checkpoint} selects another checkpoint; drop one of them"
    if task == "evaluate" and not run.data.has_evaluation:
        yield "task: got evaluate, but there is no evaluation data; set data.eval_sources or data.train_eval_split"


def _score_problems(run: Run) -> Iterator[str]:
    """Yield why scores of a frozen model cannot be stored, if the task or the trainer wants them to be; else settings of them."""
    scores, values = (
        run.task.name == "score",
        {item.name: getattr(run.trainer, item.name) for item in fields(run.trainer)},
    )
    if scores and not run.trainer.can_store_scores:
        yield (
            f"task: got score, but trainer={_option_name(type(run.trainer))} has no frozen model whose scores it could use; expected a "
            "trainer with a reference or a teacher, such as trainer=dpo or distill"
        )
    elif scores or run.trainer.stores_scores:
        key = "task: got score" if scores else f"trainer.{run.trainer.frozen_setting}: got cached"
        if run.data.needs_limit:
            yield f"{key}, but data.streaming=true keeps no documents that could be scored before training; pass data.streaming=false"
        if run.data.cache_directory is None and not values.get("scores_dir"):
            yield (
                f"{key}, but data.cache=off keeps nothing on disk; pass data.cache=on, or trainer.scores_dir=<folder> for the scores"
            )
    elif run.task.name != "preview":
        usual, frozen = {item.name: default_of(item) for item in fields(run.trainer)}, run.trainer.frozen_setting
        for name in run.trainer.score_settings:
            if (value := values[name]) != usual[name]:
                chosen = getattr(run.trainer, frozen).value
                yield (
                    f"trainer.{name}: got {value}, which has no effect with trainer.{frozen}={chosen}, because only stored scores "
                    f"read it; pass trainer.{frozen}=cached, or remove it"
                )


def _length_problems(run: Run) -> Iterator[str]:
    """Yield problems of the length of the run, and of its rows."""
    trainer = run.trainer
    if run.data.needs_limit and not trainer.train_iters:
        yield (
            "trainer.train_iters: got 0, but a stream (data.streaming=true) has no known length; "
            "pass trainer.train_iters=<optimizer steps>"
        )
    if run.data.needs_limit and trainer.epochs > 1:
        yield (
            f"trainer.epochs: got {trainer.epochs}, but with data.streaming=true only trainer.train_iters determines the length "
            f"of the run, which repeats the data as needed; remove trainer.epochs"
        )
    warmup = run.scheduler.fixed_warmup_steps
    if trainer.train_iters and warmup > trainer.train_iters:
        yield (
            f"scheduler.warmup_steps: got {warmup}, but the run has at most {trainer.train_iters} optimizer steps "
            f"(trainer.train_iters); lower it, or train longer"
        )
    positions, length = run.model.position_limit, run.data.row_tokens
    if positions and length and length > positions:
        yield f"data.max_length: got {length}, but model.max_position_embeddings={positions}; lower the former or raise the latter"


def _engine_problems(run: Run) -> Iterator[str]:
    trainer, deepspeed = run.trainer, run.deepspeed
    if run.task.name in ("train", "check"):
        yield from deepspeed.training_problems(run.model.dtype)
    yield from deepspeed.problems(
        trainer.micro_batch_size, trainer.gradient_accumulation_steps, run.world_size_wanted, run.model.dtype
    )
    clipping = deepspeed.config.get("gradient_clipping", deepspeed.clipping)
    yield from run.optimizer.engine_problems(deepspeed.stage, run.model.dtype, clipping)


def _evaluation_problems(run: Run) -> Iterator[str]:
    for name, callback in run.callback.items():
        if callback.generates and run.trainer.auto_class != CAUSAL_LM:
            yield (
                f"callback.{name}: generates text, but trainer={_option_name(type(run.trainer))} trains a model that gives scores "
                f"instead of text; leave it out"
            )
        if isinstance(callback, EarlyStopping) and not run.trainer.eval_frequency:
            yield (
                f"callback.{name}: stops the run by its evaluations, but trainer.eval_frequency=0 evaluates only before and "
                f"after training; pass trainer.eval_frequency=<steps>"
            )
        elif callback.needs_evaluation and not run.data.has_evaluation:
            yield (
                f"callback.{name}: acts at each evaluation, but there is no evaluation data; set data.eval_sources or "
                f"data.train_eval_split, or leave it out"
            )
    if run.data.has_evaluation:
        return
    if run.objective.startswith("eval/"):
        yield (
            f"objective: got {run.objective}, but there is no evaluation data, so the run never logs it; set "
            f"data.eval_sources or data.train_eval_split, or objective=loss"
        )
    if run.trainer.eval_frequency:
        yield (
            f"trainer.eval_frequency: got {run.trainer.eval_frequency}, but there is no evaluation data; "
            f"set data.eval_sources or data.train_eval_split, or trainer.eval_frequency=0"
        )


def _checkpoint_problems(run: Run) -> Iterator[str]:
    if TRAINER_STATE in run.callback:
        yield (
            f"callback.{TRAINER_STATE}: got a callback of this name, under which checkpoints keep the state of the trainer; give its "
            "option another name"
        )
    exporter = run.checkpoint.get("hf")
    merge = exporter.merge if isinstance(exporter, HuggingFaceCheckpoint) else None
    if merge is not None and not run.peft.adapts:
        yield f"checkpoint.hf.merge: got {str(merge).lower()}, but peft=none trains no adapter to merge; leave it unset"
    zero = run.deepspeed.config.get("zero_optimization")
    offload = zero.get("offload_optimizer") if isinstance(zero, dict) else None
    swaps = isinstance(offload, dict) and offload.get("device") == "nvme"
    if swaps and any(engine.enabled and engine.can_resume for engine in run.checkpoint.values()):
        yield (
            "deepspeed.config.zero_optimization.offload_optimizer.device: got nvme, whose files are not part of checkpoints; offload to "
            "cpu, or pass checkpoint=hf, with which a run cannot resume"
        )
    resuming = [name for name, engine in run.checkpoint.items() if engine.auto_resume]
    if len(resuming) > 1:
        yield (
            f"checkpoint: {' and '.join(resuming)} have auto_resume=true, expected at most one; "
            f"pass checkpoint.<name>.auto_resume=false for the others"
        )
    for name in resuming:
        if not run.checkpoint[name].can_resume:
            yield f"checkpoint.{name}.auto_resume: got true, but this engine only exports; use checkpoint.deepspeed"
    evaluates = run.trainer.eval_frequency
    for name, engine in run.checkpoint.items():
        if run.task.name in ("train", "check") and engine.enabled and not engine.can_resume and not engine.has_trigger:
            yield (
                f"checkpoint.{name}: would save nothing, as no trigger is set; pass checkpoint.{name}.save_end_of_training=true or "
                f"checkpoint.{name}.save_every_n_steps=<steps>, or checkpoint.{name}.enabled=false"
            )
        every, keeps = engine.step_interval, engine.best_kept
        if keeps and not run.data.has_evaluation:
            yield f"checkpoint.{name}.keep_best: got {keeps}, but there is no evaluation data to select the best; set data.eval_sources"
        elif keeps and (every % evaluates if evaluates else every or engine.epoch_interval):
            saved = f"every {every}" if every else "at the end of epochs"
            yield (
                f"checkpoint.{name}.keep_best: got {keeps}, but saved steps ({saved}) are not evaluated steps "
                f"(trainer.eval_frequency={evaluates}), so none can be selected; make the interval a multiple of trainer.eval_frequency"
            )


def _sequence_parallel_problems(run: Run) -> Iterator[str]:
    size, ranks = run.trainer.sequence_parallel_size, run.world_size_wanted
    if size == 1:
        return
    if ranks % size:
        yield f"trainer.sequence_parallel_size: got {size}, but there are {ranks} ranks; expected a divisor of {ranks}; change it or ranks"
    if not run.model.shares_sequences:
        yield (
            f"trainer.sequence_parallel_size: got {size}, but model={_option_name(type(run.model))} attends by its own code, to one "
            "rank's tokens only; pass trainer.sequence_parallel_size=1"
        )
    elif run.model.attn_implementation != VARLEN_ATTENTION:
        yield (
            f"trainer.sequence_parallel_size: got {size}, but model.attn_implementation={run.model.attn_implementation} "
            f"attends to one rank's tokens only; pass model.attn_implementation={VARLEN_ATTENTION}"
        )


def _memory_problems(run: Run) -> Iterator[str]:
    trainer, model = run.trainer, run.model
    if trainer.activation_checkpoint_cpu_offload and model.disable_activation_checkpoint:
        yield (
            "trainer.activation_checkpoint_cpu_offload: got true, but model.disable_activation_checkpoint=true leaves no "
            "checkpointed activations; pass model.disable_activation_checkpoint=false"
        )
    if trainer.tiled_mlp_compute and any(isinstance(item, TiledMLP) for item in run.converter.values()):
        yield "trainer.tiled_mlp_compute: got true, but converter=[tiled_mlp] already enables it; remove one of them"
    if model.compile and run.deepspeed.stage == 3:
        yield (
            "model.compile: got true, but ZeRO-3 gathers weights within layers, which torch.compile does not support; "
            "pass deepspeed=zero2"
        )
    if model.compile and not run.data.packs:
        yield "model.compile: got true, but unpacked examples give rows of varying shape; pass data.packing=true"
    if run.deepspeed.offloads and not run.optimizer.runs_on_cpu:
        yield (
            f"deepspeed: got an option with CPU offload, but optimizer={_option_name(type(run.optimizer))} cannot run "
            f"there; pass optimizer=adamw, or a deepspeed option without offload"
        )


def environment_problems(run: Run) -> Iterator[str]:
    """Yield the requirements of the task that this machine does not meet; read-only, does not import torch."""
    task = run.task.name
    trains = task not in _USED
    if task != "preview":
        yield from _missing_starts(run)
    if trains:
        yield from kill_switch_problems(run.trainer.kill_switch_path, run.output_root)
    yield from position_problems(run, run.model.stored_position_limit)
    for slot in fields(run):
        if not (trains or slot.name in _USED[task]):
            continue
        value = getattr(run, slot.name)
        many = isinstance(value, dict)
        held = {f"{slot.name}.{name}": item for name, item in value.items()} if many else {slot.name: value}
        for key, item in held.items():
            if isinstance(item, Component):
                found = item.check_environment() if trains or item is not run.model else run.model.check_files()
                yield from (f"{key}.{problem}" for problem in found)
    if not trains:
        return
    gpus = count_gpus()
    if run.model.dtype == "fp16" and not gpus:
        yield "model.dtype: got fp16, which DeepSpeed supports only on CUDA, but this machine has no GPU; pass model.dtype=bf16 or fp32"
    if gpus and run.optimizer.needs_offload and not run.deepspeed.offloads:
        yield (
            f"optimizer: got {_option_name(type(run.optimizer))}, which runs on the CPU, but the parameters are on the GPU; "
            f"pass deepspeed=zero2_offload or zero3_offload, or optimizer=adamw"
        )
    if gpus and run.ranks_per_node > gpus:
        yield f"ranks: got {run.ranks}, but this machine has {gpus} GPUs; pass ranks={gpus} or fewer"


def position_problems(run: Run, limit: int | None) -> Iterator[str]:
    """Yield a problem if examples may be longer than the `max_position_embeddings` of the model's own config."""
    length = run.data.row_tokens
    if limit and limit > 0 and length > limit:
        yield (
            f"data.max_length: got {length}, but the model's config has max_position_embeddings={limit}; pass "
            f"data.max_length={limit}, or, if its positions can be extended (RoPE), "
            f"model.hf_config_kwargs={{max_position_embeddings:{length}}}"
        )


def _missing_starts(run: Run) -> Iterator[str]:
    """Yield start paths that do not exist; step numbers and `best` are resolved later, in the run's own checkpoints."""
    for key, value in (("init_from", run.init_from), ("from_checkpoint", run.from_checkpoint)):
        is_path = value is not None and not (key == "from_checkpoint" and (value == "best" or value.isdecimal()))
        if is_path and (problem := start_problem(str(value))):
            yield f"{key}: {problem}"
