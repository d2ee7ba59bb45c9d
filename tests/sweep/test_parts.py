"""The parts of a sweep that need no run: slots, tables, what a page's axes show, the study's journal."""

from __future__ import annotations

import html
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hydra_plugins.arctic_hydra.search import distribution, mend
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from rich.console import Console

from arctic_hydra import metrics
from arctic_hydra.cli import overrides
from arctic_hydra.errors import ConfigError, RunLockedError
from arctic_hydra.run_directory import RunDirectory
from arctic_hydra.sweep import finish, page, pool, results
from arctic_hydra.sweep.board import fitting, rich_table
from arctic_hydra.sweep.conductor import Conductor
from arctic_hydra.sweep.directory import Sweep, SweepJob, states
from arctic_hydra.sweep.page import scale
from arctic_hydra.sweep.pool import Slots
from arctic_hydra.sweep.tail import Tail


@pytest.mark.parametrize(
    ("gpus", "count", "ranks", "expected"),
    [
        (8, None, ["auto"], (8, [["0"], ["1"], ["2"], ["3"], ["4"], ["5"], ["6"], ["7"]])),
        (8, 2, ["auto"], (2, [["0", "1", "2", "3"], ["4", "5", "6", "7"]])),
        (8, None, ["4", "2"], (2, [["0", "1", "2", "3"], ["4", "5", "6", "7"]])),
        (3, 2, ["1"], (2, [["0"], ["1"]])),
        (0, 3, ["auto"], (3, [])),
    ],
)
def test_slots_share_the_gpus(gpus, count, ranks, expected, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pool, "count_gpus", lambda: gpus)
    slots = Slots.plan(count, ranks)
    assert (slots.count, slots.gpus) == expected


def test_slots_take_the_devices_that_are_visible_and_refuse_more(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    monkeypatch.setattr(pool, "count_gpus", lambda: 2)
    assert Slots.plan(None, ["auto"]).gpus == [["GPU-a"], ["GPU-b"]]
    with pytest.raises(ConfigError, match="hydra.launcher.slots: got 3 with 1 GPUs each, but this machine has 2"):
        Slots.plan(3, ["auto"])


def sweep_of(tmp_path, *jobs, kind="grid", command=()):
    entries = [SweepJob(n, list(item), str(tmp_path / f"run{n}"), "") for n, item in enumerate(jobs)]
    return Sweep(
        path=tmp_path, id="abc", name="x", kind=kind, command=list(command), objective="auto", maximize=False,
        launcher="local", working_directory="", jobs=entries,
    )  # fmt: skip


def test_tables_show_what_differs(tmp_path):
    sweep = sweep_of(tmp_path, ["name=a", "optimizer.lr=1"], ["name=a", "optimizer.lr=2"], ["name=a", "+x.y=3"])
    assert results.varied_values(sweep) == [{"optimizer.lr": "1"}, {"optimizer.lr": "2"}, {"x.y": "3"}]
    assert results.short_names(["optimizer.lr", "x.lr", "a.b"]) == {
        "optimizer.lr": "optimizer.lr",
        "x.lr": "x.lr",
        "a.b": "b",
    }
    search = sweep_of(tmp_path, ["name=a", "optimizer.lr=1"], kind="search", command=["name=a", "optimizer.lr=1,2"])
    assert results.varied_values(search) == [{"optimizer.lr": "1"}]


@pytest.mark.parametrize(("kind", "space"), [("grid", "1,2"), ("search", "choice(1,2)")])
def test_a_key_given_twice_has_its_last_value_in_every_row(kind, space, tmp_path):
    """A key with a value and then a space: what equals the first value is no less a value of the space."""
    twice = ["seed=1"] if kind == "grid" else []  # a search keeps what it searches apart
    sweep = sweep_of(tmp_path, [*twice, "seed=1"], [*twice, "seed=2"], kind=kind, command=["seed=1", f"seed={space}"])
    assert results.varied_values(sweep) == [{"seed": "1"}, {"seed": "2"}]


def test_a_grid_of_one_job_varies_nothing(tmp_path):
    """The command's own words, `1e-3`, are not a job's, `0.001`."""
    sweep = sweep_of(
        tmp_path, ["optimizer.lr=0.001", "log.report=False"], command=["optimizer.lr=1e-3", "log.report=false"]
    )
    assert results.varied_values(sweep) == [{}]


NASTY = ["$_$", r"$\x$", "a^$b$", r"\$x$$", "<b>&", "/a/long/path/to/the/data/of/somebody/train.jsonl", "ü" * 40]


@pytest.mark.parametrize("kind", ["grid", "search"])
def test_a_page_shows_any_value_as_the_text_that_it_is(kind, tmp_path):
    """matplotlib takes what stands between two dollar signs for a formula."""
    keys = ["data.sources.a$_$.pattern", "seed"]
    jobs = [[f"{keys[0]}={value}", f"seed={n}"] for n, value in enumerate(NASTY * 3)]
    sweep = sweep_of(tmp_path, *jobs, kind=kind)
    for n, job in enumerate(sweep.jobs):
        job.directory.create()
        job.directory.update_record(status="finished")
        (job.directory.path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": float(n % 5)}) + "\n")
    written = page.write(sweep, results.rows(sweep)).read_text()
    assert ("<h2>Importance</h2>" in written) == (kind == "search")
    shown = [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", written)]
    assert {"$_$", r"$\x$", "a^$b$", r"\$x$$", "<b>&", "data.sources.a$_$.pattern"} <= set(shown)
    assert any(text.startswith("/a/long/") and text.endswith("dy/train.jsonl") and "…" in text for text in shown)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("marks", ["orange is the best, grey ones were pruned", "grey ones were pruned"])
def test_a_page_says_what_its_colours_mean(marks, tmp_path):
    """With the best job and without, of more jobs than a legend holds."""
    sweep = sweep_of(tmp_path, *[[f"seed={n}"] for n in range(12)])
    for job in sweep.jobs:
        job.directory.create()
        best = job.number == 0 and "orange" in marks
        job.mark = "" if best else "pruned"
        job.directory.update_record(status="finished" if best else "stopped")
        (job.directory.path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n')
    assert f"<p>One dot per job; {marks}.</p>" in page.write(sweep, results.rows(sweep)).read_text()


def test_a_page_that_cannot_be_written_costs_neither_table_nor_csv(tmp_path, capsys):
    sweep = sweep_of(tmp_path, ["seed=1"], ["seed=2"])
    (tmp_path / "sweep.html").mkdir()
    assert [row.state for row in finish.summarize(sweep, [])] == ["waiting", "waiting"]
    output = capsys.readouterr()
    assert "waiting" in output.out and "results: " in output.out and (tmp_path / "sweep.csv").is_file()
    assert "warning: arctic_hydra.sweep.page left out a file" in output.err and "Traceback" not in output.err


def test_states_come_from_records_locks_and_marks(tmp_path):
    sweep = sweep_of(tmp_path, *[[f"seed={n}"] for n in range(6)])
    running, stopped = {"status": "running"}, {"status": "stopped"}
    records = [None, running, running, stopped, stopped, {"status": "failed", "error": "a\nb"}]
    for job, entry in zip(sweep.jobs, records, strict=True):
        if entry:
            job.directory.create()
            job.directory.record_file.write_text(json.dumps(entry))
            job.submission = {"kind": "local", "pid": 0}
    held = RunDirectory(tmp_path / "run1")
    held.lock()
    sweep.jobs[3].mark = "pruned"
    found = states(sweep)
    assert [state for state, _ in found] == ["waiting", "running", "died", "pruned", "stopped", "failed"]
    assert "start the sweep again" in found[2][1]
    assert results.rows(sweep)[5].last_line == "b"
    held.release()
    assert states(sweep)[1][0] == "died"


def test_a_job_that_starts_again_is_rid_of_its_former_end(tmp_path):
    """Refused by sbatch or failed, then finished: the table would go on with the old error."""
    sweep = sweep_of(tmp_path, ["seed=0"])
    directory = sweep.jobs[0].directory
    directory.create()
    directory.forget_outcome()
    assert not directory.record_file.exists()
    directory.update_record(status="failed", error="it was refused", result={"step": 3}, seconds=7.0)
    directory.forget_outcome()
    directory.update_record(status="finished")
    assert (states(sweep), directory.record()) == ([("finished", "")], {"status": "finished", "seconds": 7.0})


def test_a_sweep_has_one_conductor_and_reads_back_as_it_was(tmp_path):
    sweep = sweep_of(tmp_path, ["seed=1"])
    sweep.conduct()
    sweep.save()
    again = Sweep.load(tmp_path)
    assert again.jobs == sweep.jobs and again.command == sweep.command
    assert "process" in (again.conductor() or "")
    with pytest.raises(RunLockedError, match="is in use by another run"):
        again.conduct()


def test_a_second_interrupt_leaves_jobs_stopped_and_not_failed(tmp_path):
    """As with a single run; the job's process is killed, which it otherwise would be by the kernel, for memory."""
    sweep = sweep_of(tmp_path, ["seed=1"], ["seed=2"])

    def start(place):
        directory = sweep.jobs[0].directory
        directory.update_record(status="running")
        deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(flush=True); time.sleep(60)"
        child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
        child.stdout.readline()
        threading.Thread(target=interrupt_twice).start()
        return pool.Started(child, directory)

    def interrupt_twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.1)

    reason = pool.Pool(sweep, Slots(1)).run([(job, start) for job in sweep.jobs])
    assert reason == "received SIGINT"
    assert [state for state, _ in states(sweep)] == ["stopped", "waiting"]
    assert finish.exit_code(results.rows(sweep)) == 75


@pytest.mark.parametrize("state", ["stopped", "pruned"])
def test_a_job_that_dies_when_asked_to_stop_has_not_failed(state, tmp_path):
    """By a signal, or by an observer that prunes what has logged a step."""
    sweep = sweep_of(tmp_path, ["seed=1"])
    dies = "trap 'exit 1' INT TERM; echo; while :; do sleep 0.01; done"

    def start(place):
        directory = sweep.jobs[0].directory
        directory.update_record(status="running")
        child = subprocess.Popen(["sh", "-c", dies], stdout=subprocess.PIPE)
        child.stdout.readline()
        if state == "stopped":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            (directory.path / "metrics.jsonl").write_text('{"step": 1}\n')
        return pool.Started(child, directory)

    sweep.jobs[0].directory.create()
    pool.Pool(sweep, Slots(1), lambda entry, rows: True).run([(sweep.jobs[0], start)])
    assert [found for found, _ in states(sweep)] == [state]


def test_the_tail_of_a_file_that_grows_is_torn_and_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.new_rows() == []
    path.write_text('{"step": 1}\n{"st')
    assert tail.new_rows() == [{"step": 1}]
    path.write_text('{"step": 1}\n{"step": 2}\n')
    assert tail.new_rows() == [{"step": 2}]
    path.write_text('{"step": 1}\n')
    assert tail.new_rows() == [{"step": 1}]


def test_the_objective_is_the_last_evaluation_after_training_else_the_loss():
    start, step, end = {"step": 0, "eval/loss": 9.0}, {"step": 1, "loss": 2.0}, {"step": 1, "eval/loss": 3.0}
    assert metrics.objective([start, step, end], "auto") == 3.0
    assert metrics.objective([start, step], "auto") == 2.0
    assert metrics.objective([start, step, end], "eval/accuracy") is None


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("auto", [{"step": 1, "loss": 2.0}, {"step": 1, "eval/loss": math.nan}]),
        ("auto", [{"step": 1, "eval/loss": 3.0}, {"step": 2, "eval/loss": math.inf}]),
        ("loss", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}]),
        ("eval/loss", [{"step": 0, "eval/loss": 3.0}, {"step": 1, "eval/loss": math.nan}, {"step": 1, "loss": 1.0}]),
    ],
)
@pytest.mark.parametrize("maximize", [False, True])
def test_a_job_that_diverged_is_the_worst_and_never_the_best(name, lines, maximize, tmp_path):
    """Neither its training loss nor an earlier evaluation stands in; a search is told the worst number that there is."""
    sweep = sweep_of(tmp_path, ["seed=1"], ["seed=2"])
    sweep.objective, sweep.maximize = name, maximize
    for job, logged in zip(sweep.jobs, (lines, [{"step": 1, "loss": 5.0}, {"step": 2, "eval/loss": 5.0}]), strict=True):
        job.directory.create()
        job.directory.update_record(status="finished")
        file = metrics.MetricsFile(tmp_path / f"run{job.number}" / "metrics.jsonl")
        for line in logged:
            file.write(line)
        file.close()
    table = results.rows(sweep)
    assert math.isnan(table[0].objective) and table[1].objective == 5.0
    assert results.best(sweep, table) is table[1] and results.best(sweep, table[:1]) is None
    text = results.text(sweep, table)
    assert "job 0 diverged: its last objective is not a finite number" in text and "best: job 1" in text
    conductor = Conductor(sweep, None, {}, Slots(1))
    assert conductor.value(sweep.jobs[0]) == (-math.inf if maximize else math.inf)
    assert conductor.value(sweep.jobs[1]) == 5.0 and not sweep.jobs[0].problem
    assert "<svg" in page.write(sweep, table).read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("choice(cosine,constant)", CategoricalDistribution(["cosine", "constant"])),
        ("1e-4,2", CategoricalDistribution(["0.0001", "2"])),
        ("range(1,8,3)", IntDistribution(1, 7, step=3)),
        ("range(0.5,2.0,0.5)", FloatDistribution(0.5, 1.5, step=0.5)),
        ("interval(0.1,2)", FloatDistribution(0.1, 2.0)),
        ("tag(log,interval(1e-5,1e-2))", FloatDistribution(1e-5, 1e-2, log=True)),
        ("int(interval(1,9))", IntDistribution(1, 9)),
        ("tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
    ],
)
def test_sweep_syntax_is_a_distribution(text, expected):
    [item] = overrides.parse([f"optimizer.lr={text}"])
    assert distribution("optimizer.lr", item, as_text=False) == expected


def test_axes_have_words_few_values_and_logarithms():
    assert scale(["b", "a", "b"]) == ([0.0, 1.0, 0.0], [(0.0, "b"), (1.0, "a")], False)
    assert scale(["4", "1"]) == ([1.0, 0.0], [(0.0, "1"), (1.0, "4")], False)
    assert scale([str(10.0**-n) for n in range(7)])[1:] == (None, True)


def test_a_journal_torn_by_a_kill_is_mended(tmp_path):
    journal = tmp_path / "study.log"
    mend(journal)
    journal.write_text('{"a": 1}\n{"b"')
    (tmp_path / "study.log.lock").symlink_to(journal)
    mend(journal)
    assert journal.read_text() == '{"a": 1}\n'
    assert not (tmp_path / "study.log.lock").is_symlink()


def test_a_table_too_long_for_the_terminal_shows_what_runs():
    rows = [
        results.Row(n, state, "", {}, Path())
        for n, state in enumerate(["finished", "waiting", "running", "failed", "finished"])
    ]
    assert [row.number for row in fitting(rows, 3)] == [2, 3, 4]
    assert rich_table(rows, 2).caption == "2 finished, 1 waiting, 1 running, 1 failed"
    assert rich_table(rows, 9).caption is None


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
