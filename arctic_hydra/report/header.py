"""What a run says about itself: the header at its start, the outcome at its end."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra.checkpoint.initial_weights import Weights
from arctic_hydra.config import Run
from arctic_hydra.data.base import Loader
from arctic_hydra.distributed import World
from arctic_hydra.errors import CheckpointError
from arctic_hydra.human_numbers import format_count
from arctic_hydra.metrics import objective, read_metrics
from arctic_hydra.model.base import layer_configs
from arctic_hydra.redaction import redact
from arctic_hydra.run_directory import FINISHED, STOPPED
from arctic_hydra.trainer.base import Trainer

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a model, taken before the engine shards it."""

    name: str
    parameters: int
    trainable: int
    flops_shape: tuple[int, int, int, int]
    """Parameters of the body, of the head (as large as the embedding), layers, attention width (0 where nothing tells it)."""


def model_facts(model: Any) -> ModelFacts:
    """Count parameters; under ZeRO-3 each holds its full size in `ds_numel`, in four bits in its `quant_state`.

    Embedding and head are counted by their shape: an adapter may stand around them, or a copy beside them.
    """
    text = model.config.get_text_config()
    sizes = {id(p): _numbers(p) for p in model.parameters()}
    trainable = sum(sizes[id(p)] for p in model.parameters() if p.requires_grad)
    total = sum(sizes.values())
    table = int(text.vocab_size * text.hidden_size)
    own_head = model.get_output_embeddings() is not None and not getattr(text, "tie_word_embeddings", False)
    body, projected = total - table * (2 if own_head else 1), table
    widths = [_attention_width(layer) for layer in layer_configs(model.config)]
    shape = (body, projected, int(text.num_hidden_layers), sum(widths) // len(widths))
    return ModelFacts(type(model).__name__, total, trainable, shape)


def _attention_width(layer: Any) -> int:
    """Return heads times their size from a layer's config, or 0 where it names no heads: their FLOPs are left out then."""
    heads = getattr(layer, "num_attention_heads", None) or 0
    return int(heads * (getattr(layer, "head_dim", None) or layer.hidden_size // heads)) if heads else 0


def _numbers(parameter: Any) -> int:
    packed = getattr(parameter, "quant_state", None)
    return math.prod(packed.shape) if packed else int(getattr(parameter, "ds_numel", parameter.numel()))


def read_config(run_dir: Path) -> dict[str, Any]:
    """Return the resolved, redacted config of a run."""
    tree = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["config"]
    return redact(tree)  # type: ignore[no-any-return]


def print_header(
    run: Run,
    run_dir: Path,
    world: World,
    facts: ModelFacts,
    loader: Loader,
    eval_loader: Loader | None,
    horizon: int,
    resumed_from: Path | None,
    initialised_from: Weights | None,
    memory: list[str],
) -> None:
    """Say what is about to happen, on the ranks that print."""
    if not run.log.prints(world) or not world.is_main:
        return
    trainer = run.trainer
    trainable = "" if facts.trainable == facts.parameters else f", {format_count(facts.trainable)} trainable"
    ranks = f"{world.size} rank{'s' if world.size > 1 else ''}"
    size = trainer.sequence_parallel_size
    dealt_to = ranks if size == 1 else f"{world.size // size} group(s) of {size} ranks that share each sequence"
    lines = [
        f"run      {run_dir}",
        f"model    {facts.name}, {format_count(facts.parameters)} parameters{trainable}, {run.model.dtype}",
        f"data     {summary_line(loader)}",
        *(f"         {line}" for line in aligned(data_table(loader.summary()))),
        f"         evaluation: {summary_line(eval_loader) if eval_loader else 'none'}",
        f"engine   ZeRO-{run.deepspeed.stage} on {ranks} ({world.device.type})",
        f"batch    {trainer.micro_batch_size} per rank x {trainer.gradient_accumulation_steps} accumulated x {dealt_to}",
        *memory,
        f"steps    {horizon}, {trainer.warmup_steps} of them warm-up, peak lr {getattr(run.optimizer, 'lr', 'n/a')}",
    ]
    if initialised_from is not None and resumed_from is None:
        lines.append(f"weights  from {initialised_from.path}")
    if resumed_from is not None:
        lines.append(f"resumed  from {resumed_from.name}")
    print("\n".join(lines), flush=True)


def check_space(run: Run, facts: ModelFacts) -> None:
    """Refuse, before training, a disk that will not hold what the checkpoint engines are going to write."""
    needed: dict[int, tuple[Path, int]] = {}
    for engine in run.checkpoint.values():
        if engine.enabled:
            size = engine.needed_bytes(facts.parameters, facts.trainable, 4 if run.model.dtype == "fp32" else 2)
            root = next(path for path in (engine.root, *engine.root.parents) if path.exists())
            device = root.stat().st_dev
            needed[device] = (root, needed.get(device, (root, 0))[1] + size)
    for root, size in needed.values():
        free = shutil.disk_usage(root).free
        if free < size:
            raise CheckpointError(
                f"checkpoint: {free / 2**30:.3g} GiB are free at {root}, but about {size / 2**30:.3g} GiB are needed for "
                f"{format_count(facts.parameters)} parameters; free space, lower checkpoint.deepspeed.keep_last, or pass "
                "checkpoint.<engine>.output_dir=<a larger disk>"
            )


def summary_line(loader: Loader) -> str:
    """Return the data's figures in one line."""
    figures = loader.summary()
    seen = "streamed; so far " if figures.get("streaming") else ""
    parts = [f"{seen}{figures['examples']:,} examples", f"{format_count(figures['tokens'])} tokens"]
    parts.append(f"{figures['supervised_share']:.0%} supervised")
    if figures["packing"] and figures["packs"]:
        parts.append(f"{figures['packs']:,} packs of {figures['max_length']}, {figures['fill']:.1%} full")
    return ", ".join(parts)


def data_table(figures: dict[str, Any]) -> list[list[str]]:
    """Return a table, headings first, of what became of each source's rows."""
    percentiles = list(figures["length_tokens"])
    table = [["source", "rows", "examples", "tokens", "trained", *percentiles, "left out or cut"]]
    for name, source in figures["sources"].items():
        part, lengths = source["prepared"], source["length_tokens"]
        changes = [f"{count:,} {reason}" for reason, count in part["dropped"].items()]
        changes += [f"{part[what]:,} {what}" for what in ("truncated", "split") if part[what]]
        changes += [f"{format_count(part['tokens_lost'])} tokens lost"] if part["tokens_lost"] else []
        sizes = [f"{part['rows']:,}", f"{source['examples']:,}", format_count(source["tokens"])]
        shares = [f"{source['supervised_share']:.0%}", *(f"{lengths[name]:,}" for name in percentiles)]
        table.append([name, *sizes, *shares, ", ".join(changes) or "nothing"])
    return table


def aligned(table: list[list[str]]) -> list[str]:
    """Return the rows of a table as lines of text; the first and the last column start at the left, numbers end at the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in (0, len(row) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def statistics(loader: Loader, eval_loader: Loader | None, facts: ModelFacts) -> dict[str, Any]:
    """Return what a run knows of its data and model before the first step, for its record."""
    model = {"name": facts.name, "parameters": facts.parameters, "trainable": facts.trainable}
    evaluation = eval_loader.summary() if eval_loader else None
    return {"train": loader.summary(), "eval": evaluation, "model": model}


def outcome(run: Run, trainer: Trainer, loader: Loader, resumed_from: Path | None) -> dict[str, Any]:
    """Return how the run ended, for `result.json`: status, counters, first and last loss, objective."""
    lines = list(read_metrics(trainer.tools.run_dir / "metrics.jsonl"))
    steps = [row for row in lines if "loss" in row]
    evaluations = [row for row in lines if "eval/loss" in row]
    last = trainer.last_metrics or (steps[-1] if steps else {})
    return {
        "status": STOPPED if trainer.stop_reason and not trainer.training_finished else FINISHED,
        "stop_reason": trainer.stop_reason,
        "step": trainer.global_step,
        "horizon": trainer.training_horizon,
        "progress": trainer.progress.state_dict(),
        "first_loss": steps[0]["loss"] if steps else None,
        "last_loss": _finite(last.get("loss")),
        "first_evaluation": evaluations[0] if evaluations else None,
        "last_evaluation": evaluations[-1] if evaluations else None,
        "objective": _finite(objective([*steps, last, *evaluations] if last else evaluations, run.objective)),
        "resumed_from": str(resumed_from) if resumed_from else None,
        "data": loader.summary(),
        "data_fingerprint": loader.fingerprint,
        "world_size": trainer.world.size,
        "device": trainer.device.type,
    }


def _finite(value: float | None) -> float | None:
    """Return None for what JSON has no number for; `metrics.jsonl` names it."""
    return value if value is not None and math.isfinite(value) else None
