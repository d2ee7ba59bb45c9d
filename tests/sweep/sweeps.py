"""Sweeps for tests: on disk, through the command line, and with lines of shell in place of the ranks."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable

import optuna
import pytest

from arctic_hydra.sweep import pool
from arctic_hydra.sweep.directory import Sweep, SweepJob
from tests.command import ROOT, SMALL, run


def sweep_of(tmp_path, *jobs, kind="grid", command=()):
    entries = [SweepJob(n, list(item), str(tmp_path / f"run{n}"), "") for n, item in enumerate(jobs)]
    return Sweep(
        path=tmp_path, id="abc", name="x", kind=kind, command=list(command), objective="auto", maximize=False,
        launcher="local", working_directory="", jobs=entries,
    )  # fmt: skip


POOL = "-m hydra/launcher=local hydra.launcher.slots=2"
QUICK = f"{SMALL} trainer.eval_at_start=false tracking=[]"


def sweep_dir(folder, name="default"):
    [found] = (folder / "outputs" / name / "sweeps").iterdir()
    return found


def look(command, folder, code=0):
    """Run `python -m arctic_hydra.sweep <command>` on the one sweep of the folder."""
    word, _, more = command.partition(" ")
    return run(f"{word} {sweep_dir(folder)} {more}", folder, code=code, module="arctic_hydra.sweep")


def chats(path, rows):
    path.write_text(
        "\n".join((ROOT / "arctic_hydra/assets/chat/train_sft.jsonl").read_text().splitlines()[:rows]) + "\n"
    )


def table(folder, name="default"):
    with (sweep_dir(folder, name) / "sweep.csv").open() as handle:
        return list(csv.DictReader(handle))


optuna.logging.set_verbosity(optuna.logging.WARNING)


def trials(folder, name="default"):
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(sweep_dir(folder, name) / "study.log"))
    )
    [name] = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).trials


FINISH = (
    'echo \'{"step": 1, "loss": 2.0, "eval/loss": 3.0}\' > metrics.jsonl; '
    'echo \'{"status": "finished", "step": 1, "objective": 3.0}\' > result.json'
)


@pytest.fixture
def shell_jobs(tmp_path, monkeypatch) -> Callable[..., list[str]]:
    """Have the jobs that start from now on run these lines of shell, the last one for all further; return the seeds of those."""
    monkeypatch.chdir(tmp_path)

    def use(*lines: str) -> list[str]:
        started: list[str] = []

        def starter(job):
            def start(place):
                lock = job.write_unless_finished()
                if lock is None:
                    return None
                line = lines[min(len(started), len(lines) - 1)]
                started.append(next(item for item in job.overrides if item.startswith("seed=")))
                child = subprocess.Popen(["sh", "-c", line], cwd=job.directory.path, pass_fds=[lock])
                return pool.Started(child, job.directory)

            return start

        monkeypatch.setattr(pool, "starter", starter)
        return started

    return use
