"""A trainer on in-memory documents: with the real engine, loss and loop, but without files."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch

from arctic_hydra import distributed, engine
from arctic_hydra.checkpoint.base import TrainingState
from arctic_hydra.component import CAUSAL_LM
from arctic_hydra.converter.base import ModelConverter
from arctic_hydra.data.base import Loader
from arctic_hydra.data.batch import Batch, StepBatch
from arctic_hydra.data.load.sequence_parallel import shard_loader
from arctic_hydra.display import Display
from arctic_hydra.distributed import World
from arctic_hydra.model.layers import compile_layers
from arctic_hydra.model.tiny import TinyModelFactory
from arctic_hydra.optimizer.adamw import AdamWFactory
from arctic_hydra.optimizer.base import OptimizerFactory
from arctic_hydra.progress import Progress
from arctic_hydra.scheduler.base import SchedulerFactory
from arctic_hydra.scheduler.constant import ConstantScheduler
from arctic_hydra.stopping import StopRequest
from arctic_hydra.trainer.base import Trainer
from arctic_hydra.trainer.sft import SFTTrainer
from arctic_hydra.trainer.toolbox import Toolbox

Document = tuple[list[int], list[bool]]
"""Token ids, and whether each is supervised."""
MakeLoader = Callable[[Trainer], Loader]


def batch_of(documents: list[Document], packed: bool = True, source: int = 0) -> Batch:
    """Return a micro-batch of `documents`: one packed row, or one padded row each."""
    if not documents:
        documents = [([0], [False])]
    width = max(len(ids) for ids, _ in documents)
    rows, targets, flat, positions, bounds, owners = [], [], [], [], [0], []
    for index, (ids, mask) in enumerate(documents):
        start = bounds[-1] if packed else index * width
        for offset in range(1, len(ids)):
            if mask[offset]:
                rows.append(start + offset - 1)
                targets.append(ids[offset])
                owners.append(index)
        padding = 0 if packed else width - len(ids)
        flat += ids + [0] * padding
        positions += list(range(len(ids) + padding))
        bounds.append(start + len(ids))
    shape = (1, -1) if packed else (len(documents), width)
    return Batch(
        input_ids_BT=torch.tensor(flat).reshape(shape),
        position_ids_BT=torch.tensor(positions).reshape(shape),
        rows_K=torch.tensor(rows, dtype=torch.int64),
        targets_K=torch.tensor(targets, dtype=torch.int64),
        source_K=torch.full((len(rows),), source, dtype=torch.int64),
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32) if packed else None,
        max_seqlen=width,
        num_tokens=sum(len(ids) for ids, _ in documents),
        document_lengths=[len(ids) for ids, _ in documents],
        document_K=torch.tensor(owners, dtype=torch.int64),
    )


@dataclass(frozen=True)
class Labelled:
    """A document with a label, and its mismatched pair."""

    document: Document
    mismatched: Document
    desirable: bool


Packs = list[Document] | list[tuple[Document, Document]] | list[Labelled]


@dataclass
class MemoryLoader:
    """A loader with one document, one pair or one labelled document per pack; divides windows as the loader contract requires."""

    documents: Packs
    micro_batch_size: int
    accumulation: int
    world: World
    packed: bool = True
    source_names = ("memory",)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self.documents).encode()).hexdigest()

    @property
    def global_batch(self) -> int:
        return self.micro_batch_size * self.accumulation * self.world.size

    def steps(self, epoch: int) -> int:
        return -(-len(self.documents) // self.global_batch)

    def windows(self, epoch: int, start: int = 0) -> Iterator[StepBatch]:
        across = self.micro_batch_size * self.world.size
        for step in range(start, self.steps(epoch)):
            chosen = self.documents[step * self.global_batch :][: self.global_batch]
            micros = []
            for index in range(-(-len(chosen) // across)):
                first = index * across + self.world.rank * self.micro_batch_size
                last = min(first + self.micro_batch_size, (index + 1) * across)
                micros.append(self.micro_batch(chosen[first:last]))
            yield StepBatch(micros, step)

    def micro_batch(self, packs: list[Any]) -> Batch:
        """Return the micro-batch of `packs`, of which there may be none."""
        if not isinstance(self.documents[0], Labelled):
            return batch_of(list(_flat(packs)), self.packed)
        batch = batch_of([pack.document for pack in packs], self.packed)
        batch.desirable_D = torch.tensor([pack.desirable for pack in packs], dtype=torch.bool)
        batch.mismatched = batch_of([pack.mismatched for pack in packs], self.packed)
        return batch

    def preview(self, count: int) -> list[Any]:
        return []

    def summary(self) -> dict[str, Any]:
        return {}


def _flat(packs: list[Any]) -> Iterator[Document]:
    for pack in packs:
        yield from pack if isinstance(pack[0], tuple) else [pack]


def pairs(answers: list[tuple[int, int]], prompt: int = 6, seed: int = 0) -> list[tuple[Document, Document]]:
    """Return random pairs with answers of the given numbers of tokens, chosen and rejected, to a common prompt."""
    draw = random.Random(seed)
    made = []
    for lengths in answers:
        asked = [draw.randrange(128) for _ in range(prompt)]
        sides = [(asked + [draw.randrange(128) for _ in range(n)], [False] * prompt + [True] * n) for n in lengths]
        made.append((sides[0], sides[1]))
    return made


def labelled(answers: list[tuple[int, int, bool]], seed: int = 0) -> list[Labelled]:
    """Return random documents with answers and mismatched answers of the given numbers of tokens, and the given labels."""
    both = pairs([answer[:2] for answer in answers], seed=seed)
    return [Labelled(*pair, desirable) for pair, (_, _, desirable) in zip(both, answers, strict=True)]


def documents(lengths: list[int], supervised: list[int], vocabulary: int = 128, seed: int = 0) -> list[Document]:
    """Return random documents; the last `supervised[i]` tokens of each are supervised."""
    draw = random.Random(seed)
    made = []
    for length, trained in zip(lengths, supervised, strict=True):
        ids = [draw.randrange(vocabulary) for _ in range(length)]
        made.append((ids, [index >= length - trained for index in range(length)]))
    return made


def tiny_factory(**values: Any) -> TinyModelFactory:
    """Return the test suite's model: hidden 32, 2 layers, vocabulary 128."""
    sizes = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    return TinyModelFactory(**{**sizes, "num_key_value_heads": 2, **values})


def make_trainer(
    data: Packs | MakeLoader,
    run_dir: Path,
    *,
    stage: int = 0,
    packed: bool = True,
    lr: float = 1e-2,
    model: TinyModelFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    eval_data: Packs | MakeLoader | None = None,
    clipping: float = 1.0,
    converters: Sequence[ModelConverter] = (),
    row_tokens: int | None = None,
    offload: Mapping[str, bool] = MappingProxyType({}),
    seed: int = 0,
    optimizer: OptimizerFactory | None = None,
    trainer_class: type[Trainer] = SFTTrainer,
    initial_weights: str | None = None,
    **fields: Any,
) -> Any:
    """Return a trainer that is ready to train, built as `runner` builds it; `data` may be a function that makes its loader."""
    world = World.from_env()
    trainer = trainer_class(**fields)
    trainer.set_callbacks([], world)
    trainer.zero_stage, trainer.initial_weights = stage, initial_weights
    shares = trainer.sequence_parallel_size
    distributed.start_sequence_groups(world, shares, 60)
    geometry = (trainer.micro_batch_size, trainer.gradient_accumulation_steps, world.data_parallel(shares), packed)
    loader = shard_loader(data(trainer) if callable(data) else MemoryLoader(data, *geometry), row_tokens)
    held: Any = eval_data(trainer) if callable(eval_data) else eval_data and MemoryLoader(eval_data, *geometry)
    eval_loader = shard_loader(held) if held else None
    scheduler = scheduler or ConstantScheduler(warmup_ratio=0.0)
    horizon = trainer.plan(loader, scheduler.warmup)
    factory = model or tiny_factory()
    factory.attach(trainer)
    for converter in converters:
        converter.attach(trainer)

    def create(path: str | None = None) -> torch.nn.Module:
        torch.manual_seed(seed)
        network: Any = trainer.create_model(factory, trainer.create_config(factory))
        for converter in converters:
            network = converter.convert(network)
        return network

    network = create()
    config = engine.ZeROFactory(stage=stage, gradient_clipping=clipping, **offload).fill(
        trainer.micro_batch_size, trainer.gradient_accumulation_steps, world.size, factory.dtype, 32
    )
    optimizer = optimizer or AdamWFactory(lr=lr, weight_decay=0.0)
    optimizer.attach(trainer)
    stepper = optimizer.create_optimizer(network)
    if factory.compile:
        compile_layers(network, factory.compile_backend)
    schedule = scheduler.create_scheduler(stepper, horizon)
    wrapped = engine.initialize(network, stepper, config)
    state = TrainingState(wrapped, schedule, None, Progress(), world, run_dir, {})  # type: ignore[arg-type]
    trainer.setup(
        Toolbox(
            world=world,
            device=torch.device("cpu"),
            run_dir=run_dir,
            loader=loader,
            eval_loader=eval_loader,
            model_factory=factory,
            converters=list(converters),
            engine=wrapped,
            engine_config=config,
            scheduler=schedule,
            state=state,
            checkpoints=[],
            trackers=[],
            metrics_file=None,
            display=Display(),
            stop=StopRequest(run_dir / "STOP"),
            log_interval=1,
            flops_shape=(1, 1, 1, 1),
            packed=packed,
            create_model=create,
        )
    )
    trainer.probe()
    trainer.prepare()
    return trainer


TEN_STEPS: dict[str, Any] = {"lr": 1e-3, "epochs": 10, "train_iters": 10}
APART = 1e-4
"""How far two equal trainings may end from each other after ten steps, as a share of the distance that their weights moved."""


def trained(trainer: Any) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor], float]:
    """Train, and return the lines of metrics, the final weights, and the distance that they moved."""
    rows: list[dict[str, Any]] = []
    start = full_weights(trainer)
    trainer._record = rows.append
    trainer.train()
    weights = full_weights(trainer)
    return rows, weights, distance(weights, start)


def distance(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    """Return the Euclidean distance between two states of all weights."""
    assert weights.keys() == others.keys()
    return math.sqrt(sum(float((weights[name] - other).double().square().sum()) for name, other in others.items()))


def full_weights(trainer: SFTTrainer) -> dict[str, torch.Tensor]:
    """Return all weights in fp32, gathered where ZeRO-3 shards them."""
    module = trainer.tools.engine.module
    if trainer.tools.engine_config["zero_optimization"]["stage"] == 3:
        import deepspeed

        trainer.tools.engine.empty_partition_cache()  # a last forward leaves prefetched parameters in flight
        with deepspeed.zero.GatheredParameters(list(module.parameters())):
            return {name: value.detach().float().clone() for name, value in module.named_parameters()}
    return {name: value.detach().float().clone() for name, value in module.named_parameters()}


def attached(component: Any, zero_stage: int = 0) -> Any:
    """Return `component`, attached to a run at `zero_stage`, for tests without a trainer."""
    component.attach(SimpleNamespace(zero_stage=zero_stage, auto_class=CAUSAL_LM))
    return component
