"""The typed root config of a run, and the run's identity."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra import cross_checks

# Importing a family's base runs the family's __init__, which registers its options.
from arctic_hydra.callback.base import Callback
from arctic_hydra.checkpoint.base import CheckpointEngine
from arctic_hydra.checkpoint.hf import export_name_problem
from arctic_hydra.component import (
    MISSING_VALUE,
    Component,
    RunContext,
    choice,
    component,
    default_of,
    is_settings,
    register_root,
)
from arctic_hydra.converter.activation_offload import ActivationOffload
from arctic_hydra.converter.base import ModelConverter
from arctic_hydra.converter.peft.base import PeftSlot
from arctic_hydra.converter.tiled_mlp import TiledMLP
from arctic_hydra.data.base import DataFactory
from arctic_hydra.distributed import World, count_gpus
from arctic_hydra.engine import EngineFactory
from arctic_hydra.errors import ConfigError
from arctic_hydra.generation.exact_match import ExactMatch
from arctic_hydra.human_numbers import bounded, integer, number, shorten
from arctic_hydra.instantiate import create
from arctic_hydra.model.base import ModelFactory
from arctic_hydra.optimizer.base import OptimizerFactory
from arctic_hydra.scheduler.base import SchedulerFactory
from arctic_hydra.scheduler.extended import ExtendSchedule
from arctic_hydra.tokenizer.base import TokenizerFactory
from arctic_hydra.tracking.base import Tracker
from arctic_hydra.trainer.base import Trainer

if TYPE_CHECKING:
    TrainerSlot = Trainer
else:
    from arctic_hydra.trainer.settings import TrainerSlot

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
RENDEZVOUS = re.compile(r"\w[\w.-]*:([1-9][0-9]{0,4})")
LARGEST_SEED = 2**64 - 2**20  # torch takes 64 bits, and each rank adds its index
LARGEST_RANKS, LARGEST_NNODES = 1024, 100_000

HIGHER_IS_BETTER = tuple(
    "accuracy accuracies tokens_per_second tflops mfu reward rewards rewards/chosen margin margins".split()
)
"""`objective_direction=auto` maximizes metrics whose names end in one of these."""


class Task(Enum):
    """The task to perform on a run."""

    train = "train"
    check = "check"
    score = "score"
    evaluate = "evaluate"
    export = "export"
    chat = "chat"
    preview = "preview"
    report = "report"


class Direction(Enum):
    """Whether lower or higher objectives are better."""

    auto = "auto"
    minimize = "minimize"
    maximize = "maximize"


@component(group="log", name="default")
class Log(Component):
    """Log level, logging interval, and the ranks that log."""

    level: str = choice("INFO", ("DEBUG", "INFO", "WARNING", "ERROR"))
    """Log level of this package: DEBUG, INFO, WARNING or ERROR; other libraries log from WARNING."""
    interval: Any = integer(1, minimum=0)  # the type of a slot cannot contain unions, see `component`
    """Optimizer steps between log lines in `metrics.jsonl` and on the terminal; 0: only one at the end, of the whole run."""
    print_ranks: Any = field(default_factory=lambda: [0])
    """Ranks that print to the terminal: a list, or `*` for all."""
    file_ranks: Any = "*"
    """Ranks that write `logs/rank<n>.log`: a list, or `*` for all."""
    report: bool = True
    """Write `report.html` at the end of the run; `task=report` does it at any time."""

    def validate(self) -> None:
        if str(self.level).upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise ValueError(f"level: got {self.level!r}, expected DEBUG, INFO, WARNING or ERROR")
        self.level = str(self.level).upper()
        for name in ("print_ranks", "file_ranks"):
            ranks = getattr(self, name)
            if ranks != "*" and not (
                isinstance(ranks, list) and all(type(rank) is int and rank >= 0 for rank in ranks)
            ):
                raise ValueError(f"{name}: got {ranks!r}, expected a list of ranks such as [0,1], or '*'")

    def prints(self, world: World) -> bool:
        """Whether this rank prints to the terminal."""
        return self.print_ranks == "*" or world.rank in self.print_ranks

    def writes(self, world: World) -> bool:
        """Whether this rank writes its log file."""
        return self.file_ranks == "*" or world.rank in self.file_ranks


@dataclass(kw_only=True)
class Run(Component):
    """The complete config of one run; each field from `model` on is a config group."""

    _target_: str = "arctic_hydra.config.Run"
    task: Task = Task.train
    """train; check: validate the config and this machine, without training; score: compute and store the scores of the trainer's
    frozen model; evaluate: evaluate a checkpoint; export: write a checkpoint in Hugging Face format; chat: talk to the model of a
    run, a checkpoint or an export; preview: show examples and their trained tokens; report: rewrite the report."""
    from_checkpoint: str | None = None
    """Checkpoint for task=evaluate, export and chat: a step, `best` or a path; by default the newest. For chat also an export or hub id."""
    export: str | None = None
    """`best` with task=export: the checkpoint with the best `checkpoint.deepspeed.best_metric`, as from_checkpoint=best."""
    prompt: str | None = None
    """For task=chat: answer this prompt and exit; standard output holds the answer only."""
    prompts: str | None = None
    """For task=chat: answer each prompt of this file, one per line, or in a .jsonl file one object with `prompt` or `messages`."""
    out: str | None = None
    """For task=chat with `prompts`: JSON Lines file to write the answers to; standard output when unset."""
    system: str | None = None
    """For task=chat: the system message."""
    temperature: Any = number(0.0, minimum=0, maximum=100)
    """For task=chat: temperature of sampling; 0 takes the most probable token each time."""
    top_p: Any = number(1.0, minimum=1e-6, maximum=1)
    """For task=chat: sample from the most probable tokens whose probabilities sum up to this."""
    sampling_seed: Any = integer(0, minimum=0, maximum=2**63 - 1)
    """For task=chat: seed of sampling."""
    max_new_tokens: Any = integer(512, minimum=1, maximum=1_000_000)
    """Maximum number of tokens of an answer, for task=chat and `exact_match`."""
    generation_batch_size: Any = integer(16, minimum=1, maximum=100_000)
    """Number of answers that are generated at once, for `prompts` and `exact_match`."""
    exact_match: ExactMatch = field(default_factory=ExactMatch)
    init_from: str | None = None
    """Initialize the weights (only) from an export, a checkpoint, or another run's directory."""
    extend: str | None = None
    """Directory of a finished or stopped run that this one continues, with its overrides, optimizer, counters and data order."""
    extend_schedule: ExtendSchedule = ExtendSchedule.rewarm
    """Learning rate of the added steps: rewarm: restarts warmup and curve; constant: optimizer.lr; stretch: the curve of all steps."""
    preview_examples: int = bounded(3, minimum=1, maximum=10_000)
    """Number of examples per source that `task=preview` shows."""
    name: str = "default"
    """Name of the run: its folder below `output_root`."""
    output_root: str = "outputs"
    """Folder of all runs, relative to the working directory."""
    seed: int = bounded(42, minimum=0, maximum=LARGEST_SEED)
    """Seed of weights, data order and dropout."""
    deterministic: bool = False
    """Use deterministic algorithms only (torch, cuDNN, cuBLAS): the same command gives bit-identical results on the same machine
    and versions; slower, and an operation that has no such algorithm is an error."""
    fresh: bool = False
    """Delete the results of an earlier run of this config, and start over."""
    objective: str = "auto"
    """Metric of `metrics.jsonl` whose last value is the run's objective, such as eval/accuracy; auto: eval/loss, else loss."""
    objective_direction: Direction = Direction.auto
    """minimize or maximize; auto: higher is better for accuracies, rates and rewards."""
    ranks: str = "auto"
    """Ranks per machine: a number, or `auto` for one per GPU (1 without GPUs)."""
    nnodes: int = bounded(1, minimum=1, maximum=LARGEST_NNODES)
    """Number of machines; start the same command on each, with its own `node_rank`. Set automatically by SLURM or `hostfile`."""
    node_rank: int = bounded(0, minimum=0, maximum=LARGEST_NNODES - 1)
    """Index of this machine, from 0."""
    rendezvous: str | None = None
    """`host:port` on the first machine to which all machines connect; the port must be free there."""
    hostfile: str | None = None
    """File with lines such as `node1 slots=8`; the command starts ranks on every host over ssh."""
    model: ModelFactory = MISSING_VALUE
    tokenizer: TokenizerFactory = MISSING_VALUE
    data: DataFactory = MISSING_VALUE
    optimizer: OptimizerFactory = MISSING_VALUE
    scheduler: SchedulerFactory = MISSING_VALUE
    deepspeed: EngineFactory = MISSING_VALUE
    trainer: TrainerSlot = MISSING_VALUE
    checkpoint: dict[str, CheckpointEngine] = field(default_factory=dict)
    converter: dict[str, ModelConverter] = field(default_factory=dict)
    peft: PeftSlot = MISSING_VALUE
    callback: dict[str, Callback] = field(default_factory=dict)
    tracking: dict[str, Tracker] = field(default_factory=dict)
    log: Log = MISSING_VALUE

    excluded_from_id: ClassVar[frozenset[str]] = frozenset(
        (
            "task from_checkpoint export prompt prompts out system temperature top_p sampling_seed max_new_tokens generation_batch_size "
            "exact_match preview_examples name output_root fresh objective objective_direction ranks nnodes node_rank rendezvous "
            "hostfile checkpoint tracking log"
        ).split()
    )

    def validate(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name: got {shorten(self.name)}, expected letters, digits, '.', '_' and '-', at most 100")
        for key in ("seed", "preview_examples", "nnodes"):
            least, most = type(self).__dataclass_fields__[key].metadata["range"]
            if not least <= getattr(self, key) <= most:
                raise ValueError(f"{key}: got {shorten(getattr(self, key))}, expected {least} to {most:,}")
        few = len(self.ranks) <= 9 and self.ranks.isdecimal() and 1 <= int(self.ranks) <= LARGEST_RANKS
        if self.ranks != "auto" and not few:
            raise ValueError(
                f"ranks: got {shorten(self.ranks)}, expected auto or 1 to {LARGEST_RANKS:,}, on each machine"
            )
        if not (self.objective.strip() and self.objective.isprintable()):
            raise ValueError(f"objective: got {self.objective!r}, expected auto or a metric such as eval/accuracy")
        if not 0 <= self.node_rank < self.nnodes:
            raise ValueError(
                f"node_rank: got {self.node_rank}, expected 0 to {self.nnodes - 1} with nnodes={self.nnodes}"
            )
        if self.extend is None and self.extend_schedule is not ExtendSchedule.rewarm:
            raise ValueError("extend_schedule: has no effect without extend=<directory of a run>; remove it")
        place = self.rendezvous
        if place is not None and not (RENDEZVOUS.fullmatch(place) and int(place.rpartition(":")[2]) < 2**16):
            raise ValueError(f"rendezvous: got {shorten(place)}, expected <host>:<port>, such as node1:29500")

    @property
    def ranks_per_node(self) -> int:
        """Ranks to start on each machine."""
        return max(1, count_gpus()) if self.ranks == "auto" else int(self.ranks)

    @property
    def world_size_wanted(self) -> int:
        """Ranks of the run, on all machines together."""
        return self.nnodes * self.ranks_per_node

    @property
    def maximizes(self) -> bool:
        """Whether a higher objective is better."""
        if self.objective_direction is Direction.auto:
            return self.objective.endswith(HIGHER_IS_BETTER)
        return self.objective_direction is Direction.maximize

    @property
    def converters(self) -> list[ModelConverter]:
        """The converters in the order they are applied: the selected ones, those that trainer fields imply, then `peft`."""
        implied: list[ModelConverter] = []
        if self.trainer.tiled_mlp_compute:
            implied.append(TiledMLP())
        if self.trainer.activation_checkpoint_cpu_offload:
            implied.append(ActivationOffload())
        for converter in implied:
            converter.attach(self.trainer)
        return [*self.converter.values(), *implied, self.peft]

    @property
    def padded_row_tokens(self) -> int | None:
        """Tokens to which every row is padded for a compiled model or by `data.pad_to`; None if there is no such length."""
        if self.model.compile:
            return self.data.largest_batch(self.trainer.micro_batch_size)[1]
        return self.data.padded_row_tokens(self.trainer.micro_batch_size)

    def attach(self, trainer: RunContext) -> None:
        """Attach every component to the trainer, and pass the trainer the settings of the run that it needs."""
        self.trainer.zero_stage, self.trainer.initial_weights = self.deepspeed.stage, self.init_from
        super().attach(trainer)

    def check(self) -> None:
        """Check that the components are compatible; pure. Raises ConfigError with every problem found."""
        if problems := list(cross_checks.problems(self)):
            raise ConfigError(problems)

    def environment_problems(self) -> list[str]:
        """Return the requirements of the run that this machine does not meet; read-only, does not import torch."""
        return list(cross_checks.environment_problems(self))


register_root(Run)


def build(tree: dict[str, Any]) -> Run:
    """Build a checked Run from a composed, resolved config, or from the config in a `run.json`.

    Raises ConfigError with every problem found.
    """
    run: Run = create(_follow_model(tree), family=Run)
    run.attach(run.trainer)
    run.check()
    return run


def _follow_model(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a plain config with the values that default to the model's: the tokenizer and the name of exports.

    A Hugging Face tokenizer without a name is loaded from the model's repository and revision.
    """
    model, tokenizer, engines = (_mapping(tree.get(key)) for key in ("model", "tokenizer", "checkpoint"))
    if "name_or_path" in tokenizer and tokenizer["name_or_path"] is None and "name_or_path" in model:
        revision = model.get("revision") if tokenizer.get("revision") is None else tokenizer["revision"]
        tree = {**tree, "tokenizer": {**tokenizer, "name_or_path": model["name_or_path"], "revision": revision}}
    name = model.get("save_name")
    named = {key: {**engine, "save_name": name} for key, engine in engines.items() if "save_name" in _mapping(engine)}
    if name is None or not named:
        return tree
    if problem := export_name_problem(str(name)):
        raise ConfigError(f"model.save_name: {problem}")
    return {**tree, "checkpoint": {**engines, **named}}


def _mapping(node: Any) -> dict[str, Any]:
    return node if isinstance(node, dict) else {}  # `create` reports a node of another type


def identity(run: Run, *, defaults: bool = True) -> dict[str, Any]:
    """Return the settings that affect the result of the run, as plain JSON values with converted numbers and absolute paths.

    Components are named by config group and option, so moving a class does not change it.
    """
    return _with_batch(run, _identity_of(run, defaults=defaults))


def run_id(run: Run) -> str:
    """Return the short hash of the run's identity, which names its directory below `output_root/name`.

    It omits fields at their default, so a new field does not change the ids of runs that do not set it.
    """
    return _digest(_with_batch(run, _identity_of(run, defaults=False)))


_ADDED_FIELDS: frozenset[str] = frozenset(
    (
        "always_max_length drop_last repeat_to_pack_max_length fuse_positions_prob pad_to div_length max_prompt_length "
        "exit_iteration_this_run eval_log_iter_interval expert_parallel_size deterministic extend extend_schedule"
    ).split()
)
"""Names of fields added since components were known by class; the ids of runs from before do not contain them."""


def legacy_run_id(run: Run) -> str:
    """Return the id from versions that identified components by class and included every default.

    An existing directory of that name is still used, so older runs can be resumed, evaluated and exported.
    """
    return _digest(_with_batch(run, _identity_of(run, defaults=True, by_class=True)))


def has_legacy_id(run: Run, run_dir: Path) -> bool:
    """Whether a directory of the run was created by a version that named it by `legacy_run_id`."""
    return run_dir.name == legacy_run_id(run)


def _with_batch(run: Run, values: dict[str, Any]) -> dict[str, Any]:
    trainer = run.trainer
    groups = run.world_size_wanted // trainer.sequence_parallel_size
    batch = trainer.micro_batch_size * trainer.gradient_accumulation_steps * groups
    return {**values, "global_batch_size": batch}


def _identity_of(value: Any, *, defaults: bool, by_class: bool = False) -> Any:
    how = {"defaults": defaults, "by_class": by_class}
    if isinstance(value, Component) and is_dataclass(value):
        left_out = value.excluded_from_id | (_ADDED_FIELDS if by_class else {"_target_"})
        kept = {item.name: getattr(value, item.name) for item in fields(value) if item.name not in left_out}
        if not defaults:
            usual = {item.name: default_of(item) for item in fields(value)}
            kept = {name: held for name, held in kept.items() if isinstance(held, Component) or held != usual[name]}
        # "@" is the name of no field.
        named = {} if by_class else {"@": f"{value.identity_name()} version {value.component_version}"}
        return named | {name: _identity_of(held, **how) for name, held in kept.items()}
    if is_settings(type(value)):
        kept = {item.name: getattr(value, item.name) for item in fields(value)}
        usual = {} if defaults else {item.name: default_of(item) for item in fields(value)}
        return {
            name: _identity_of(held, **how) for name, held in kept.items() if name not in usual or held != usual[name]
        }
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not (isinstance(v, Callback) and v.only_observes)}
        return {str(key): _identity_of(item, **how) for key, item in kept.items()}
    if isinstance(value, list | tuple):
        return [_identity_of(item, **how) for item in value]
    return value.name if isinstance(value, Enum) else value


def _digest(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
