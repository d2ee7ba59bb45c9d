"""The memory estimate against what torch's allocator reports for a real run on the CPU: python -m tests.bench.bench_memory

Prints, per configuration, the estimated and the measured peak of live tensor bytes on rank 0, and their ratio.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.ranks import run_ranks
from tests.trainer.loop import documents, make_trainer, tiny_factory

SIZES = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
}


class Peak:
    """The most live host tensor bytes at once, from the reports of torch's allocator; they begin at zero."""

    bytes = 0


@contextmanager
def peak_bytes() -> Iterator[Peak]:
    """Measure the block; every tensor that it frees must have been made in it."""
    from torch.autograd import profiler

    found = Peak()
    with profiler.profile(use_kineto=True, profile_memory=True) as profile:
        yield found
    reports = [(e.start_ns(), e.nbytes()) for e in profile.kineto_results.events() if e.name() == "[memory]"]
    live = 0
    for _, size in sorted(reports, key=lambda report: report[0]):
        live += size
        found.bytes = max(found.bytes, live)


def measure(folder: Path, case: dict[str, Any]) -> int:
    """Train three steps; return the peak of this rank in bytes."""
    length, steps = case["length"], 3
    count = steps * case["ranks"] * case["accumulation"]
    data = documents([length] * count, [case["supervised"]] * count, vocabulary=128)
    with peak_bytes() as peak:
        trainer = make_trainer(
            data,
            folder,
            stage=case["stage"],
            model=tiny_factory(**SIZES, **case["model"]),
            gradient_accumulation_steps=case["accumulation"],
        )
        trainer.train()
    return peak.bytes


def estimated(case: dict[str, Any]) -> Any:
    """Return the estimate for the run that `measure` makes."""
    from arctic_hydra import compose, config, memory

    model = {**SIZES, **case["model"]}
    overrides = [f"model.{name}={value}" for name, value in model.items()]
    overrides += [
        "model.num_key_value_heads=2",
        f"deepspeed=zero{case['stage']}",
        f"ranks={case['ranks']}",
        f"data.max_length={case['length']}",
        f"trainer.gradient_accumulation_steps={case['accumulation']}",
    ]
    run = config.build(compose.without_hydra(compose.compose_config(overrides, "config")))
    return memory.estimate(run, memory.Load(1, case["length"], case["supervised"]))


def case(**changes: Any) -> dict[str, Any]:
    """Return a configuration: fp32, ZeRO-0, one rank, 1024 tokens, half of them supervised, with `changes`."""
    usual = {"stage": 0, "ranks": 1, "accumulation": 1, "length": 1024, "supervised": 512, "model": {}}
    return {**usual, **changes}


def cases() -> list[dict[str, Any]]:
    """Return what is compared."""
    half, checkpointed = {"dtype": "bf16"}, {"disable_activation_checkpoint": False}
    both = {**half, **checkpointed}
    return [
        case(),
        case(model=checkpointed),
        case(accumulation=2),
        case(model=half),
        case(length=4096, supervised=2048, model=both),
        *(case(stage=stage, ranks=2, model=model) for stage in (0, 1, 2, 3) for model in ({}, both)),
        case(stage=2, ranks=2, accumulation=2, model=half),
        case(stage=3, ranks=2, accumulation=2, model=half),
    ]


def main() -> None:
    """Print one line per configuration."""
    print(f"{'estimated':>10} {'measured':>10} {'ratio':>6}   (MiB)")
    for item in cases():
        found = estimated(item)
        with tempfile.TemporaryDirectory() as folder:
            measured = run_ranks(item["ranks"], measure, Path(folder), item)[0]
        print(
            f"{found.total / 2**20:>10.1f} {measured / 2**20:>10.1f} {found.total / measured:>6.2f}   {item}",
            flush=True,
        )


if __name__ == "__main__":
    main()
