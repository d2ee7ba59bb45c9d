"""RESULTS.md and its picture, from the JSON files that the benchmarks have written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HEAD = "| | wall | CPU | ratio, wall | range | ratio, CPU | target |\n|---|---|---|---|---|---|---|"


def write(folder: Path) -> Path:
    """Write RESULTS.md and ratios.svg from `results/*.json` in `folder`; return the path of the former."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted((folder / "results").glob("*.json"))}
    text = [
        "# Results of the benchmarks",
        "Written by `python -m tests.bench`. Medians of interleaved rounds on one machine; each ratio is the median of the rounds' own "
        "ratios to the first line of its table. What the lines compute, or how they end, is checked in every round.",
        "![ratios of wall times, with the targets](ratios.svg)",
    ]
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
    _draw(found, folder / "ratios.svg")
    return path


def table(item: Mapping[str, Any]) -> list[str]:
    """Return the heading and the Markdown table of one comparison."""
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
    load = " to ".join(f"{value:.1f}" for value in item["load"])
    about = f"{item['settings']}; " if item["settings"] else ""
    return [f"### {item['name']}", f"{about}{item['rounds']} rounds, load {load}.", "\n".join(rows)]


def _draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw each ratio as a bar with its range, and its target as a line."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "arctic_hydra"  # equal figures make an equal file
    from matplotlib import pyplot

    bars = [
        (f"{item['name']}: {side}", row)
        for result in found.values()
        for item in result["comparisons"]
        for side, row in [*item["sides"].items()][1:]
    ]
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
