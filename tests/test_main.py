"""The command line: its flags, and what it imports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from arctic_hydra.__main__ import main
from arctic_hydra.component import flatten
from tests.command import run
from tests.composing import GOLDEN, composed


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--help", "trainer"], ["--cfg", "job"], ["optimizer.lrr=1"], ["model=ligr"], ["task=check"]],
)
def test_composing_imports_neither_torch_nor_deepspeed(arguments):
    code = (
        "import sys; from arctic_hydra.__main__ import main; main(sys.argv[1:]); "
        "print(sorted({'torch', 'deepspeed', 'transformers', 'numpy', 'mlflow'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]", done.stderr


def test_interrupts_while_the_interpreter_exits_keep_the_exit_code_of_a_stop():
    code = (
        "import atexit, subprocess; from arctic_hydra import __main__ as program\n"
        "interrupt = ['sh', '-c', 'while kill -INT $PPID; do :; done']\n"
        "atexit.register(lambda: subprocess.Popen(interrupt, stderr=subprocess.DEVNULL))\n"
        "program._dispatch = lambda arguments: 75\n"
        "raise SystemExit(program.main([]))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 75


def test_flags_and_overrides_come_in_any_order(capfd):
    assert main(["seed=3", "--cfg", "job", "trainer.epochs=2", "--package", "trainer"]) == 0
    assert "epochs: 2" in capfd.readouterr().out
    assert main(["optimizer.lr=1", "-m", "hydra/launcher=local", "seed=1,2", "task=check"]) == 0
    assert capfd.readouterr().out.count("the configuration is valid") == 2
    assert main(["seed=3", "--help", "trainer"]) == 0
    assert "trainer.epochs" in capfd.readouterr().out
    assert main(["--bogus", "seed=3"]) == 2
    assert "error: --bogus: there is no such option" in capfd.readouterr().err


def test_a_train_py_in_the_working_directory_does_not_run(tmp_path):
    (tmp_path / "train.py").write_text("raise SystemExit('it ran')\n")
    done = run("--cfg job", tmp_path)
    assert "it ran" not in done.stdout + done.stderr


def test_cfg_of_a_sweep_shows_its_first_job(capsys):
    assert main(["-m", "--cfg", "job", "--package", "optimizer", "optimizer=adamw,muon", "optimizer.lr=1e-4,2e-4"]) == 0
    shown = capsys.readouterr()
    assert "lr: 0.0001" in shown.out and "betas" in shown.out and "first job of the sweep" in shown.err


def test_cfg_job_is_valid_yaml_and_complete(capsys):
    assert main(["--cfg", "job"]) == 0
    tree = OmegaConf.create(capsys.readouterr().out)
    assert sorted(flatten(OmegaConf.to_container(tree))) == GOLDEN.read_text().split()
    assert json.dumps(OmegaConf.to_container(tree, resolve=True)) == json.dumps(composed())


BAD_FLAGS = [
    ("hydra.run.dir=x", "hydra.run.dir: has no effect on a single run; pass -m for a sweep"),
    ("--config-path=/tmp", "--config-path: has no effect here"),
    ("--modle=hf", "--modle=hf: there is no such option"),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "text"), BAD_FLAGS, ids=[argument for argument, _ in BAD_FLAGS])
def test_bad_flags_are_refused_in_one_sentence(argument, text, capsys, tmp_path):
    assert main(argument.split(" ")) == 2
    error = capsys.readouterr().err
    assert f"error: {text}" in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
