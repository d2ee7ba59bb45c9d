"""`arctic_hydra.sweep`: its table, and what it refuses; the notebook runs one."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest

import arctic_hydra
from arctic_hydra.api import sweep_result
from arctic_hydra.api.child_command import Ended
from arctic_hydra.api.sweep_result import SweepResult
from arctic_hydra.distributed import count_gpus
from arctic_hydra.run_directory import RunDirectory
from tests.sweep.sweeps import sweep_of


def test_jobs_are_a_table_with_the_best(tmp_path):
    jobs = [
        [f"optimizer.lr={lr}", f"peft={peft}"] for lr, peft in (("1e-3", "none"), ("2e-3", "none"), ("4e-3", "<lora>"))
    ]
    sweep = sweep_of(tmp_path, *jobs)
    for number, status in enumerate(("finished", "finished", "failed")):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        lines = [{"step": 1, "loss": 4.0 - number}, {"step": 1, "eval/loss": 3.0 - number}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        RunDirectory(folder).update_record(status=status, **({"error": "out of memory"} if status == "failed" else {}))
    sweep.save()
    found = SweepResult(tmp_path)
    table = found.table
    assert list(table.columns) == [
        "job", "status", "objective", "step", "seconds", "optimizer.lr", "peft", "directory", "failure"
    ]  # fmt: skip
    assert table["status"].tolist() == ["finished", "finished", "failed"]
    assert table["optimizer.lr"].tolist() == [1e-3, 2e-3, 4e-3] and table["peft"].tolist()[0] == "none"
    assert table["objective"].dropna().tolist() == [3.0, 2.0] and table["failure"].tolist()[2] == "out of memory"
    assert found.best.path == tmp_path / "run1" and [run.status for run in found.runs] == table["status"].tolist()
    assert found.report is None and "best: job 1" in repr(found)
    assert "&lt;lora&gt;" in found._repr_html_() and "<lora>" not in found._repr_html_()


def test_a_sweep_that_was_killed_is_an_error_although_its_file_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    sweep_of(tmp_path / "a", ["seed=1"]).save()
    for crashed in (True, False):
        ended = Ended(-9 if crashed else 1, [], ["Killed"], False, directory=tmp_path / "a", crashed=crashed)
        monkeypatch.setattr(sweep_result, "execute", lambda *_, ended=ended, **__: ended)
        with pytest.raises(arctic_hydra.RunFailed, match="Killed") if crashed else nullcontext():
            assert arctic_hydra.sweep(["seed=1,2", "hydra.sweep.dir=b${now:%S}"]).path == tmp_path / "a"


def test_a_sweep_that_cannot_be_read_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep_of(tmp_path, ["seed=1"]).save()
    found = SweepResult(".")
    assert found.path == tmp_path
    (tmp_path / "sweep.json").write_text("{")
    assert "sweep.json: not JSON" in repr(found) and "sweep.json: not JSON" in found._repr_html_()


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["optimizer.lrr=1,2"], "optimizer.lrr: there is no such key"),
        (["optimizer.lr=1e-3,-1"], "optimizer.lr: got -1, expected 0 or more"),
        (["seed=1,1"], "-m: job 1 and job 0 are the same run"),
        (["task=check", "seed=1,2"], "task: got check, expected train"),
        (
            ["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=8", "hydra.launcher.dry_run=true"],
            "hydra.launcher.dry_run: runs no job",
        ),
    ],
)
def test_nothing_starts_unless_every_job_is_valid(overrides, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gpus = count_gpus()
    with pytest.raises(arctic_hydra.ConfigError) as raised:
        arctic_hydra.sweep(overrides)
    assert text in str(raised.value)
    assert list(tmp_path.iterdir()) == [] and count_gpus() == gpus
