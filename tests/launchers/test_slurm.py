"""`hydra/launcher=slurm` without a cluster: scripts as printed, and what is refused at once."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from hydra_plugins.arctic_hydra._slurm_conf import SlurmConf

from arctic_hydra import distributed
from arctic_hydra.__main__ import main
from arctic_hydra.cli.help import field_docs
from tests.command import ROOT

PAGE = (ROOT / "launchers" / "README.md").read_text()
SCRIPTS = re.findall(
    r"```bash\n(python -m arctic_hydra [^\n]*dry_run=true[^\n]*)\n```\n\n```bash\n(.*?)```", PAGE, re.DOTALL
)


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distributed, "_GPUS_ELSEWHERE", None)


@pytest.mark.parametrize(("command", "script"), SCRIPTS, ids=["1x8", "16x8", "array"])
def test_the_page_shows_what_dry_run_prints(command, script, capsys):
    assert main(command.split()[3:]) == 0
    assert capsys.readouterr().out == script + "\n"
    assert not list(Path.cwd().iterdir()), "a dry run writes nothing"


def test_a_long_sweep_takes_several_arrays(capsys):
    arguments = ["hydra/launcher=slurm", "hydra.launcher.dry_run=true", "hydra.launcher.max_array_size=3"]
    assert main(["-m", *arguments, "seed=range(8)"]) == 0
    assert re.findall(r"--array=(\S+)", capsys.readouterr().out) == ["0-2%3", "0-2%3", "0-1%2"]


def test_every_option_is_on_the_page():
    docs = field_docs(SlurmConf)
    for item in fields(SlurmConf):
        if not item.name.startswith("_"):
            assert f"`{item.name}`" in PAGE, item.name
            if item.name in docs:
                assert docs[item.name] in " ".join(PAGE.split()), f"{item.name}: the page says something else"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            "hydra.launcher.partitions=gpu",
            "hydra.launcher.partitions: there is no such key; did you mean hydra.launcher.partition?",
        ),
        (
            "hydra.launcher.nodes=two",
            "hydra.launcher.nodes: Value 'two' of type 'str' could not be converted to Integer",
        ),
        ("nnodes=2", "nnodes, hostfile: have no effect in SLURM; pass hydra.launcher.nodes=<machines>"),
        ("hydra.launcher._target_=os.system", "hydra.launcher._target_: got 'os.system', which is not allowed"),
        (
            "hydra.launcher.nodes=3 hydra.launcher.gpus_per_node=8 deepspeed.config={train_batch_size:8}",
            "deepspeed.config.train_batch_size: got 8, but micro_batch_size 1 x gradient_accumulation_steps 1 x ranks 24 = 24",
        ),
        (
            "-m hydra.launcher.exclude=n1,n2 seed=1,2",
            "hydra.launcher.exclude: got 'n1,n2', which Hydra takes for values to sweep over; pass "
            "'hydra.launcher.exclude=\"n1,n2\"' for one text with commas, or hydra.launcher.exclude=[n1,n2] for a list",
        ),
        ("-m hydra/launcher=slurm,local seed=1,2", "hydra/launcher: got 'slurm,local', expected one option"),
        ("hydra.launcher.max_array_size=-1", "hydra.launcher.max_array_size: got -1, expected 1 or more"),
        ("hydra.launcher.array_parallelism=0", "hydra.launcher.array_parallelism: got 0, expected 1 or more"),
        ("hydra.launcher.timeout_min=-5", "hydra.launcher.timeout_min: got -5, expected 0 or more"),
        ("hydra.launcher.max_requeues=-1", "hydra.launcher.max_requeues: got -1, expected 0 or more"),
        ("hydra.launcher.signal_delay_s=0", "hydra.launcher.signal_delay_s: got 0, expected 1 or more"),
        ("hydra.launcher.poll_seconds=0", "hydra.launcher.poll_seconds: got 0.0, expected more than 0"),
        (
            "hydra.launcher.timeout_min=2",
            "hydra.launcher.signal_delay_s: got 120, but hydra.launcher.timeout_min=2 gives a job 120 s: it would be told",
        ),
        ("task=evaluate", "task: got evaluate, which runs on this machine"),
        ("", "hydra/launcher: got slurm, but there is no sbatch and no srun on this machine; submit from a login node"),
    ],
)
def test_what_is_refused(arguments, text, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["hydra/launcher=slurm", *arguments.split()]) == 2
    assert text in capsys.readouterr().err
    assert not list(Path.cwd().iterdir()) or not arguments


def test_zero_is_a_number_and_false_leaves_an_option_out(capsys):
    more = "hydra.launcher.additional_parameters={requeue: false, overcommit: false, nice: 0}"
    asked = ["timeout_min=0", "mem_gb=0", "gpus_per_node=0", "exclusive=false", "dry_run=true", 'exclude="n1,n2"']
    assert main(["hydra/launcher=slurm", *(f"hydra.launcher.{item}" for item in asked), more]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in ("--time=0", "--mem=0GB", "--gpus-per-node=0", "--no-requeue", "--nice=0", "--exclude=n1,n2"):
        assert f"#SBATCH {line}" in lines
    assert not [line for line in lines if "exclusive" in line or "overcommit" in line or "--requeue" in line]


@pytest.mark.parametrize("key", ["detach", "dry_run"])
def test_a_search_waits_for_its_results(key, capsys):
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optimizer.lr=interval(0.1,0.2)"]
    assert main(["-m", "hydra/launcher=slurm", f"hydra.launcher.{key}=true", *search]) == 2
    assert f"hydra.launcher.{key}: a search waits for results" in capsys.readouterr().err
