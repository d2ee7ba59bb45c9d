"""The end of a sweep: the table, `sweep.csv`, `sweep.html`, the MLflow runs, and the exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from arctic_hydra.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED_EARLY
from arctic_hydra.sweep import page, results
from arctic_hydra.sweep.conductor import Conductor
from arctic_hydra.sweep.directory import DIED, FAILED, FINISHED, PRUNED, Sweep
from arctic_hydra.sweep.results import Row, relative


def conclude(conductor: Conductor) -> int:
    """Write and print the results of a sweep; return its exit code."""
    sweep = conductor.sweep
    if conductor.detached:
        return EXIT_DONE
    for entry in sweep.jobs:
        conductor.value(entry)
    table = summarize(sweep)
    if conductor.stop_reason:
        print(f"the sweep was stopped ({conductor.stop_reason}); the same command resumes it")
    return exit_code(table)


def summarize(sweep: Sweep) -> list[Row]:
    """Write the results of a sweep as it stands, print the table, and return its rows."""
    table = results.rows(sweep)
    show(sweep, table)
    written = [results.write_csv(sweep, table), page.write(sweep, table)]
    print("results: " + ", ".join(str(relative(path)) for path in written))
    return table


def show(sweep: Sweep, table: Sequence[Row]) -> None:
    """Print the table: in colour on a terminal, as plain text elsewhere."""
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from rich.console import Console

        from arctic_hydra.sweep.display import rich_table

        Console().print(rich_table(table))
        print("\n".join(results.epilogue(sweep, table)))
    else:
        print(results.text(sweep, table))


def exit_code(table: Sequence[Row]) -> int:
    """Return 1 where any job failed, 75 where any is not done, else 0."""
    found = {row.state for row in table}
    if found & {FAILED, DIED}:
        return EXIT_FAILED
    return EXIT_DONE if found <= {FINISHED, PRUNED} else EXIT_STOPPED_EARLY
