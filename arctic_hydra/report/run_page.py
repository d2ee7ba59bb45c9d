"""`report.html`: the settings, progress and outcome of a run on one page, from the files of its directory only."""

from __future__ import annotations

import logging
import math
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arctic_hydra.component import flatten
from arctic_hydra.data.prepare.truncation import bin_edge
from arctic_hydra.errors import StateFileError
from arctic_hydra.files.state_file import replace_text
from arctic_hydra.human_numbers import format_count, format_seconds
from arctic_hydra.metrics import ranked_pairs, read_metrics, read_samples, smoothed_ends
from arctic_hydra.report import curves, html
from arctic_hydra.report.curves import Lines
from arctic_hydra.report.header import data_table, rank_groups
from arctic_hydra.report.outcome import read_run_config
from arctic_hydra.run_directory import DIED, FAILED, RUNNING, RunDirectory
from arctic_hydra.trainer.verification.verdict import verdict_lines

PAGE = "report.html"
log = logging.getLogger(__name__)


def write_if_wanted(directory: RunDirectory) -> Path | None:
    """Write the page if `log.report` is true, and return its path; an error is logged and does not fail the run."""
    try:
        return write(directory) if read_run_config(directory.path)["log"]["report"] else None
    except Exception as error:
        log.warning("cannot write %s for %s: %s: %s", PAGE, directory.path, type(error).__name__, error)
        return None


def write(directory: RunDirectory) -> Path:
    """Write `report.html` into the directory of a run, finished or not; return its path. Raises StateFileError."""
    lines = read_metrics(directory.path / "metrics.jsonl")
    try:
        page = _page(directory, directory.record(), lines)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, StateFileError):
            raise
        raise StateFileError(
            f"{directory.path}: its record.json and metrics.jsonl do not hold what the report shows ({type(error).__name__}: "
            f"{error}); another version wrote them, or they are damaged: repeat the command of the run"
        ) from error
    path = directory.path / PAGE
    replace_text(path, page)
    return path


def _page(directory: RunDirectory, record: dict[str, Any], lines: Lines) -> str:
    title = f"{record.get('name', 'run')}/{directory.path.name}"
    statistics = record.get("statistics", {})
    result = record.get("result", {})
    data = {"training": result.get("data") or statistics.get("train"), "evaluation": statistics.get("eval")}
    body = [
        f"<h1>{html.escape(title)}</h1>",
        *_outcome(_with_death(record, directory), lines),
        *_plots(lines, data["training"]),
        *_evaluations(lines),
        *_samples(directory.path / "samples.jsonl"),
        *_data({name: figures for name, figures in data.items() if figures}),
        *_setting(directory.path, record),
    ]
    return html.page(title, body)


def _with_death(record: dict[str, Any], directory: RunDirectory) -> dict[str, Any]:
    """Return a record that does not call a run running that was killed."""
    died = record.get("status") == RUNNING and directory.holder() is None
    return {**record, "status": DIED} if died else record


def _outcome(record: dict[str, Any], lines: Lines) -> Iterator[str]:
    result, steps = record.get("result", {}), [line for line in lines if "loss" in line]
    status = str(record.get("status", "unknown"))
    why = record.get("error") if status == FAILED else result.get("stop_reason")
    yield f"<p><span class='status {html.escape(status)}'>{html.escape(status)}</span> {html.escape(str(why or ''))}</p>"
    cards: list[tuple[str, str]] = []
    if steps:
        last = steps[-1]
        horizon = result.get("horizon")
        cards.append(("steps", f"{last['step']:,}" + (f" of {horizon:,}" if horizon else "")))
        if ends := smoothed_ends(steps):
            over = f", means of {ends[2]} log lines" if ends[2] > 1 else ""
            cards.append((f"loss{over}", f"{_number(ends[0])} → {_number(ends[1])}"))
        evaluated = [line for line in lines if "eval/loss" in line]
        if evaluated:
            cards.append(("evaluation loss", " → ".join(_number(line["eval/loss"]) for line in _ends(evaluated))))
            if "eval/perplexity" in evaluated[-1]:
                cards.append(("token accuracy", f"{evaluated[-1]['eval/accuracy']:.1%}"))
            if ranked := ranked_pairs(evaluated[-1], "eval/"):
                cards.append(("pairs ranked right", f"{ranked[0]:.1%}"))
        cards.append(
            ("tokens", f"{format_count(last['tokens'])}, {format_count(last['supervised_tokens'])} trained on")
        )
        seconds = sum(
            line["step_seconds"] * (line["step"] - before) for line, before in zip(steps, _before(steps), strict=True)
        )
        cards.append(("training time", format_seconds(seconds)))
        if "seconds" in record:
            cards.append(("total time, with startup and saves", format_seconds(record["seconds"])))
        whose = {"cuda": " of tensors on the GPU", "cpu": " of the process"}.get(result.get("device", ""), "")
        cards.append((f"peak memory{whose}", f"{max(line['memory_gib'] for line in steps):.2f} GiB"))
        if last.get("mfu") is not None:
            cards.append(("MFU", f"{last['mfu']:.1%}"))
        if last["skipped_steps"]:
            cards.append(("skipped steps", f"{last['skipped_steps']:,}"))
    items = "".join(f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in cards)
    yield f"<dl class=cards>{items}</dl>" if cards else "<p>No step was completed.</p>"
    for name, verdict in result.get("verification", {}).items():
        yield from (f"<p>{html.escape(line)}</p>" for line in verdict_lines(name, verdict))


def _before(steps: Lines) -> list[int]:
    return [0, *(line["step"] for line in steps[:-1])]


def _ends(lines: Lines) -> Lines:
    return [lines[0], lines[-1]] if len(lines) > 1 else lines


def _plots(lines: Lines, data: dict[str, Any] | None) -> Iterator[str]:
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval/loss" in line]
    shown = [(title, key) for title, key in _WITH_EVALUATION if any(key in line for line in steps)]
    plots: list[str] = []
    if len(steps) > 1:
        drawn = [
            *(curves.with_evaluation(title, key, steps, evaluations) for title, key in shown),
            *([curves.rewards(steps, evaluations)] if any(_REWARDS & line.keys() for line in steps) else []),
            curves.alone("learning rate", steps, "lr"),
            curves.alone("gradient norm", steps, "grad_norm", logarithmic=True, smooth=True),
            curves.alone("tokens per second", steps, "tokens_per_second", smooth=True, from_zero=True),
        ]
        plots += map(html.svg, drawn)
    if data and any(source["prepared"].get("length_bins") for source in data["sources"].values()):
        plots.append(_length_plot(data))
    if plots:
        yield f"<div class=plots>{''.join(f'<figure>{plot}</figure>' for plot in plots)}</div>"


_REWARDS = {"rewards/chosen", "rewards/rejected"}
"""A line of KTO may lack one of them, or both."""
_WITH_EVALUATION = (
    ("loss", "loss"),
    ("pairs ranked right", "rewards/accuracies"),
    ("accuracy", "accuracy"),
    ("margin", "margin"),
    ("KL", "kl"),
)
"""Titles and names of metrics that are drawn with those of the evaluations."""


def _length_plot(data: dict[str, Any]) -> str:
    """Draw the length distribution of each source's examples, before the length policy is applied."""
    figure, axes = html.plot("rows by length", "tokens per row, before the length policy")
    for index, (name, source) in enumerate(data["sources"].items()):
        bins = {int(number): count for number, count in source["prepared"].get("length_bins", {}).items()}
        if bins:
            numbers = range(min(bins), max(bins) + 1)
            edges = [bin_edge(number) for number in (*numbers, numbers[-1] + 1)]
            color = html.COLORS[index % len(html.COLORS)]
            axes.stairs([bins.get(n, 0) for n in numbers], edges, fill=True, alpha=0.25, color=color)
            axes.stairs([bins.get(n, 0) for n in numbers], edges, color=color, linewidth=1.4, label=html.label(name))
    limit = data["max_length"]
    axes.axvline(limit, color="#444", linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_xscale("log", base=2)
    side = "right" if limit * 2 > axes.get_xlim()[1] else "left"
    axes.annotate(
        f"  max_length {limit:,}  ",
        (limit, 0.98),
        xycoords=("data", "axes fraction"),
        ha=side,
        va="top",
        fontsize=9,
        color="#444",
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: format_count(value))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return html.svg(figure)


_EVALUATED = (
    ("perplexity", "perplexity", ".4g"),
    ("accuracy", "accuracy", ".2%"),
    ("pairs ranked right", "rewards/accuracies", ".1%"),
    ("margin", "rewards/margins", ".4g"),
    ("margin", "margin", ".4g"),
    ("KL", "kl", ".4g"),
)
"""Columns of the table of evaluations, if a trainer has them: heading, metric and format."""


def _evaluations(lines: Lines) -> Iterator[str]:
    rows = [line for line in lines if "eval/loss" in line]
    if not rows:
        return
    # A source has a loss in those evaluations only in which it has a unit.
    logged = dict.fromkeys(name for line in reversed(rows) for name in line)
    names = [name.removesuffix("/loss") for name in logged if name.startswith("eval") and name.endswith("/loss")]
    columns = [column for column in _EVALUATED if any(f"eval/{column[1]}" in line for line in rows)]
    heads = ["step", "loss", *(head for head, _, _ in columns)]
    heads += [f"{name.removeprefix('eval/')} loss" for name in names[1:]]
    shown = rows if len(rows) <= 12 else [*rows[:2], *rows[-10:]]
    yield "<h2>Evaluation</h2>"
    yield html.table(
        heads,
        (
            [
                f"{line['step']:,}",
                _number(line["eval/loss"]),
                *(_formatted(line.get(f"eval/{name}"), form) for _, name, form in columns),
                *(_number(line.get(f"{name}/loss")) for name in names[1:]),
            ]
            for line in shown
        ),
    )
    if len(shown) < len(rows):
        yield f"<p class=note>The first two and last ten of {len(rows)} evaluations; metrics.jsonl has all of them.</p>"


def _samples(path: Path) -> Iterator[str]:
    """Show what `callback=[samples]` generated first and last, per prompt."""
    samples = read_samples(path)
    if not samples:
        return
    steps = [sample["step"] for sample in samples]
    shown = [sample for sample in samples if sample["step"] in (steps[0], steps[-1])]
    shown.sort(key=lambda sample: (str(sample["prompt"]), sample["step"]))
    yield "<h2>Samples</h2>"
    yield html.table(
        ["prompt", "step", "completion"],
        [
            (html.escape_controls(sample["prompt"]), f"{sample['step']:,}", html.escape_controls(sample["completion"]))
            for sample in shown
        ],
    )


def _data(parts: dict[str, dict[str, Any]]) -> Iterator[str]:
    if parts:
        yield "<h2>Data</h2>"
    for name, figures in parts.items():
        head, *rows = data_table(figures)
        fill = (
            f", {figures['packs']:,} packs {figures['fill']:.2%} full"
            if figures["packing"] and figures["packs"]
            else ""
        )
        yield f"<p>{name}: {figures['examples']:,} examples, {format_count(figures['tokens'])} tokens{fill}</p>"
        yield html.table(head, rows)


def _revision(git: dict[str, Any] | None) -> str:
    return f"{git['revision'][:12]}{', modified' if git['dirty'] else ''}" if git else ""


def _setting(path: Path, record: dict[str, Any]) -> Iterator[str]:
    config = flatten(RunDirectory(path).config() or {})
    model, around = record.get("statistics", {}).get("model", {}), record.get("working_directory", {})
    facts = {
        "command": shlex.join(["python", "-m", "arctic_hydra", *record.get("overrides", [])]),
        "model": ", ".join(
            filter(
                None,
                [config.get("model.name_or_path"), model.get("name"), _parameters(model), config.get("model.dtype")],
            )
        ),
        "optimizer": f"{_kind(config, 'optimizer')}, peak lr {config.get('optimizer.lr')}",
        "schedule": _kind(config, "scheduler"),
        "batch": f"{config.get('trainer.micro_batch_size')} per rank x {config.get('trainer.gradient_accumulation_steps')} "
        f"accumulated x {rank_groups(record.get('ranks') or 1, config.get('trainer.sequence_parallel_size') or 1)}",
        "engine": f"ZeRO-{config.get('deepspeed.stage')}",
        "seed": config.get("seed"),
        "program": f"arctic_hydra {record.get('version', '')} {_revision(record.get('git'))}",
        "working directory": f"{around.get('path', '')} {_revision(around.get('git'))}",
        "machine": f"{record.get('host', '')}, Python {record.get('python', '')}",
        "versions": ", ".join(f"{name} {number}" for name, number in record.get("versions", {}).items()),
        "page written": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    yield "<h2>Setting</h2>"
    yield html.table(["", ""], [(name, value) for name, value in facts.items() if value])
    resolved = path / "config.yaml"
    if resolved.exists():
        text = html.escape(resolved.read_text(encoding="utf-8"))
        yield f"<details><summary>full configuration</summary><pre>{text}</pre></details>"


def _parameters(model: dict[str, Any]) -> str | None:
    if not model:
        return None
    part = "" if model["trainable"] == model["parameters"] else f" ({format_count(model['trainable'])} trainable)"
    return f"{format_count(model['parameters'])} parameters{part}"


def _kind(config: dict[str, Any], group: str) -> str:
    return str(config.get(f"{group}._target_", "")).rpartition(".")[2]


def _number(value: float | None) -> str:
    return _formatted(value, ".4f")


def _formatted(value: float | None, form: str) -> str:
    return "n/a" if value is None or not math.isfinite(value) else f"{value:{form}}"
