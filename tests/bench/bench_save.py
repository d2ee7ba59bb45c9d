"""How long a save holds training up: at once against beside training, interleaved, on a model of 100 M parameters.

`python tests/bench/bench_save.py [--ranks 2] [--layers N] [--steps N] [--repeats N]`. Every block takes the same steps of the
trainer's own loop; one kind saves nothing, one saves at once, one beside training. Two figures per save: the seconds
that the loop stood inside it, and how much longer the whole block took than one without a save (on a CPU the writing
thread and training share cores and memory, so this one is an upper bound of what a GPU run sees).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.ranks import run_ranks

KINDS = ("none", "at once", "beside")
TARGET = 0.15


def main() -> None:
    """Run the blocks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--layers", type=int, default=20, help="20 make 102 M parameters")
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps of a block; the save is after the first")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        rows, facts = run_ranks(options.ranks, measure, Path(folder), options, timeout=3600)[0]
    print(
        f"{facts['parameters'] / 1e6:.0f} M parameters, {options.ranks} rank(s), {facts['bytes'] / 1e9:.2f} GB a checkpoint"
    )
    print("each checkpoint verified, of equal size, and of the step that it is named after")
    print(f"{'block':>6} {'kind':<8} {'wall s':>8} {'in save s':>10}")
    for number, (kind, wall, inside) in enumerate(rows):
        print(f"{number // len(KINDS):>6} {kind:<8} {wall:>8.2f} {inside:>10.3f}")
    later = rows[len(KINDS) :] or rows  # the first save beside training also allocates its memory
    wall = {kind: statistics.median(w for k, w, _ in later if k == kind) for kind in KINDS}
    inside = {kind: statistics.median(i for k, _, i in later if k == kind) for kind in KINDS}
    stall = inside["beside"] / inside["at once"]
    extra = (wall["beside"] - wall["none"]) / (wall["at once"] - wall["none"])
    print(f"the loop stood in a save beside training for {stall:.1%} of a save at once (target {TARGET:.0%} at most)")
    print(
        f"a block took longer with it by {extra:.1%} of what a save at once cost it; peak memory {facts['peak']:.2f} GiB"
    )


def measure(folder: Path, options: argparse.Namespace) -> tuple[list[tuple[str, float, float]], dict[str, Any]]:
    """Return per block its kind, its seconds and those in `Trainer.checkpoint` and `finish_save`; and what the saves held."""
    from arctic_hydra.checkpoint.deepspeed import DeepSpeedCheckpoint
    from arctic_hydra.checkpoint.store import CheckpointStore
    from arctic_hydra.metrics import memory_gib
    from tests.trainer.loop import documents, make_trainer, tiny_factory

    blocks = options.repeats * len(KINDS)
    model = tiny_factory(
        vocab_size=16384,
        hidden_size=640,
        intermediate_size=1792,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
    )
    data = documents([64] * (blocks * options.steps * options.ranks), [32] * (blocks * options.steps * options.ranks))
    trainer = make_trainer(data, folder, model=model, stage=0 if options.ranks == 1 else 2)
    engines = {}
    for kind in KINDS[1:]:
        engines[kind] = DeepSpeedCheckpoint(asynchronous=kind == "beside", output_dir=str(folder / kind), keep_last=1)
        engines[kind].bind(trainer.tools.state)
    windows, rows, sizes = trainer.train_batches, [], []
    for block in range(blocks):
        kind = KINDS[block % len(KINDS)]
        clock = Clock()
        engine = engines.get(kind)
        trainer.tools.checkpoints[:] = [engine] if engine else []
        begin = time.perf_counter()
        for step in range(options.steps):
            window = next(windows)
            with clock.watching(engine):
                counts = trainer._agree(window)
            trainer.step(window, counts)
            trainer._advance(counts)
            if step == 0 and engine:
                engine.save_every_n_steps = trainer.global_step
                with clock.running():
                    trainer.checkpoint()
                saved = trainer.global_step
        assert engine is None or engine._pending is None, "the block was too short for the writing: raise --steps"
        rows.append((kind, time.perf_counter() - begin, clock.seconds))
        if engine:
            found = CheckpointStore(engine.root / "checkpoints", trainer.world.rank).newest()
            assert found is not None and found.step == saved == found.manifest["progress"]["global_step"]
            sizes.append(sum(file["bytes"] for file in found.manifest["files"].values()))
    assert max(sizes) - min(sizes) < 10_000, sizes
    parameters = sum(p.numel() for p in trainer.tools.engine.module.parameters())
    shutil.rmtree(folder / "beside", ignore_errors=True)
    return rows, {"parameters": parameters, "bytes": sizes[0], "peak": memory_gib(trainer.device)}


class Clock:
    """Adds up the seconds that the loop stands in a save."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Any:
        """Count everything that happens inside."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start

    @contextmanager
    def watching(self, engine: Any) -> Any:
        """Count `finish_save` of `engine` where it is called inside."""
        if engine is None:
            yield
            return
        finish_save = engine.finish_save

        def timed() -> None:
            with self.running():
                finish_save()

        engine.finish_save = timed
        yield
        del engine.finish_save


if __name__ == "__main__":
    main()
