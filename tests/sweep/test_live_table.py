"""The table of a sweep on a terminal."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from arctic_hydra.sweep import results
from arctic_hydra.sweep.live_table import LiveTable, most_relevant, rich_table
from tests.sweep.sweeps import sweep_of


def test_a_table_too_long_for_the_terminal_shows_what_runs():
    rows = [
        results.Row(n, state, "", {}, Path())
        for n, state in enumerate(["finished", "waiting", "running", "failed", "finished"])
    ]
    assert [row.number for row in most_relevant(rows, 3)] == [2, 3, 4]
    assert rich_table(rows, 2).caption == "2 finished, 1 waiting, 1 running, 1 failed"
    assert rich_table(rows, 9).caption is None


def test_the_end_of_a_job_reads_only_its_files(tmp_path, monkeypatch):
    sweep = sweep_of(tmp_path, ["seed=1"], ["seed=2"])
    for job in sweep.jobs:
        job.directory.create()
        job.directory.update_record(status="finished")
    read = []
    with LiveTable(sweep, live=False) as table:
        monkeypatch.setattr(results.metrics, "read_metrics", lambda path: read.append(path.parent.name) or [])
        table.job_ended(sweep.jobs[1])
    assert read == ["run1"] and table._rows[1].values == {"seed": "2"}


def test_the_last_table_names_each_job_s_directory_on_a_terminal_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [results.Row(0, "finished", "", {"seed": "1"}, tmp_path / "outputs/a/0123456789")]
    shown = {}
    for width in (100, 66):
        console = Console(width=width, file=io.StringIO(), color_system=None)
        console.print(rich_table(rows))
        shown[width] = console.file.getvalue()
    assert "outputs/a/0123456789" in shown[100]
    assert "outputs/a/012" in shown[66] and "…" not in shown[66], "folded, not cut"
    assert "directory" not in [str(column.header) for column in rich_table(rows, 9).columns]
