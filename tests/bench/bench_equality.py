"""How far each feature is from the run without it: python -m tests.bench.bench_equality

Whole runs of two optimizer steps in fp32, composed from the command line and built as the command builds them. A cell holds
the largest relative difference of a loss, then the largest difference of a trained weight, from one rank at ZeRO-0: of the
plain run where the feature changes no number, else of the feature itself. Two ranks take half the micro-steps each.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.converter import lab

FULL = "trainer.head_loss=full"
RECOMPUTED = "model.disable_activation_checkpoint=false"
FEATURES = {
    # name: (overrides, overrides of what it is compared with)
    "all logits at once": (FULL, FULL),
    "chunked loss": ("trainer.head_loss=chunked", FULL),
    "chunked, label smoothing": (
        "trainer.head_loss=chunked trainer.label_smoothing=0.1",
        f"{FULL} trainer.label_smoothing=0.1",
    ),
    "chunked, z-loss": ("trainer.head_loss=chunked trainer.z_loss=1e-3", f"{FULL} trainer.z_loss=1e-3"),
    "every layer recomputed": (RECOMPUTED, FULL),
    "every second layer recomputed": (f"{RECOMPUTED} model.activation_checkpoint_every_n_layers=2", FULL),
    "checkpointed activations on the CPU": (f"{RECOMPUTED} trainer.activation_checkpoint_cpu_offload=true", FULL),
    "tiled MLP": ("trainer.tiled_mlp_compute=true", FULL),
    "compiled": ("model.compile=true model.compile_backend=aot_eager", FULL),
    "optimizer on the CPU": ("deepspeed.offload_optimizer=true", FULL),
    "parameters on the CPU too": ("deepspeed.offload_optimizer=true deepspeed.offload_parameters=true", FULL),
    "Ulysses, 2 ranks": ("trainer.sequence_parallel_size=2", FULL),
    "padded rows": ("data.packing=false", "data.packing=false"),
    "LoRA": ("peft=lora", "peft=lora"),
    "DoRA": ("peft=dora", "peft=dora"),
    "rsLoRA": ("peft=rslora", "peft=rslora"),
    "QLoRA, NF4": ("peft=qlora", "peft=qlora"),
    "LoRA, recomputed": (f"peft=lora {RECOMPUTED}", "peft=lora"),
    "LoRA and added tokens": (
        "peft=lora tokenizer.add_tokens=[uno] peft.modules_to_save=[embed_tokens,lm_head]",
        "peft=lora tokenizer.add_tokens=[uno] peft.modules_to_save=[embed_tokens,lm_head]",
    ),
    "freeze": ("converter=[freeze] converter.freeze.patterns=[embed,layers.0]",) * 2,
    "layer-wise rates, no-decay groups": ("optimizer.layerwise_lr_decay=0.5 optimizer.no_decay=[embed]",) * 2,
    "Muon (Newton-Schulz in bf16)": ("optimizer=muon deepspeed.gradient_clipping=0",) * 2,
}
SETTINGS = ((1, 0), (2, 0), (2, 2), (2, 3))
MISSING = {
    ("optimizer on the CPU", 0): "no ZeRO",
    ("parameters on the CPU too", 0): "ZeRO-3 only",
    ("parameters on the CPU too", 2): "ZeRO-3 only",
    ("compiled", 3): "refused",
    ("QLoRA, NF4", 3): "refused",
}


def arguments(overrides: str, ranks: int, stage: int) -> str:
    """Return the command line of a run with the global batch of all others."""
    share = 2 if "sequence_parallel_size=2" in overrides else 1
    accumulation = 2 * share // ranks
    optimizer = "" if "optimizer=muon" in overrides else "optimizer.eps=1e-3 "
    return f"{overrides} {optimizer}deepspeed=zero{stage} ranks={ranks} trainer.gradient_accumulation_steps={accumulation} checkpoint=[]"


def distance(found: dict[str, Any], reference: dict[str, Any]) -> str:
    """Return how far losses (relative) and weights (absolute) are apart."""
    pairs = zip(found["losses"], reference["losses"], strict=True)
    loss = max(abs(ours - theirs) / theirs for ours, theirs in pairs)
    ours, theirs = found["weights"], reference["weights"]
    assert ours.keys() == theirs.keys()
    weight = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    return f"{loss:.0e}, {weight:.0e}"


def main() -> None:
    """Print the table in Markdown."""
    lab.warm()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = lab.save_model(folder / "model")
        wanted = {reference: arguments(reference, 1, 0) for _, reference in FEATURES.values()}
        references = lab.in_ranks(1, lab.train_each, wanted, folder / "references", model)
        columns = {}
        for ranks, stage in SETTINGS:
            runs = {
                name: arguments(overrides, ranks, stage)
                for name, (overrides, _) in FEATURES.items()
                if (name, stage) not in MISSING and not (ranks == 1 and "2 ranks" in name)
            }
            found = lab.in_ranks(ranks, lab.train_each, runs, folder / f"{ranks}-{stage}", model)
            columns[ranks, stage] = {name: distance(found[name], references[FEATURES[name][1]]) for name in found}
    heads = [f"{ranks} rank{'s' * (ranks > 1)}, ZeRO-{stage}" for ranks, stage in SETTINGS]
    print("| loss, weight | " + " | ".join(heads) + " |\n|---" + "|---" * len(heads) + "|")
    for name in FEATURES:
        cells = [columns[s].get(name, MISSING.get((name, s[1]), "-")) for s in SETTINGS]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
