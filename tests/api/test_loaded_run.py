"""`arctic_hydra.load_run`: runs of every status, from the files that they leave."""

from __future__ import annotations

import json
import math

import pytest

import arctic_hydra
from arctic_hydra.run_directory import RunDirectory

LINES = [
    {"step": 0, "eval/loss": 5.0},
    {"step": 1, "loss": 4.0, "lr": 1e-3},
    {"step": 2, "loss": None, "lr": 5e-4, "non_finite": ["loss"]},
    {"step": 2, "eval/loss": 3.5},
]


@pytest.fixture
def folder(tmp_path):
    """The directory of a run whose record is missing."""
    path = tmp_path / "outputs" / "mine" / "1a2b3c4d5e"
    (path / "logs").mkdir(parents=True)
    tree = {"objective": "auto", "checkpoint": {"hf": {"output_dir": str(tmp_path / "elsewhere")}}}
    (path / "run.json").write_text(json.dumps({"format": 1, "config": tree}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


def record(folder, **values):
    RunDirectory(folder).update_record(name="mine", **values)


def test_what_is_no_path_is_an_error_of_one_sentence():
    with pytest.raises(
        TypeError, match="path: got a value of type int, expected the directory of a run as text or a Path"
    ):
        arctic_hydra.load_run(7)


def test_a_finished_run(folder, tmp_path):
    result = {"status": "finished", "step": 2, "horizon": 2, "objective": 3.5, "last_evaluation": {"step": 2}}
    record(folder, status="finished", overrides=["optimizer.lr=1e-3"], result=result)
    for path in (folder / "checkpoints/step-00000001", folder / "checkpoints/step-00000002", folder / "export-step-1"):
        path.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere" / "mine" / "1a2b3c4d5e"
    for export in (folder / "export-step-1", elsewhere / "model"):
        export.mkdir(parents=True, exist_ok=True)
        (export / "tokenizer_config.json").touch()
    (elsewhere / "checkpoints" / "step-00000003").mkdir(parents=True)
    (folder / "report.html").touch()
    run = arctic_hydra.load_run(str(folder))
    assert (run.status, run.reason, run.objective, run.step, run.horizon) == ("finished", "", 3.5, 2, 2)
    assert [path.name for path in run.checkpoints] == ["step-00000001", "step-00000002", "step-00000003"]
    assert (run.export, run.report) == (elsewhere / "model", folder / "report.html")
    assert run.overrides == ["optimizer.lr=1e-3"] and run.config["objective"] == "auto"
    assert repr(run) == "<run mine/1a2b3c4d5e: finished, objective 3.5000>"
    assert "<td>objective (eval/loss)</td><td>3.5000</td>" in run._repr_html_()


def test_metrics_are_a_table_with_the_names_of_the_file(folder):
    record(folder, status="stopped")
    table = arctic_hydra.load_run(folder).metrics
    assert list(table.columns) == ["step", "eval/loss", "loss", "lr", "non_finite"]
    assert table["step"].tolist() == [0, 1, 2, 2] and table["eval/loss"].dropna().tolist() == [5.0, 3.5]
    assert math.isnan(table["loss"].iloc[2]) and table["non_finite"].iloc[2] == ["loss"]
    (folder / "metrics.jsonl").unlink()
    assert arctic_hydra.load_run(folder).metrics.empty


def test_a_run_in_progress_and_one_that_was_killed(folder):
    record(folder, status="running")
    run, directory = arctic_hydra.load_run(folder), RunDirectory(folder)
    assert run.status == "died"
    directory.lock()
    assert (run.status, run.step, run.objective) == ("running", 2, None)
    assert repr(run) == "<run mine/1a2b3c4d5e: running at step 2>"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 2.0}\n{"step": 4, "lo')
    assert run.step == 3 and len(run.metrics) == 5, "a line that is being written does not count"
    directory.release()
    assert run.status == "died"


def test_a_run_that_ends_while_its_status_is_read_has_not_died(folder, monkeypatch):
    record(folder, status="running")
    monkeypatch.setattr(RunDirectory, "holder", lambda directory: record(folder, status="finished"))
    assert arctic_hydra.load_run(folder).status == "finished"


def test_a_task_works_under_the_lock_of_its_run(folder):
    task, lock = RunDirectory(folder).of_task("evaluate"), RunDirectory(folder)
    task.create()
    task.write_run({})
    lock.lock()
    assert arctic_hydra.load_run(task.path).status == "running"
    lock.release()
    assert arctic_hydra.load_run(task.path).status == "died"


def test_a_run_that_cannot_be_read_says_so(folder):
    record(folder, status="stopped")
    run = arctic_hydra.load_run(folder)
    (folder / "run.json").write_text("{")
    assert repr(run).startswith("<run mine/1a2b3c4d5e: ") and "run.json: not JSON" in repr(run)
    assert "run.json: not JSON" in run._repr_html_()


def test_a_failed_run_shows_why_and_escapes_it(folder):
    record(folder, status="failed", error="out of <memory>\nrank 1 of 2", overrides=["name=<b>"])
    run = arctic_hydra.load_run(folder)
    assert (run.status, run.reason) == ("failed", "out of <memory>\nrank 1 of 2")
    assert repr(run) == "<run mine/1a2b3c4d5e: failed at step 2: rank 1 of 2>"
    assert "out of &lt;memory&gt;" in run._repr_html_() and "<memory>" not in run._repr_html_()


def test_a_torn_record_is_that_of_a_stopped_run(folder):
    (folder / "record.json").write_text('{"status": "fini')
    run = arctic_hydra.load_run(folder)
    assert run.status == "stopped" and "record.json: not JSON" in run.reason
    RunDirectory(folder).write_result({"status": "finished", "step": 2, "horizon": 2, "objective": 3.5})
    assert (run.status, run.objective) == ("finished", 3.5)


def test_a_directory_that_is_no_run(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(arctic_hydra.ConfigError, match="holds no record.json; expected the directory of a run"):
            arctic_hydra.load_run(path)


def test_a_metric_is_a_figure_that_a_notebook_shows(folder):
    record(folder, status="stopped")
    run = arctic_hydra.load_run(folder)
    figure = run.plot()
    assert [line.get_label() for line in figure.axes[0].lines] == ["training", "evaluation"]
    assert figure._repr_svg_().startswith("<svg") and run.plot("eval/loss").axes[0].lines
    with pytest.raises(ValueError, match="metric: got 'los', expected one of eval/loss, loss, lr, step; did you mean"):
        run.plot("los")
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="expected one of none yet"):
        run.plot()
