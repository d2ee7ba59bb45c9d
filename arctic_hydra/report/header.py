"""The header of a run: model, data, engine, batch and schedule, printed before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra import display
from arctic_hydra.config import Run
from arctic_hydra.human_numbers import format_count, quantity

if TYPE_CHECKING:
    from arctic_hydra.assembly.run_data import Data
    from arctic_hydra.assembly.run_model import Model


def print_header(
    run: Run, run_dir: Path, data: Data, model: Model, memory: Sequence[str] = (), resumed_from: Path | None = None
) -> None:
    """Say the header on the first rank; `memory` holds the lines of the memory estimate."""
    world, trainer, facts = data.world, run.trainer, model.facts
    if not world.is_main:
        return
    shown = display.current()
    shown.record(f"run      {run_dir}")  # the command has printed it
    trainable = "" if facts.trainable == facts.parameters else f", {format_count(facts.trainable)} trainable"
    dealt_to = rank_groups(world.size, trainer.sequence_parallel_size)
    peak_lr = "n/a" if run.optimizer.peak_lr is None else run.optimizer.peak_lr
    figures = data.loader.summary()
    unit = "pack" if figures["packing"] else "example"
    lines = [
        f"model    {facts.name}, {format_count(facts.parameters)} parameters{trainable}, {run.model.dtype}",
        f"data     {summary_line(figures)}",
        *(f"         {line}" for line in aligned(data_table(figures))),
        f"         evaluation: {summary_line(data.eval_loader.summary()) if data.eval_loader else 'none'}",
        f"batch    {quantity(trainer.micro_batch_size, unit)} per rank x {trainer.gradient_accumulation_steps} accumulated x {dealt_to}",
        *memory,
        f"steps    {trainer.training_horizon}, {trainer.warmup_steps} of them warm-up, peak lr {peak_lr}",
    ]
    if resumed_from is not None:
        own = any(resumed_from.is_relative_to(engine.root) for engine in run.checkpoint.values())
        lines.append(f"extends  {resumed_from}" if run.extend and not own else f"resumed  from {resumed_from.name}")
    shown.say("\n".join(lines))


_LENGTHS = {"p50": "median", "p100": "longest"}


def rank_groups(ranks: int, group_size: int) -> str:
    """Return the ranks that batches are dealt to in words, such as `2 ranks`, or groups of ranks that share each sequence."""
    if group_size == 1:
        return quantity(ranks, "rank")
    return f"{quantity(ranks // group_size, 'group')} of {group_size} ranks that share each sequence"


def summary_line(figures: dict[str, Any]) -> str:
    """Return the statistics of the data, the `summary` of a loader, in one line."""
    seen = "streamed; so far " if figures.get("streaming") else ""
    parts = [f"{seen}{quantity(figures['examples'], 'example')}", f"{format_count(figures['tokens'])} tokens"]
    parts.append(f"{figures['supervised_share']:.0%} trained")
    if figures["packing"] and figures["packs"]:
        parts.append(
            f"{quantity(figures['packs'], 'pack')} of {figures.get('pack_tokens', figures['max_length']):,} tokens, "
            f"{figures['fill']:.1%} full"
        )
    return ", ".join(parts)


def data_table(figures: dict[str, Any]) -> list[list[str]]:
    """Return a table, headings first, with the counts of each source's rows: used, dropped, truncated and split."""
    percentiles = list(figures["length_tokens"])
    lengths_of = [_LENGTHS.get(name, name) for name in percentiles]
    table = [["source", "rows", "examples", "tokens", "trained", *lengths_of, "dropped or cut"]]
    for name, source in figures["sources"].items():
        part, lengths = source["prepared"], source["length_tokens"]
        changes = [f"{count:,} {reason}" for reason, count in part["dropped"].items()]
        changes += [f"{part[what]:,} {what}" for what in ("truncated", "split") if part[what]]
        lost = part["tokens_lost"]
        changes += [f"{format_count(lost)} token{'s' * (lost != 1)} lost"] if lost else []
        sizes = [f"{part['rows']:,}", f"{source['examples']:,}", format_count(source["tokens"])]
        shares = [f"{source['supervised_share']:.0%}", *(f"{lengths[name]:,}" for name in percentiles)]
        table.append([name, *sizes, *shares, ", ".join(changes) or "nothing"])
    return table


def aligned(table: list[list[str]]) -> list[str]:
    """Return the rows of a data table as lines of text, narrow enough for a terminal.

    What was dropped or cut is below the row of its source. The first column is left-aligned, the others right-aligned.
    """
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]) - 1)]
    lines = []
    for number, (first, *figures, changes) in enumerate(table):
        cells = [cell.rjust(width) for cell, width in zip(figures, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
        if number and changes != "nothing":
            lines.append(f"{'':<{widths[0]}}  dropped or cut: {changes}")
    return lines
