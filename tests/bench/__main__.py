"""Runs benchmarks and writes RESULTS.md: `python -m tests.bench [startup threads ...] [--rounds N] [--quick]`.

Without names, all benchmarks that compare sides run. Each writes `results/<name>.json`, and RESULTS.md shows all such files.
With `--quick`, the sides run once on small inputs: their equality is checked, nothing is timed or written.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import harness, results

HERE = Path(__file__).resolve().parent


def names() -> list[str]:
    """Return the benchmarks that compare sides."""
    return [
        path.stem.removeprefix("bench_")
        for path in sorted(HERE.glob("bench_*.py"))
        if "\ndef comparisons(" in path.read_text()
    ]


def main(arguments: list[str]) -> int:
    """Run the benchmarks; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"benchmarks: {', '.join(names())}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="check that the sides do equal work, and time nothing")
    parser.add_argument("--folder", type=Path, default=HERE, help="where results/ and RESULTS.md are written")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(names()):
        parser.error(f"{', '.join(sorted(unknown))}: there is no such benchmark; expected {', '.join(names())}")
    commit = harness.commit()  # before the first file is written
    for name in options.names or names():
        module = importlib.import_module(f"tests.bench.bench_{name}")
        found = []
        with tempfile.TemporaryDirectory() as scratch:
            for comparison in module.comparisons(Path(scratch), options.quick):
                measure = harness.grow if isinstance(comparison, harness.Series) else harness.measure
                found.append(measure(comparison, 0 if options.quick else options.rounds))
                shown = [comparison.name, "equal work"] if options.quick else results.table(found[-1])
                print("\n".join(shown), flush=True)
        if not options.quick:
            whole = {"commit": commit, "date": time.strftime("%Y-%m-%d"), "machine": harness.machine()}
            path = options.folder / "results" / f"{name}.json"
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(json.dumps({**whole, "comparisons": found}, indent=1) + "\n")
            print(f"written to {results.write(options.folder)}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
