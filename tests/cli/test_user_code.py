"""`code=my_lab.py`: components of a file, in every process that builds the run, and nowhere else."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.__main__ import main
from arctic_hydra.files import code_file
from tests.command import SMALLEST, metrics, only_run, run

MAIN = '''
from arctic_hydra.component import component
from arctic_hydra.trainer.sft import SFTTrainer

from . import rows
from .pieces import Saboteur


@component(group="trainer", name="scaled")
class ScaledTrainer(SFTTrainer):
    """Multiplies the loss."""

    factor: float = 1.0
    """Multiplies the loss."""

    def loss(self, batch):
        from .factors import scaled

        return scaled(super().loss(batch), self.factor)

'''
PIECES = '''
import os

from arctic_hydra.callback.base import Callback
from arctic_hydra.component import component


@component(group="callback", name="saboteur")
class Saboteur(Callback):
    """Fails while a file is there."""

    file: str = "sabotage"
    """Name of the file."""

    def on_train_start(self, trainer, facts):
        assert not os.path.exists(self.file), "sabotage"
'''
ROWS = '''
from arctic_hydra.component import component
from arctic_hydra.data.source.json import JsonSource


@component(group="source", name="rows")
class Rows(JsonSource):
    """The rows of a file."""
'''
FACTORS = "def scaled(loss, factor):\n    return loss * factor\n"
RUN = (
    "code=mine/my_lab.py trainer=code:scaled callback=[code:saboteur] data=json data/sources=[code:rows] "
    f"data.sources.rows.path=rows.jsonl {SMALLEST} trainer.train_iters=2 tracking=[] checkpoint=[deepspeed]"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with data, and with the code in a folder of its own."""
    (tmp_path / "mine").mkdir()
    for name, text in (
        ("my_lab", MAIN),
        ("pieces", PIECES),
        ("rows", ROWS),
        ("factors", FACTORS),
        ("unused", "1 / 0\n"),
    ):
        (tmp_path / "mine" / f"{name}.py").write_text(text)
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello to you"}]
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps({'messages': chat})}\n" * 40)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(code_file, "_FILES", [])
    return tmp_path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_process_of_a_run_imports_the_file(folder: Path) -> None:
    """Two ranks below an agent, and processes that prepare data; then other tasks, other content, and no file."""
    again = f"{RUN} ranks=2 data.num_proc=2 trainer.factor=2"
    run(f"{again} trainer.exit_iteration=1", folder, code=75)
    run_dir = only_run(folder)
    assert metrics(run_dir)[0]["loss"] == pytest.approx(2 * math.log(4096), rel=0.05)
    record = json.loads((run_dir / "record.json").read_text())
    names = ("factors.py", "my_lab.py", "pieces.py", "rows.py")
    assert record["code"] == {"file": "my_lab.py", "sha256": {name: _sha256(folder / "mine" / name) for name in names}}
    text = (run_dir / "run.json").read_text()
    assert "arctic_hydra_code.my_lab.ScaledTrainer" in text and "my_lab.py" not in text and "mine" not in text
    (folder / "mine" / "factors.py").write_text(FACTORS + "# another content\n")
    done = run(again, folder)
    assert "code: factors.py has changed since this run last started; pass fresh=true" in done.stdout
    assert "code:" not in run(again, folder).stdout
    missing = run(again.replace("code=mine/my_lab.py", ""), folder, code=2).stderr
    assert "; options with this prefix come from a file; pass code=<path of the file> too" in missing
    assert "exported" in run(f"{again} task=export", folder).stdout
    assert "memory   peak" in run(f"{again} task=check", folder).stdout


def test_a_sweep_and_its_retry_need_the_file(folder: Path) -> None:
    (folder / "sabotage").touch()
    done = run(f"-m {RUN} trainer.factor=2", folder, code=1)
    [sweep] = (folder / "outputs" / "default" / "sweeps").iterdir()
    assert "sabotage" in done.stdout + done.stderr
    (folder / "sabotage").unlink()
    (folder / "mine" / "factors.py").write_text(FACTORS + "# another content\n")
    without = run(f"retry {sweep}", folder, code=1, module="arctic_hydra.sweep").stdout
    assert (
        "got 'arctic_hydra_code.my_lab.ScaledTrainer', a class of a file that only the command line can name" in without
    )
    retried = run(f"retry {sweep} code=mine/my_lab.py", folder, module="arctic_hydra.sweep").stdout
    assert retried.count("code: factors.py has changed since this run last started") == 1


def test_a_script_of_slurm_names_the_file_or_its_copy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dry = f"{RUN} hydra/launcher=slurm hydra.launcher.dry_run=true"
    assert f" code={folder}/mine/my_lab.py\n" in run(dry, folder).stdout
    assert "/slurm/snapshot/code/my_lab.py\n" in run(f"{dry} hydra.launcher.snapshot=true", folder).stdout


SPEC = """
from dataclasses import dataclass

from arctic_hydra.model.registry import ModelSpec, register_model_spec


@dataclass
class Config:
    vocab_size: int = 4096
    hidden_size: int = 8


@register_model_spec("words", flavors={"debug": Config()})
def words():
    from .words import Words

    return ModelSpec(model=Words)
"""
WORDS = """
from torch import nn


class Words(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids))

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.head
"""


def test_a_file_may_register_a_model_and_no_component(folder: Path) -> None:
    (folder / "mine" / "spec.py").write_text(SPEC)
    (folder / "mine" / "words.py").write_text(WORDS)
    done = run("code=mine/spec.py model=spec model.spec=words data.num_proc=1 task=check", folder)
    assert "memory   peak" in done.stdout
    (folder / "mine" / "spec.py").write_text(SPEC.replace(".words", "words"))
    done = run("code=mine/spec.py model=spec model.spec=words data.num_proc=1 task=check", folder, code=1)
    assert "import a module of its directory with a dot: `from .words import ...`" in done.stderr


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("code=", "code: got '', but there is no such file; expected the path of a Python file"),
        ("code=nowhere.py", "code: got 'nowhere.py', but there is no such file"),
        ("code=rows.jsonl", "code: got 'rows.jsonl', whose name is not that of a Python module"),
        ("code=mine/not-a-name.py", "code: got 'mine/not-a-name.py', whose name is not that of a Python module"),
        ("code=${oc.env:HOME}", "code: got '${oc.env:HOME}', but interpolations have no effect here"),
        ("+code=mine/my_lab.py", "code: got 'mine/my_lab.py', but no config may name code; pass code=<path"),
        ("code=mine/syntax.py", "syntax.py cannot be read: SyntaxError: "),
        ("code=mine/unused.py", "cannot be imported: ZeroDivisionError: division by zero (MINE/unused.py:1); fix it"),
        ("code=mine/script.py", "cannot be imported: SystemExit: 3 (MINE/script.py:2)"),
        ("code=mine/plain.py", "(MINE/plain.py:1); import a module of its directory with a dot: `from .pieces import"),
        ("code=mine/folder.py", "(MINE/folder.py:1); import a module of its directory with a dot: `from .parts import"),
        ("code=mine/factors.py", "code=mine/factors.py: registers no component; decorate a class with @component"),
        (
            "code=mine/twice.py",
            "optimizer=code:x is already arctic_hydra_code.twice.A; arctic_hydra_code.twice.B needs",
        ),
        (
            "code=mine/group.py",
            "registers x in the group 'optimiser', which no run has; expected @component(group=...)",
        ),
    ],
)
def test_what_is_wrong_with_a_file(argument: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = folder / "mine"
    optimizer = "@component(group='optimizer', name='x')\nclass {}(AdamWFactory): pass\n"
    head = "from arctic_hydra.component import component\nfrom arctic_hydra.optimizer.adamw import AdamWFactory\n"
    for name, text in (
        ("not-a-name", ""),
        ("syntax", "def"),
        ("script", "import sys\nsys.exit(3)"),
        ("plain", "import pieces"),
        ("folder", "from parts.losses import scale"),
        ("twice", head + optimizer.format("A") + optimizer.format("B")),
        ("group", head + optimizer.format("A").replace("optimizer", "optimiser")),
    ):
        (mine / f"{name}.py").write_text(text)
    (mine / "parts").mkdir()
    (mine / "parts" / "losses.py").write_text("")
    if "twice" in argument or "group" in argument:  # their classes stay registered in the process
        done: Any = run(argument, folder, code=2)
        assert said in done.stderr
        return
    assert main([argument]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said.replace("MINE", str(mine)) in line
