"""Checkpoints against safetensors, and how long an asynchronous save holds training up, against one at once.

`python -m tests.bench save`. A model of 102 M parameters with AdamW in fp32, 1.2 GB. A save is that of a run: written, hashed,
fsynced, published with its manifest; a load verifies every hash and fills model and optimizer. Hashing is a row of its own.
The steps of a block are those of the trainer's own loop, with one thread, so that the writing thread has a core.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.harness import Blocks, Comparison, Parts, Pauses, Sample

LAYERS, STEPS = 20, 10
"""Of the model, 20 make 102 M parameters; of a block, whose save comes after the first step."""
SAVES = {"safetensors save_file, fsync": "save_file", "checkpoint save": "save", "sha256 of its files": "hash"}
LOADS = {"safetensors load_file, every page": "load_file", "checkpoint load": "load", "sha256 of its files": "hash"}
TARGET = 1 / 0.8
AT_ONCE = "a save at once"
HELD_UP, LONGER = "the loop stands in an asynchronous save", "the block takes longer with it"


def comparisons(folder: Path, quick: bool) -> Iterator[Comparison]:
    """Yield saves, loads, and the stalls."""
    settings = "hashes are part of a checkpoint's save and load; the files are in the page cache"
    kinds = {*SAVES.values(), *LOADS.values()}
    if quick:
        from tests.ranks import run_ranks

        found = run_ranks(1, once, folder, kinds)[0]
        started: dict[str, Any] = {kind: _given(found["files"][kind]) for kind in kinds}
        block: Any = _given(found["triple"])
    else:
        started = {kind: Blocks(["-m", __name__, kind], {}) for kind in sorted(kinds)}
        block = Blocks(["-m", __name__, "triples"], {"OMP_NUM_THREADS": "1"})
    try:
        for name, kind_of in (("saves of 1.2 GB", SAVES), ("loads of 1.2 GB", LOADS)):
            targets = {side: TARGET for side in kind_of if side.startswith("checkpoint")}
            chosen = {side: started[kind] for side, kind in kind_of.items()}
            yield Comparison(name, chosen, _check_contents, targets, settings)
        for side in started.values():
            close(side)
        parts = Parts(partial(stalls, block))
        sides = {name: partial(parts.sample, name) for name in (AT_ONCE, HELD_UP, LONGER)}
        about = f"a block of {STEPS} steps with a save after the first"
        yield Comparison("asynchronous saves", sides, _check_saves, {HELD_UP: 0.1, LONGER: 0.1}, about)
    finally:
        for side in [*started.values(), block]:
            close(side)


def _given(answer: Any) -> Callable[[], Sample]:
    return lambda: Sample(1, 1, answer)


def close(side: Any) -> None:
    """End the process of a side, if it has one."""
    if isinstance(side, Blocks):
        side.close()


def _check_contents(answers: dict[str, Any]) -> None:
    base, *others = answers.values()
    assert base[0] > 0 and base[1] > 0, answers
    for found in others:  # a checkpoint also holds counters and random states
        assert abs(found[0] - base[0]) < 0.01 * base[0] + 50_000, answers
        assert abs(found[1] - base[1]) < 1e-3 * base[1], answers


def _check_saves(answers: dict[str, Any]) -> None:
    """Each saved step is published and whole, and both kinds of saves hold as much."""
    triple, *others = answers.values()
    assert all(other == triple for other in others), answers
    assert abs(triple["at once"]["bytes"] - triple["beside"]["bytes"]) < 10_000, triple


def stalls(block: Callable[[], Sample]) -> dict[str, Sample]:
    """Return what the sides are of three blocks: without a save, with one at once, with one beside training."""
    triple = block().answer
    none, once, beside = (triple[kind] for kind in ("none", "at once", "beside"))
    answer = {kind: {"bytes": triple[kind]["bytes"]} for kind in ("at once", "beside")}
    return {
        AT_ONCE: Sample(once["inside"], once["inside_cpu"], answer),
        HELD_UP: Sample(beside["inside"], beside["inside_cpu"], answer),
        LONGER: Sample(beside["wall"] - none["wall"], beside["cpu"] - none["cpu"], answer),
    }


def trainer_of(folder: Path, layers: int, steps: int, quick: bool = False) -> Any:
    """Return a trainer with the real engine, for so many steps."""
    from tests.trainer.loop import documents, make_trainer, tiny_factory

    sizes = {"vocab_size": 16384, "hidden_size": 640, "intermediate_size": 1792, "num_attention_heads": 8}
    model = tiny_factory(num_hidden_layers=layers, **({} if quick else sizes))
    return make_trainer(documents([64] * steps, [32] * steps), folder, model=model)


def advance(trainer: Any, engine: Any = None, clock: Clock | None = None) -> None:
    """Take a step of the trainer's loop; the time that it waits for `engine` counts."""
    window = next(trainer.train_batches)
    with clock.watching(engine) if clock and engine else _nothing():
        counts = trainer._agree(window)
    trainer.step(window, counts)
    trainer._advance(counts)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


class Files:
    """The files of one trained step, as a checkpoint and as safetensors: what each kind does with them."""

    def __init__(self, folder: Path, trainer: Any) -> None:
        from arctic_hydra.checkpoint.deepspeed import DeepSpeedCheckpoint

        self.folder, self.trainer = folder, trainer
        self.engine = DeepSpeedCheckpoint(output_dir=str(folder / "run"), keep_last=1)
        self.engine.bind(trainer.tools.state)
        self.file = folder / "state.safetensors"

    def ready(self) -> None:
        """Write what the kinds that read need."""
        self.save()
        self.save_file()

    def save(self) -> Callable[[], list[float]]:
        """Save a checkpoint of the step."""
        self.engine.save()
        return self._checkpoint_contents

    def load(self) -> Callable[[], list[float]]:
        """Load it into model and optimizer."""
        assert self.engine.load() is not None
        return lambda: contents(self._state())

    def hash(self) -> Callable[[], list[float]]:
        """Hash its files."""
        from arctic_hydra.checkpoint.files import hash_file

        for path in self.engine.checkpoint_dir.rglob("*.pt"):
            hash_file(path)
        return self._checkpoint_contents

    def save_file(self) -> Callable[[], list[float]]:
        """Save the same tensors with safetensors, fsynced."""
        from safetensors.torch import save_file

        save_file(self._state(), self.file)
        descriptor = os.open(self.file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        return self._file_contents

    def load_file(self) -> Callable[[], list[float]]:
        """Load them, and read one byte of every page, because the file is only mapped."""
        from safetensors.torch import load_file

        loaded = load_file(self.file)
        for tensor in loaded.values():
            int(tensor.view(-1).view(dtype=_bytes())[::4096].sum())
        return lambda: contents(loaded)

    def _state(self) -> dict[str, Any]:
        """Return weights and moments, each tensor once."""
        engine = self.trainer.tools.engine
        found = {f"weight.{name}": value.detach() for name, value in engine.module.named_parameters()}
        for index, state in enumerate(engine.optimizer.state.values()):
            found |= {f"moment.{index}.{name}": value for name, value in state.items() if value.dim()}
        return found

    def _checkpoint_contents(self) -> list[float]:
        from arctic_hydra.checkpoint.writer import load_tensors

        return contents([load_tensors(path, mmap=True) for path in self.engine.checkpoint_dir.rglob("*.pt")])

    def _file_contents(self) -> list[float]:
        from safetensors.torch import load_file

        return contents(load_file(self.file))


def _bytes() -> Any:
    import torch

    return torch.uint8


def contents(item: Any) -> list[float]:
    """Return the bytes of all tensors in nested containers, each once, and the sum of the magnitudes of those in fp32."""
    import torch

    seen: dict[int, torch.Tensor] = {}

    def walk(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            seen.setdefault(item.data_ptr(), item)
        elif isinstance(item, dict | list | tuple):
            for value in item.values() if isinstance(item, dict) else item:
                walk(value)

    walk(item)
    size = sum(tensor.numel() * tensor.itemsize for tensor in seen.values())
    weights = [tensor for tensor in seen.values() if tensor.dtype == torch.float32 and tensor.dim()]  # no counters
    values = (float(tensor.abs().sum(dtype=torch.float64)) for tensor in weights)
    return [float(size), sum(values)]


def triple(trainer: Any, engines: dict[str, Any], steps: int) -> dict[str, Any]:
    """Run a block of each kind; return its seconds, those in `Trainer.checkpoint` and `finish_save`, and the bytes saved."""
    from arctic_hydra.checkpoint.store import CheckpointStore

    found = {}
    for kind in ("none", "at once", "beside"):
        clock, engine = Clock(), engines.get(kind)
        trainer.tools.checkpoints[:] = [engine] if engine else []
        wall, cpu, saved = time.perf_counter(), time.process_time(), 0
        for step in range(steps):
            advance(trainer, engine, clock)
            if step == 0 and engine:
                engine.save_every_n_steps = saved = trainer.global_step
                with clock.running():
                    trainer.checkpoint()
        if engine:
            with clock.running():  # for the rest of the writing, where the block was too short for it
                engine.finish_save()
        found[kind] = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, **vars(clock)}
        if engine:
            newest = CheckpointStore(engine.root / "checkpoints", trainer.world.rank).newest()
            assert newest is not None and newest.step == saved == newest.manifest["progress"]["global_step"]
            found[kind]["bytes"] = sum(file["bytes"] for file in newest.manifest["files"].values())
    return found


def savers(trainer: Any, folder: Path) -> dict[str, Any]:
    """Return an engine that saves at once and one that saves beside training."""
    from arctic_hydra.checkpoint.deepspeed import DeepSpeedCheckpoint

    found = {}
    for kind in ("at once", "beside"):
        found[kind] = DeepSpeedCheckpoint(asynchronous=kind == "beside", output_dir=str(folder / kind), keep_last=1)
        found[kind].bind(trainer.tools.state)
    return found


class Clock:
    """Adds up the seconds that the loop stands in a save."""

    def __init__(self) -> None:
        self.inside = self.inside_cpu = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count everything that happens inside."""
        wall, cpu = time.perf_counter(), time.thread_time()
        yield
        self.inside += time.perf_counter() - wall
        self.inside_cpu += time.thread_time() - cpu

    @contextmanager
    def watching(self, engine: Any) -> Iterator[None]:
        """Count `finish_save` of `engine` where it is called inside."""
        finish_save = engine.finish_save

        def timed() -> None:
            with self.running():
                finish_save()

        engine.finish_save = timed
        yield
        del engine.finish_save


def once(folder: Path, kinds: set[str]) -> dict[str, Any]:
    """Return the answer of every kind for a tiny model, and of three blocks."""
    trainer = trainer_of(folder, 1, 16, quick=True)
    advance(trainer)
    files = Files(folder, trainer)
    files.ready()
    answers = {kind: getattr(files, kind)()() for kind in sorted(kinds)}
    return {"files": answers, "triple": triple(trainer, savers(trainer, folder), 3)}


def main(kind: str) -> None:
    """Serve the blocks of one side."""
    from arctic_hydra import distributed

    distributed.start(distributed.World(), 60)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:  # not in a file system that is memory
        folder = Path(name)
        if kind == "triples":
            trainer = trainer_of(folder, LAYERS, 10_000)
            engines = savers(trainer, folder)
            triple(trainer, engines, STEPS)  # the first save beside training also allocates its memory
            pauses = Pauses()
            while True:
                pauses.end(triple(trainer, engines, STEPS))
        trainer = trainer_of(folder, LAYERS, 2)
        advance(trainer)
        files = Files(folder, trainer)
        files.ready()
        pauses = Pauses()
        while True:
            pauses.end(getattr(files, kind)())


if __name__ == "__main__":
    main(sys.argv[1])
