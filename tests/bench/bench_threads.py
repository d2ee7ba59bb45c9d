"""Steps of the training loop against a bare PyTorch loop of equal losses, by how long OpenMP's waiting threads spin.

`python -m tests.bench threads`. The model of `model=tiny` (5 M parameters, fp32), one document of 512 tokens per step, alone
and beside busy processes; then one of 100 M parameters, alone. All sides wait in processes of their own while one runs a block of steps.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.harness import Blocks, Comparison, Pauses, Sample, neighbours


@dataclass(frozen=True)
class Work:
    """What each step trains on, and which model."""

    tokens: int = 512
    model: dict[str, Any] = field(default_factory=dict)
    """Changes to `model=tiny`."""
    steps: int = 8
    """Of a block."""

    def documents(self) -> Any:
        """Return the documents, one for each step."""
        from tests.trainer.loop import documents

        vocabulary = self.model.get("vocab_size", 4096)
        return documents([self.tokens] * 64, [self.tokens - 1] * 64, vocabulary=vocabulary)


LARGE = {
    "vocab_size": 16384, "hidden_size": 640, "intermediate_size": 1792, "num_hidden_layers": 20,
    "num_attention_heads": 8, "num_key_value_heads": 8,
}  # fmt: skip
WORKS = {"5 M": Work(), "100 M": Work(model=LARGE, steps=2)}
UNSET: dict[str, str | None] = {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": None}
PASSIVE = {**UNSET, "OMP_WAIT_POLICY": "PASSIVE"}
SPINS = {f"spins {count}": {**UNSET, "GOMP_SPINCOUNT": count} for count in ("1000", "10000", "100000")}
SIDES: dict[str, tuple[str, dict[str, str | None]]] = {
    "bare PyTorch loop": ("bare", UNSET),
    "bare PyTorch loop, passive": ("bare", PASSIVE),
    "passive": ("ours", PASSIVE),
    **{name: ("ours", variables) for name, variables in SPINS.items()},
    "libgomp's default (300000)": ("ours", UNSET),
}
TARGETS = {"5 M": 1.05, "100 M": 1.02}


def comparisons(folder: Path, quick: bool) -> Iterator[Comparison]:
    """Yield the same sides on a quiet machine, and with one and four busy neighbours."""
    if quick:
        from tests.ranks import run_ranks

        def losses(kind: str) -> Sample:
            return Sample(
                1, 1, run_ranks(1, first_losses, kind, folder, Work(24, {"hidden_size": 32, "vocab_size": 128}))[0]
            )

        sides = {"bare": lambda: losses("bare"), "ours": lambda: losses("ours")}
        yield Comparison("training loop", sides, _check_losses)
        return
    for size, counts in (("5 M", (0, 1, 4)), ("100 M", (0,))):
        started = {name: Blocks(["-m", __name__, kind, size], variables) for name, (kind, variables) in SIDES.items()}
        try:
            for count in counts:
                with neighbours(count):
                    name = f"{WORKS[size].steps} steps of {size} parameters, {count} busy neighbours"
                    targets = {} if count else dict.fromkeys(SPINS, TARGETS[size])
                    yield Comparison(name, started, _check_losses, targets, "512 tokens")
        finally:
            for side in started.values():
                side.close()


def _check_losses(answers: dict[str, Any]) -> None:
    base, *others = answers.values()
    assert len(base) > 1 and base[0] != base[1], base
    for (
        found
    ) in others:  # the blocks go on training, so differences in rounding grow: to 1.2e-4 after some hundred steps
        assert all(abs(one - other) < 2e-3 * other for one, other in zip(found, base, strict=True)), answers


def bare_loop(end: Callable[[list[float]], None], folder: Path, work: Work) -> None:
    """Train with torch alone; call `end` with the losses of each block."""
    import torch

    from arctic_hydra.model.tiny import TinyModelFactory
    from tests.trainer.loop import attached

    torch.manual_seed(0)
    factory = attached(TinyModelFactory(attn_implementation="sdpa", **work.model))
    model = factory.create_model(factory.create_config()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    data = [torch.tensor([ids]) for ids, _ in work.documents()]
    losses: list[float] = []
    while True:
        for ids in data:
            logits = model(input_ids=ids, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            if len(losses) == work.steps:
                end(losses)
                losses = []


def our_loop(end: Callable[[list[float]], None], folder: Path, work: Work) -> None:
    """Train with the real engine and loop; call `end` with the losses of each block."""
    from arctic_hydra.callback.base import Callback
    from arctic_hydra.model.tiny import TinyModelFactory
    from tests.trainer.loop import make_trainer

    losses: list[float] = []

    class EndsBlocks(Callback):
        def on_step_end(self, trainer: Any, facts: dict[str, Any]) -> None:
            losses.append(float(facts["loss_sum"]) / facts["counts"]["units"])
            if len(losses) == work.steps:
                end(list(losses))
                losses.clear()

    trainer = make_trainer(work.documents(), folder, model=TinyModelFactory(**work.model), lr=1e-3, epochs=100_000)
    trainer.attach(trainer)
    trainer.set_callbacks([EndsBlocks()], trainer.world)
    trainer.train()


LOOPS = {"bare": bare_loop, "ours": our_loop}


def first_losses(kind: str, folder: Path, work: Work) -> list[float]:
    """Return the losses of the first block."""

    class Done(Exception):
        """The block has ended."""

    found: list[float] = []

    def end(losses: list[float]) -> None:
        found.extend(losses)
        raise Done

    try:
        LOOPS[kind](end, folder, work)
    except Done:
        pass
    return found


def main(kind: str, size: str) -> None:
    """Serve the blocks of one side."""
    import torch

    from arctic_hydra import distributed

    distributed.start(distributed.World(), 60)
    pauses: list[Pauses] = []

    def end(losses: list[float]) -> None:
        if pauses:
            pauses[0].end(losses)
        else:  # what the first block sets up is not timed
            pauses.append(Pauses())

    with tempfile.TemporaryDirectory() as folder:
        print(f"{kind}: {torch.get_num_threads()} threads", file=sys.stderr, flush=True)
        LOOPS[kind](end, Path(folder), WORKS[size])


if __name__ == "__main__":
    main(*sys.argv[1:])
