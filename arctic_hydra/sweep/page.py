"""`sweep.html`: the jobs of a sweep as a page of tables and plots."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra.errors import printable
from arctic_hydra.files.state_file import replace_text
from arctic_hydra.report import html
from arctic_hydra.run_directory import relative
from arctic_hydra.sweep import results
from arctic_hydra.sweep.directory import FINISHED, PRUNED, Sweep
from arctic_hydra.sweep.results import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BEST, _OTHER, _GREY = "#c2410c", "#2563eb", "#9ca3af"
_CURVES = [0, 1, 2, 4, 5, 6, 7, 8, 9]
"""Colors of matplotlib's `tab10` that differ clearly from the color of the best job."""
_MOST_CURVES = 60
_FEW_VALUES = 5
_GOOD_SHARE = 0.25
_ENOUGH_JOBS = 16
_MOST_IN_LEGEND = 10
_LONGEST_TICK = 24
_TICKS_IN_A_ROW = 30
"""Maximum total length of tick labels that are drawn horizontally."""


def write(sweep: Sweep, table: Sequence[Row]) -> Path:
    """Write `sweep.html` in the sweep's directory."""
    path = sweep.path / "sweep.html"
    replace_text(path, html.page(f"{sweep.name}: sweep {sweep.id}", parts(sweep, table)))
    return path


def parts(sweep: Sweep, table: Sequence[Row]) -> Iterator[str]:
    """Yield the page's parts as HTML."""
    winner = results.best(sweep, table)
    keys = results.keys_of(table)
    yield f"<h1>{html.escape(sweep.name)}: sweep {html.escape(sweep.id)}</h1>"
    counts = {state: sum(row.state == state for row in table) for state in dict.fromkeys(row.state for row in table)}
    yield f"<p>{', '.join(f'{count} {state}' for state, count in counts.items())}; objective: {_objective(sweep)}.</p>"
    if winner:
        values = ", ".join(f"{key}={value}" for key, value in winner.values.items())
        reached = f"{html.escape(winner.metric)} {winner.objective:.4f}"
        yield f"<p><b>Best: job {winner.number}, {reached}</b> ({html.escape(values)}). Repeat it with</p>"
        yield f"<pre class='command'>{html.escape(results.command(sweep, winner.number))}</pre>"
    scored = [row for row in table if row.scored and row.state in (FINISHED, PRUNED)]
    if scored and keys:
        pruned = any(row.state == PRUNED for row in scored)
        marks = [*(["orange is the best"] if winner else []), *(["grey ones were pruned"] if pruned else [])]
        yield f"<h2>Objective by parameter</h2><p>One dot per job; {', '.join(marks)}.</p>"
        yield html.svg(_by_parameter(scored, keys, winner, _objective(sweep)))
    if len(scored) > 1 and len(keys) > 1:
        yield "<h2>All parameters together</h2><p>One line per job: the darker, the better.</p>"
        yield html.svg(_parallel(scored, keys, sweep.maximize))
    if importance := _importance(sweep, scored, keys):
        yield "<h2>Importance</h2><p>How well each parameter separates the best quarter of the jobs from the rest (PED-ANOVA).</p>"
        yield html.svg(_bars(importance))
    curves = [(row, *results.curve(row)) for row in table if row.step is not None][:_MOST_CURVES]
    if curves:
        yield "<h2>Training loss</h2>"
        yield html.svg(_curves(curves, winner))
    yield "<h2>Jobs</h2>"
    names = results.short_names(keys)
    yield html.table(
        [*results.HEADINGS, *(names[key] for key in keys), "directory"],
        (
            [*results.cells(row, keys), relative(row.run_dir)]
            for row in sorted(table, key=lambda row: _order(row, sweep.maximize))
        ),
    )
    failures = [row for row in table if row.last_line and row.state not in (FINISHED, PRUNED)]
    if failures:
        yield "<h2>Failures</h2>"
        yield html.table(["job", "status", "last line"], ([row.number, row.state, row.last_line] for row in failures))
    yield f"<h2>Command</h2><pre class='command'>{html.escape(sweep.command_line)}</pre>"


def _objective(sweep: Sweep) -> str:
    name = "evaluation loss (training loss without evaluation)" if sweep.objective == "auto" else sweep.objective
    return html.escape(f"{printable(name, keep='')}, {'higher' if sweep.maximize else 'lower'} is better")


def _order(row: Row, maximize: bool) -> tuple[bool, float]:
    if row.state != FINISHED or row.objective is None or not row.scored:
        return True, row.number
    return False, -row.objective if maximize else row.objective


def scale(values: Sequence[str]) -> tuple[list[float], list[tuple[float, str]] | None, bool]:
    """Return the positions of values on an axis, its ticks for text or few values, and whether it is logarithmic."""
    words = list(dict.fromkeys(values))
    try:
        numbers = [float(value) for value in values]
        words.sort(key=float)
    except ValueError:
        numbers = []
    if not numbers or len(words) <= _FEW_VALUES:
        return (
            [float(words.index(value)) for value in values],
            [(float(n), word) for n, word in enumerate(words)],
            False,
        )
    return numbers, None, min(numbers) > 0 and max(numbers) / min(numbers) >= 10


def _by_parameter(rows: Sequence[Row], keys: Sequence[str], winner: Row | None, name: str) -> Any:
    columns = min(3, len(keys))
    lines = math.ceil(len(keys) / columns)
    figure = html.figure(9.0, 2.8 * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for number in range(lines * columns):
        axes: Axes = grid[number // columns][number % columns]
        if number >= len(keys):
            axes.axis("off")
            continue
        positions, ticks, wide = scale([row.values.get(keys[number], "") for row in rows])
        for row, position in zip(rows, positions, strict=True):
            color = _BEST if row is winner else _OTHER if row.state == FINISHED else _GREY
            axes.plot(
                [position],
                [float(row.objective or 0.0)],
                "o",
                color=color,
                markersize=6,
                alpha=0.85,
                zorder=3 if row is winner else 2,
            )
        axes.set_xlabel(html.label(keys[number]))
        if number % columns == 0:
            axes.set_ylabel("objective")
        if wide:
            axes.set_xscale("log")
        if ticks:
            words = [html.label(results.short(word), _LONGEST_TICK) for _, word in ticks]
            axes.set_xticks([position for position, _ in ticks], words)
            if sum(len(word) for word in words) > _TICKS_IN_A_ROW:
                axes.tick_params("x", labelrotation=40)
                for tick in axes.get_xticklabels():
                    tick.set(ha="right", rotation_mode="anchor")
            axes.margins(x=0.25)
        _bare(axes)
    return figure


def _parallel(rows: Sequence[Row], keys: Sequence[str], maximize: bool) -> Any:
    from matplotlib import colormaps

    figure = html.figure(9.0, 3.6)
    axes = figure.subplots()
    scores = [float(row.objective or 0.0) for row in rows]
    low, high = min(scores), max(scores)
    height = {id(row): (score - low) / (high - low or 1.0) for row, score in zip(rows, scores, strict=True)}
    columns = []
    for key in keys:
        positions, _, wide = scale([row.values.get(key, "") for row in rows])
        positions = [math.log10(value) for value in positions] if wide else positions
        start, end = min(positions), max(positions)
        places = [(value - start) / (end - start) if end > start else 0.5 for value in positions]
        labels = [(place, row.values.get(key, "")) for place, row in zip(places, rows, strict=True)]
        columns.append((key, places, sorted(set(labels))))
    columns.append(("objective", [height[id(row)] for row in rows], [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")]))
    worst_first = sorted(range(len(rows)), key=lambda n: scores[n] if maximize else -scores[n])
    for n in worst_first:
        share = height[id(rows[n])] if maximize else 1.0 - height[id(rows[n])]
        points = [places[n] for _, places, _ in columns]
        style = "-" if rows[n].state == FINISHED else ":"
        axes.plot(
            range(len(columns)),
            points,
            style,
            color=colormaps["viridis_r"](0.05 + 0.9 * share),
            linewidth=1.6,
            alpha=0.85,
        )
    for number, (_, _, labels) in enumerate(columns):
        axes.axvline(number, color="#444", linewidth=0.8, zorder=0)
        shown = labels if len(labels) <= 6 else [labels[0], labels[-1]]
        for position, label in shown:
            axes.annotate(
                html.label(results.short(label), _LONGEST_TICK),
                (number, position),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=8,
                va="center",
                bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
            )
    axes.set_xticks(range(len(columns)), [html.label(name) for name, _, _ in columns])
    axes.set_yticks([])
    axes.margins(x=0.08)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _curves(curves: Sequence[tuple[Row, list[int], list[float]]], winner: Row | None) -> Any:
    from matplotlib import colormaps

    figure = html.figure(9.0, 3.6)
    axes = figure.subplots()
    for number, (row, steps, losses) in enumerate(curves):
        best, few = winner is not None and row.number == winner.number, len(curves) <= _MOST_IN_LEGEND
        axes.plot(
            steps,
            losses,
            marker="o" if len(steps) == 1 else None,  # a line needs at least two points
            color=_BEST if best else colormaps["tab10"](_CURVES[number % len(_CURVES)]) if few else _GREY,
            linewidth=2.0 if best else 1.1,
            alpha=1.0 if best else 0.8,
            label=f"job {row.number}, the best" if best else f"job {row.number}" if few else None,
            zorder=3 if best else 2,
        )
    axes.set_xlabel("optimizer step")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # type: ignore[call-arg]
    axes.set_ylabel("training loss")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8, ncols=2)
    _bare(axes)
    return figure


def _bars(importance: dict[str, float]) -> Any:
    figure = html.figure(9.0, 0.7 + 0.35 * len(importance))
    axes = figure.subplots()
    names = list(reversed(importance))
    axes.barh([html.label(name) for name in names], [importance[name] for name in names], color=_OTHER, height=0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share")
    _bare(axes)
    return figure


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)


def _importance(sweep: Sweep, rows: Sequence[Row], keys: Sequence[str]) -> dict[str, float]:
    """Return the importance of each parameter of a search, highest first; empty if too few jobs have finished."""
    finished = [row for row in rows if row.state == FINISHED]
    if sweep.kind != "search" or len(keys) < 2 or len(finished) < _ENOUGH_JOBS:
        return {}
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if sweep.maximize else "minimize")
    columns = {key: scale([row.values.get(key, "") for row in finished]) for key in keys}
    distributions: dict[str, Any] = {}
    for key, (positions, ticks, wide) in columns.items():
        if ticks:
            distributions[key] = CategoricalDistribution([word for _, word in ticks])
        else:
            distributions[key] = FloatDistribution(min(positions), max(positions), log=wide)
    for n, row in enumerate(finished):
        values = {
            key: row.values.get(key, "") if ticks else positions[n] for key, (positions, ticks, _) in columns.items()
        }
        study.add_trial(optuna.trial.create_trial(params=values, distributions=distributions, value=row.objective))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the evaluator is marked experimental
        evaluator = PedAnovaImportanceEvaluator(baseline_quantile=_GOOD_SHARE)
    return {key: float(share) for key, share in get_param_importances(study, evaluator=evaluator).items()}
