"""The memory estimate against what torch's allocator reports for a real run on the CPU: python -m tests.bench.bench_memory

Prints, per configuration, the estimated and the measured peak of live tensor bytes on rank 0, their ratio, and what each
option saves of a long run's measured peak.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra.converter.base import ModelConverter
from arctic_hydra.converter.peft.lora import LoraFactory
from arctic_hydra.converter.peft.qlora import QLoraFactory
from arctic_hydra.converter.tiled_mlp import TiledMLP
from arctic_hydra.model.base import ModelFactory
from arctic_hydra.model.hf import HFModelFactory
from arctic_hydra.model.names import QUANTIZATION
from arctic_hydra.model.random import RandomModelFactory
from arctic_hydra.model.vocabulary import fit_vocabulary
from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory
from tests.ranks import run_ranks
from tests.trainer.loop import documents, make_trainer, tiny_factory

if TYPE_CHECKING:
    import torch

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
    share = case["sequence_parallel"]
    count = steps * case["ranks"] // share * case["accumulation"]
    data = documents([length] * count, [case["supervised"]] * count, vocabulary=128)
    factory, converters = parts(folder, case)
    with peak_bytes() as peak:
        trainer = make_trainer(
            data,
            folder,
            stage=case["stage"],
            model=factory,
            converters=converters,
            gradient_accumulation_steps=case["accumulation"],
            sequence_parallel_size=share,
        )
        trainer.train()
    return peak.bytes


def parts(folder: Path, case: dict[str, Any]) -> tuple[ModelFactory, list[ModelConverter]]:
    """Return the model's factory and what is done to the model."""
    converters: list[ModelConverter] = [TiledMLP()] if case["tiled"] else []
    factory: ModelFactory = tiny_factory(**{**SIZES, **case["model"]})
    if case["window"]:
        factory = RandomModelFactory(**windowed(case), hf_config_kwargs={"sliding_window": case["window"]})
    if case["added"]:
        converters.append(AddsTokens(count=case["added"]))
    if case["peft"] == "none":
        return factory, converters
    adapter = (QLoraFactory if case["peft"] == "qlora" else LoraFactory)()
    if case["peft"] == "qlora":
        options = {"dtype": "fp32", "disable_activation_checkpoint": True, **case["model"]}
        factory = QuantizedModelFactory(name_or_path=str(stored(folder)), **options)
    return factory, [*converters, adapter]


class QuantizedModelFactory(HFModelFactory):
    """Loads its weights in few bits, as a run with `peft=qlora` does."""

    def create_model(self, config: Any) -> Any:
        """Return the quantized model."""
        vars(config)[QUANTIZATION] = QLoraFactory().quantization_config(self.torch_dtype)
        return super().create_model(config)


def windowed(case: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a model that sees a window of the last tokens."""
    usual = {"architecture": "mistral", "dtype": "fp32", "disable_activation_checkpoint": True}
    return {**usual, **SIZES, "num_key_value_heads": 2, **case["model"]}


@dataclass(kw_only=True)
class AddsTokens(ModelConverter):
    """Rows for tokens after those of the bundled tokenizer."""

    count: int

    def convert(self, model: torch.nn.Module) -> torch.nn.Module:
        """Grow the embedding."""
        known = BundledTokenizerFactory().create_tokenizer()
        fit_vocabulary(model, len(known) + self.count, [len(known) + n for n in range(self.count)], 1)
        return model


def stored(folder: Path) -> Path:
    """Return the directory of the model with random weights."""
    if not (folder / "model").exists():
        factory = tiny_factory(**SIZES)
        factory.create_model(factory.create_config()).save_pretrained(folder / "model")
    return folder / "model"


def estimated(case: dict[str, Any], folder: Path | None = None) -> Any:
    """Return the estimate for the run that `measure` makes in `folder`."""
    from arctic_hydra import config, memory
    from arctic_hydra.cli.composition import compose
    from arctic_hydra.cli.overrides import normalize

    model = {**SIZES, "num_key_value_heads": 2, **case["model"]}
    if case["peft"] == "qlora":
        assert folder is not None, "weights to be quantised are stored somewhere"
        model = {"dtype": "fp32", "disable_activation_checkpoint": True, **case["model"]}
        model["name_or_path"] = stored(folder)
    share = case["sequence_parallel"]
    kind = "hf" if case["peft"] == "qlora" else "tiny"
    if case["window"]:
        kind, model = "random", {**windowed(case), "hf_config_kwargs": f"{{sliding_window:{case['window']}}}"}
    overrides = [
        f"model={kind}",
        *(f"model.{name}={value}" for name, value in model.items()),
        f"tokenizer.add_tokens=[{','.join(f'new{number}' for number in range(case['added']))}]",
        f"peft={case['peft']}",
        f"deepspeed=zero{case['stage']}",
        f"ranks={case['ranks']}",
        f"data.max_length={case['length']}",
        f"trainer.gradient_accumulation_steps={case['accumulation']}",
        f"trainer.tiled_mlp_compute={case['tiled']}",
        f"trainer.sequence_parallel_size={share}",
    ]
    run = config.build(compose.compose_config([normalize(item) for item in overrides], "config").job)
    return memory.estimate(run, memory.MicroBatchShape(1, case["length"] // share, case["supervised"] // share))


def case(**changes: Any) -> dict[str, Any]:
    """Return a configuration: fp32, ZeRO-0, one rank, 1024 tokens, half of them supervised, with `changes`."""
    usual = {
        "stage": 0, "ranks": 1, "accumulation": 1, "length": 1024, "supervised": 512, "model": {}, "peft": "none",
        "tiled": False, "sequence_parallel": 1, "window": None, "added": 0,
    }  # fmt: skip
    return {**usual, **changes}


HALF, CHECKPOINTED = {"dtype": "bf16"}, {"disable_activation_checkpoint": False}
BOTH = {**HALF, **CHECKPOINTED}
SECOND = {**BOTH, "activation_checkpoint_every_n_layers": 2}
LONG = {"length": 4096, "supervised": 2048, "model": HALF}


def cases() -> dict[str, dict[str, Any]]:
    """Return what is compared: `long` is bf16 and 4096 tokens, and what follows it changes one thing of it."""
    stages = {
        f"ZeRO-{stage}, 2 ranks{', bf16, recomputed' if model else ''}": case(stage=stage, ranks=2, model=model)
        for stage in (0, 1, 2, 3)
        for model in ({}, BOTH)
    }
    return {
        "plain": case(),
        "recomputed": case(model=CHECKPOINTED),
        "accumulated": case(accumulation=2),
        "bf16": case(model=HALF),
        **stages,
        "ZeRO-2, 2 ranks, bf16, accumulated": case(stage=2, ranks=2, accumulation=2, model=HALF),
        "ZeRO-3, 2 ranks, bf16, accumulated": case(stage=3, ranks=2, accumulation=2, model=HALF),
        "long": case(**LONG),
        "long, every layer recomputed": case(**{**LONG, "model": BOTH}),
        "long, every second layer recomputed": case(**{**LONG, "model": SECOND}),
        "long, recomputed and tiled MLP": case(**{**LONG, "model": BOTH}, tiled=True),
        "long, LoRA": case(**LONG, peft="lora"),
        "long, LoRA, 2 tokens added": case(**{**LONG, "model": {**HALF, "vocab_size": 4096}}, peft="lora", added=2),
        "long, a window of 512": case(**LONG, window=512),
        "long, QLoRA": case(**LONG, peft="qlora"),
        "long, LoRA, recomputed": case(**{**LONG, "model": BOTH}, peft="lora"),
        "long, QLoRA, recomputed": case(**{**LONG, "model": BOTH}, peft="qlora"),
        "long, ZeRO-1, 2 ranks": case(**LONG, stage=1, ranks=2),
        "long, ZeRO-2, 2 ranks": case(**LONG, stage=2, ranks=2),
        "long, ZeRO-3, 2 ranks": case(**LONG, stage=3, ranks=2),
        "long, shared by 2 ranks (Ulysses)": case(**LONG, ranks=2, sequence_parallel=2),
    }


def main() -> None:
    """Print one line per configuration."""
    print(f"{'':<42} {'estimated':>10} {'measured':>10} {'ratio':>6} {'saves':>6}   (MiB; saves: of `long`)")
    long = 0
    for name, item in cases().items():
        with tempfile.TemporaryDirectory() as folder:
            found = estimated(item, Path(folder))
            measured = run_ranks(item["ranks"], measure, Path(folder), item)[0]
        long = measured if name == "long" else long
        saved = f"{1 - measured / long:>6.0%}" if name.startswith("long,") else ""
        figures = f"{found.total / 2**20:>10.1f} {measured / 2**20:>10.1f} {found.total / measured:>6.2f}"
        print(f"{name:<42} {figures} {saved}", flush=True)


if __name__ == "__main__":
    main()
