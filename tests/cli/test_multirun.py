"""What a sweep refuses before anything starts, and jobs composed once; in process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arctic_hydra.__main__ import main
from arctic_hydra.cli import multirun
from arctic_hydra.sweep.controller import SweepController
from arctic_hydra.sweep.pool import Slots

SEARCH = "-m hydra/sweeper=optuna"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("-m optimizer.lrr=1,2", "optimizer.lrr: there is no such key; did you mean optimizer.lr?"),
        ("-m seed=range(1,1)", "seed: got range(1,1), which holds no value"),
        ("-m optimizer.lr=1,-2", "optimizer.lr: got -2"),
        (
            "-m optimizer.lr=1e-4,0.0001",
            "-m: job 1 and job 0 are the same run",
        ),
        (
            "-m log.interval=1,2",
            "because log.interval=2 does not affect training; remove one, or give them different names",
        ),
        (
            "-m optimizer.lr=interval(1e-5,1e-3)",
            "optimizer.lr: got an interval, which has infinitely many values; pass hydra/sweeper=optuna",
        ),
        ("-m hydra/launcher=locall optimizer.lr=1,2", "hydra/launcher: got 'locall', expected one of basic, local"),
        ("-m hydra/launcher=local hydra.launcher.slots=0", "hydra.launcher.slots: got 0, expected 1 or more"),
        ("-m hydra.launcher.slots=2 optimizer.lr=1,2", "hydra.launcher.slots: there is no such key"),
        (
            "-m objective=eval/loss ~data.eval_sources.chat optimizer.lr=1,2",
            "objective: got eval/loss, but there is no evaluation data",
        ),
        (
            "-m objective=loss,eval/loss",
            "objective: got eval/loss and loss, but all jobs of a sweep must have the same",
        ),
        (
            "-m hydra.sweep.subdir=x seed=1,2",
            "hydra.sweep.subdir: has no effect on a sweep; remove it. Each job's directory",
        ),
        ("-m hydra.run.dir=x seed=1,2", "hydra.run.dir: has no effect on a sweep"),
        ("-m hydra.sweep.dir=/proc/nowhere seed=1,2", "hydra.sweep.dir: cannot write to /proc/nowhere"),
        ("-m output_root=/proc/nowhere optimizer.lr=1,2", "output_root: cannot write to /proc/nowhere/default/sweeps"),
        ("hydra/sweeper=optuna", "hydra/sweeper: has no effect on a single run; pass -m"),
        ("hydra/launcher=local optimizer.lr=1,2", "optimizer.lr: got '1,2'; pass -m for a sweep over these values"),
        (f"{SEARCH} optimizer.lrr=interval(0,1)", "optimizer.lrr: there is no such key"),
        (f"{SEARCH} optimizer.lr=interval(-1,1)", "optimizer.lr: got -1"),
        (f"{SEARCH} scheduler=choice(cosine,cosin)", "scheduler: got 'cosin', expected one of"),
        (f"{SEARCH} optimizer.lr=1", "-m: got nothing to search; give a key choice(a,b), range(a,b), interval(a,b)"),
        (
            f"{SEARCH} hydra.sweeper.sampler=tpee optimizer.lr=1,2",
            "hydra.sweeper.sampler: got 'tpee', expected one of tpe, random, grid, cmaes",
        ),
        (
            f"{SEARCH} hydra.sweeper.sampler=grid optimizer.lr=interval(1,2)",
            "optimizer.lr: got an interval, but hydra.sweeper.sampler=grid needs",
        ),
        (f"{SEARCH} hydra.sweeper.n_trials=0 optimizer.lr=1,2", "hydra.sweeper.n_trials: got 0, expected 1 or more"),
        (
            f"{SEARCH} hydra.sweeper.pruner=median optimizer.lr=1,2",
            "hydra.sweeper.pruner: got median, but trainer.eval_frequency=0",
        ),
        (
            f"{SEARCH} hydra.sweeper.pruner=median hydra.sweeper.pruner_kwargs={{startup:1}} trainer.eval_frequency=1 optimizer.lr=1,2",
            "hydra.sweeper.pruner_kwargs: got {'startup': 1} for median",
        ),
        (
            f"{SEARCH} seed=tag(log,int(interval(0,3)))",
            "seed: got tag(log,int(interval(0,3))), which cannot be searched: `low >= 1`",
        ),
        (
            f"{SEARCH} seed=tag(log,range(1,100,5))",
            "seed: got tag(log,range(1,100,5)), which cannot be searched: a logar",
        ),
        (
            f"{SEARCH} seed=shuffle(1,2,3)",
            "seed: got shuffle(1,2,3), which cannot be searched: a search chooses the order",
        ),
        ("-m seed=glob(*)", "seed: got glob(*), which holds no value"),
        (
            "-m seed=range(0,1,0)",
            "seed: got range(0,1,0), expected range(start,stop,step) with finite numbers and a step other",
        ),
        ("-m optimizer.lr=range(nan,1)", "optimizer.lr: got range(nan,1), expected range(start,stop,step) with finite"),
        (
            f"{SEARCH} optimizer.lr=range(0,inf)",
            "optimizer.lr: got range(0,inf), expected range(start,stop,step) with finite",
        ),
        ("-m seed=shuffle(range(0,1000000000))", "seed: the sweep has more than 100,000 jobs; try fewer values"),
        (
            "-m seed=range(0,1000) preview_examples=range(1,1000)",
            "preview_examples: the sweep has more than 100,000 jobs",
        ),
        (f"{SEARCH} seed=range(0,1000000000)", "seed: the sweep has more than 100,000 jobs; try fewer values"),
        (
            f"{SEARCH} hydra.sweeper.sampler=grid seed=range(0,1000) preview_examples=range(1,1000)",
            "preview_examples: the sweep has more than 100,000 jobs; try fewer values",
        ),
        (
            "-m hydra/launcher=slurm hydra.launcher.tasks_per_node=2 seed=1,2",
            "hydra.launcher.tasks_per_node: there is no such key; each machine has one task",
        ),
    ],
)
def test_what_is_refused(arguments, text, capsys):
    code = main([*arguments.split(), "trainer.train_iters=1"])
    output = capsys.readouterr()
    assert code == 2, output.out + output.err
    assert text in output.err
    assert "Traceback" not in output.err
    assert not list(Path.cwd().iterdir()), "what is refused leaves nothing behind"


def test_the_command_line_replaces_values_of_a_recipe():
    assert "optimizer.lr=5e-5,1e-4,2e-4,4e-4" in multirun.Multirun(["experiment=lr_sweep"], "config", None).overrides
    command = multirun.Multirun(["experiment=lr_sweep", "optimizer.lr=1e-3,2e-3"], "config", None)
    assert [[word for word in job if "lr=" in word] for job in command.samples()] == [
        ["optimizer.lr=0.001"],
        ["optimizer.lr=0.002"],
    ]


def test_a_directory_of_another_sweep_is_refused(capsys):
    """`task=train` never runs here: the other sweep's directory is met first."""
    Path("mine").mkdir()
    other = {"id": "abc", "name": "x", "kind": "grid", "command": ["seed=1,2"], "objective": "auto", "maximize": False}
    more = {"launcher": "basic", "working_directory": "/", "jobs": [], "format": 1}
    Path("mine/sweep.json").write_text(json.dumps(other | more))
    assert main(["-m", "hydra.sweep.dir=mine", "optimizer.lr=1,2"]) == 2
    assert (
        "mine, which contains another sweep (python -m arctic_hydra -m seed=1,2); choose another"
        in capsys.readouterr().err
    )


def test_a_file_edited_while_the_jobs_run_changes_nothing(capsys):
    """Every job was composed before the first starts; Hydra's own basic launcher would read the files again."""
    option = Path("mine/experiment/e.yaml")
    option.parent.mkdir(parents=True)
    option.write_text("# @package _global_\ntrainer: {train_iters: 3}\n")
    # Refused on this machine when it is started, and after it was composed: no rank has to run.
    refused = ["model=liger", "model.name_or_path=.", "ranks=1"]
    command = multirun.Multirun(["experiment=e", "seed=1,2", *refused], "config", "mine")
    jobs = {tuple(item): command.job(command.compose_job(item), item, Slots(1)) for item in command.samples()}
    sweep = multirun._sweep(command, list(jobs.values()), is_grid=True)
    sweep.lock()
    controller = SweepController(sweep, lambda wanted: pytest.fail("composed again"), jobs, Slots(1))
    option.write_text("# @package _global_\ntrainer: {train_iterss: [}\n")
    multirun._launch(command, controller, [list(item) for item in jobs])
    assert [job.run.trainer.train_iters for job in jobs.values()] == [3, 3]
    assert [(entry.number, "CUDA" in entry.problem) for entry in sweep.jobs] == [(0, True), (1, True)]
    assert controller.stop_reason == ""
