"""How often a step waits for the device or for other ranks: our loop against DeepSpeed's own.

`python -m tests.bench.bench_synchronization`. Counts, operator by operator, what reads a device's result on the host (item and
all that ends in it, tolist, cpu, numpy, and operators whose output size is data) and every collective, in one optimizer
step of 2 and one of 6 micro-batches: a quarter of the difference is what each micro-batch adds; and in a whole step. The other
side is DeepSpeed's minimal loop, `engine(...)`, `backward`, `step`, on the same model and documents.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from arctic_hydra.data.batch import StepBatch
from tests.ranks import run_ranks

READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "repeat_interleave"}
METHODS = {"tolist", "cpu", "numpy"}
RANKS, FEW, MANY = 2, 2, 6


class Operators(TorchDispatchMode):
    """Counts host reads and collectives among the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        space, name = function.namespace, function.name().split("::")[1].split(".")[0]
        if space == "c10d" or (space == "aten" and name in READS):
            self.counts[f"{space}.{name}"] += 1
        return function(*arguments, **(named or {}))


class Methods(TorchFunctionMode):
    """Counts the reads that reach no operator where the tensor is on the host already."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in METHODS:
            self.counts[f"Tensor.{name}"] += 1
        return function(*arguments, **(named or {}))


def counted(action: Callable[[], Any]) -> Counter[str]:
    """Return the host reads and collectives of `action`."""
    with Operators() as operators, Methods(operators.counts):
        action()
    return operators.counts


Step = Callable[[StepBatch], None]


def loops(run_dir: Path, stage: int, packed: bool) -> tuple[Any, Step, Step]:
    """Return a trainer, a step of its loop with the log line, and a step of DeepSpeed's minimal loop on the same engine."""
    from tests.trainer.loop import documents, make_trainer

    count = 3 * MANY * RANKS
    data = documents([24] * count, [12] * count)
    trainer = make_trainer(data, run_dir, stage=stage, packed=packed, gradient_accumulation_steps=MANY)
    engine = trainer.tools.engine

    def our_step(window: StepBatch) -> None:
        counts = trainer._agree(window)
        with trainer.event("step", window=window, counts=counts):
            trainer.step(window, counts)
        trainer._advance(counts)
        trainer._log_if_due()
        trainer._check_exit()
        trainer.checkpoint()

    def minimal_step(window: StepBatch) -> None:
        for index, batch in enumerate(window.micro_batches):
            labels = torch.full_like(batch.input_ids_BT, -100).flatten()
            labels[batch.rows_K + 1] = batch.targets_K
            engine.set_gradient_accumulation_boundary(index == len(window.micro_batches) - 1)
            output = engine(
                input_ids=batch.input_ids_BT,
                position_ids=batch.position_ids_BT,
                labels=labels.view_as(batch.input_ids_BT),
                use_cache=False,
            )
            engine.backward(output.loss)
            engine.step()

    return trainer, our_step, minimal_step


def per_micro_batch(run_dir: Path, stage: int, ours: bool, packed: bool) -> dict[str, float]:
    """Return what each micro-batch adds, by operator; call it on every rank."""
    trainer, our_step, minimal_step = loops(run_dir, stage, packed)
    first, second, third = trainer.train_batches
    step = our_step if ours else minimal_step
    step(first)  # sets things up
    few = counted(lambda: step(StepBatch(second.micro_batches[:FEW], 1)))
    many = counted(lambda: step(third))
    return {name: (many[name] - few[name]) / (MANY - FEW) for name in sorted(many | few) if many[name] != few[name]}


def per_step(run_dir: Path, stage: int) -> dict[bool, Counter[str]]:
    """Return what a whole step of this loop adds to DeepSpeed's own, without and with a log line; call it on every rank."""
    trainer, our_step, minimal_step = loops(run_dir, stage, packed=False)
    first, second, third = trainer.train_batches
    our_step(first)  # sets things up
    minimal = counted(lambda: minimal_step(second))
    found = {}
    for logged in (False, True):
        trainer.tools.log_interval = 1 if logged else 1000
        found[logged] = counted(lambda: our_step(third)) - minimal
    return found


def main() -> None:
    """Print what each micro-batch adds on both sides, at each ZeRO stage."""
    with tempfile.TemporaryDirectory() as folder:
        for packed in (False, True):
            for stage in (0, 1, 2, 3):
                ours, minimal = (
                    run_ranks(RANKS, per_micro_batch, Path(folder), stage, side, packed)[0] for side in (True, False)
                )
                added = {name: n - minimal.get(name, 0) for name, n in ours.items() if n > minimal.get(name, 0)}
                print(f"ZeRO-{stage}, {'packed' if packed else 'padded'}, of each micro-batch")
                print(f"    this loop          {ours or 'nothing'}")
                print(f"    DeepSpeed's        {minimal or 'nothing'}")
                print(f"    added by this loop {added or 'nothing'}")
        for stage in (0, 1, 2, 3):
            for logged, added in run_ranks(RANKS, per_step, Path(folder), stage)[0].items():
                print(f"ZeRO-{stage}, added by a step {'with' if logged else 'without'} a log line: {dict(added)}")
    print("tolist, if packed: the loop over documents in the attention of the CPU, of a tensor that is on the host")


if __name__ == "__main__":
    main()
