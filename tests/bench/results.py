"""RESULTS.md and its picture, from the JSON files that the benchmarks have written."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = "| | wall | CPU | ratio, wall | range | ratio, CPU | target |\n|---|---|---|---|---|---|---|"


def write(folder: Path) -> Path:
    """Write RESULTS.md and its pictures from `results/*.json` in `folder`; return the path of the former."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted((folder / "results").glob("*.json"))}
    text = [
        "# Results of the benchmarks",
        "Written by `python -m tests.bench`. Medians of interleaved rounds on one machine; each ratio is the median of the rounds' own "
        "ratios to the first line of its table. What the lines compute, or how they end, is checked in every round.",
        "![ratios of wall times, with the targets](ratios.svg)",
    ]
    items = [item for result in found.values() for item in result["comparisons"]]
    if grown := [item for item in items if "points" in item]:
        text.append("![growth of time with the size, in log-log scales](growth.svg)")
        _draw_growth(grown, folder / "growth.svg")
    for name, result in found.items():
        about = result["machine"]
        text.append(f"## {name}")
        text.append(
            f"Commit {result['commit']}, {result['date']}: {about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB, "
            f"Python {about['python']}."
        )
        for item in result["comparisons"]:
            text += table(item)
    path = folder / "RESULTS.md"
    path.write_text("\n\n".join(text) + "\n")
    _draw([item for item in items if "sides" in item], folder / "ratios.svg")
    return path


def table(item: Mapping[str, Any]) -> list[str]:
    """Return the heading and the Markdown table of one comparison or series."""
    if "points" in item:
        return _growth(item)
    first, *_ = item["sides"]
    rows = [HEAD]
    for side, row in item["sides"].items():
        further = "".join(f", {value:,.0f} {name}" for name, value in row["figures"].items())
        cells = [f"{side}{further}", f"{row['wall']:.3f} s", f"{row['cpu']:.3f} s"]
        low, high = row["range"]
        target = "" if row["target"] is None else f"{row['target']:.2f}"
        cells += ["1", "", "1", ""] if side == first else [f"**{row['ratio']:.2f}**", f"{low:.2f} to {high:.2f}"]
        cells += [] if side == first else [f"{row['cpu_ratio']:.2f}", target]
        rows.append(f"| {' | '.join(cells)} |")
    return [*_heading(item), "\n".join(rows)]


def _heading(item: Mapping[str, Any]) -> list[str]:
    load = " to ".join(f"{value:.1f}" for value in item["load"])
    about = f"{item['settings']}; " if item["settings"] else ""
    rounds = f"{item['rounds']} round{'s' * (item['rounds'] != 1)}"
    return [f"### {item['name']}", f"{about}{rounds}, load {load}."]


def _growth(item: Mapping[str, Any]) -> list[str]:
    further = [*item["points"][0]["figures"]]
    rows = [
        f"| {item['unit']} | wall | CPU |{''.join(f' {name} |' for name in further)}",
        "|---" * (3 + len(further)) + "|",
    ]
    for point in item["points"]:
        cells = [f"{point['size']:,}", f"{point['wall']:.3f} s", f"{point['cpu']:.3f} s"]
        cells += [f"{point['figures'][name]:,.0f}" for name in further]
        rows.append(f"| {' | '.join(cells)} |")
    wanted = "in proportion is 1" if item["figure"] == "wall" else "flat is 0"
    slopes = f"Slope of {item['figure']} time: **{item['slope']:.2f}**, of the last two sizes {item['last_slope']:.2f}; {wanted}."
    return [*_heading(item), "\n".join(rows), slopes]


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "arctic_hydra"  # equal figures make an equal file
    from matplotlib import pyplot

    return pyplot


def _draw_growth(items: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw each series in log-log scales, beside growth in proportion from its first point."""
    pyplot = _pyplot()
    across = min(4, len(items))
    down = -(-len(items) // across)
    figure, grid = pyplot.subplots(
        down, across, figsize=(3.2 * across, 2.8 * down), layout="constrained", squeeze=False
    )
    for axes, item in itertools.zip_longest(grid.flat, items):
        if item is None:
            axes.set_axis_off()
            continue
        sizes = [point["size"] for point in item["points"]]
        values = [point[item["figure"]] for point in item["points"]]
        axes.loglog(sizes, values, marker="o")
        if item["figure"] == "wall":
            axes.loglog(sizes, [values[0] * size / sizes[0] for size in sizes], color="tab:green", linestyle=":")
        axes.set_title(f"{item['name']}: slope {item['slope']:.2f}", fontsize=9)
        axes.set_xlabel(item["unit"])
        axes.set_ylabel(f"{item['figure']} time, s")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _draw(items: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw each ratio as a bar with its range, and its target as a line."""
    pyplot = _pyplot()
    bars = [(f"{item['name']}: {side}", row) for item in items for side, row in [*item["sides"].items()][1:]]
    figure, axes = pyplot.subplots(figsize=(10, 0.8 + 0.3 * len(bars)), layout="constrained")
    for place, (_, row) in enumerate(bars):
        low, high = row["range"]
        missed = row["target"] is not None and row["ratio"] > row["target"]
        axes.barh(place, row["ratio"], color="tab:orange" if missed else "tab:blue")
        axes.plot([low, high], [place, place], color="black", linewidth=1)
        if row["target"] is not None:
            axes.plot([row["target"]] * 2, [place - 0.4, place + 0.4], color="tab:green", linewidth=2)
    axes.set_yticks(range(len(bars)), [label for label, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("ratio of wall times to the first side; black: range over the rounds; green: target")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
