"""`arctic_hydra.compose`: the run of the command line, its errors, and what it leaves alone."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading

import pytest
from hydra import compose as compose_of_hydra
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobRuntime
from omegaconf import OmegaConf

import arctic_hydra
from arctic_hydra.__main__ import main
from arctic_hydra.cli import user_code
from arctic_hydra.component import registered
from arctic_hydra.files import code_file
from tests.composing import composed

CODE = '''
from arctic_hydra.component import component
from arctic_hydra.trainer.sft import SFTTrainer


@component(group="trainer", name="scaled")
class ScaledTrainer(SFTTrainer):
    """Multiplies the loss."""

    FIELD: float = 1.0
    """Multiplies the loss."""
'''


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    user_code.forget()


def test_it_is_the_run_of_the_command_line(tmp_path):
    overrides = ["trainer.epochs=2", "optimizer.lr=2e-4", "data.max_length=2Ki"]
    run = arctic_hydra.compose(overrides)
    assert (run.optimizer.lr, run.data.max_length, run.trainer.epochs) == (2e-4, 2048, 2)
    assert run.overrides == overrides
    assert run.directory == tmp_path / "outputs" / "default" / run.run_id and not run.directory.exists()
    tree = OmegaConf.to_container(OmegaConf.create(str(run)))
    assert {**tree, "output_root": "outputs"} == {**composed(*overrides), "output_root": "outputs"}
    assert repr(run) == f"<composed run default/{run.run_id}: trainer.epochs=2 optimizer.lr=2e-4 data.max_length=2Ki>"
    assert "optimizer" in dir(run) and "run_id" in dir(run)
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_does_not_exist_is_an_attribute_error():
    run = arctic_hydra.compose()
    with pytest.raises(AttributeError, match="the config has no key 'optimiser'; did you mean optimizer?"):
        run.optimiser  # noqa: B018
    assert copy.copy(run).run_id == run.run_id


def test_a_change_of_the_config_is_noticed():
    run = arctic_hydra.compose()
    assert not run.is_changed
    run.optimizer.lr = 1.0
    assert run.is_changed
    with pytest.raises(arctic_hydra.ConfigError, match="changed after it was composed, which has no effect"):
        arctic_hydra.run(run)


def test_a_run_with_code_is_unchanged_after_another_one_was_composed(tmp_path):
    (tmp_path / "mine.py").write_text(CODE.replace("FIELD", "factor"))
    first, second = (arctic_hydra.compose(["code=mine.py", "trainer=code:scaled", f"seed={seed}"]) for seed in (1, 2))
    assert not first.is_changed and not second.is_changed
    first.trainer.factor = 3.0
    assert first.is_changed


BAD = [
    ["optimizer.lrr=1"],
    ["optimizer.lr=-1", "trainer.epochs=x"],
    ["learning_rate=1"],
    ["recipe.yaml"],
    ["hydra.run.dir=x"],
    ["code=absent.py"],
    ["optimizer.lr=[1"],
]


@pytest.mark.parametrize("overrides", BAD, ids=" ".join)
def test_errors_are_the_sentences_of_the_command_line(overrides, capsys):
    with pytest.raises(arctic_hydra.ConfigError) as raised:
        arctic_hydra.compose(overrides)
    assert main(overrides) == 2
    assert raised.value.problems == [line.removeprefix("error: ") for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize("flag", ["-m", "--config-name=x", "--help"])
def test_flags_are_for_the_command_line(flag):
    with pytest.raises(arctic_hydra.ConfigError, match=f"{flag}: is an option of the command line; expected overrides"):
        arctic_hydra.compose([flag])


@pytest.mark.parametrize(
    ("overrides", "got"),
    [
        ("api_key=hunter2", "str"),
        ([1e-4], "float in it"),
        (["api_key=hunter2", None], "NoneType in it"),
        (None, "NoneType"),
    ],
)
@pytest.mark.parametrize("function", ["compose", "sweep"])
def test_overrides_are_a_list_of_texts(overrides, got, function):
    with pytest.raises(TypeError, match=f"overrides: got .*{got}, expected a list of texts such as") as raised:
        getattr(arctic_hydra, function)(overrides)
    assert "hunter2" not in str(raised.value)


def test_overrides_may_come_from_a_generator_and_no_composed_run_is_swept():
    assert arctic_hydra.compose(f"seed={seed}" for seed in (7,)).seed == 7
    with pytest.raises(TypeError, match="overrides: got a value of type ComposedRun, expected a list of texts"):
        arctic_hydra.sweep(arctic_hydra.compose())


def test_errors_hide_secrets():
    with pytest.raises(arctic_hydra.ConfigError) as raised:
        arctic_hydra.compose(["tracking=[wandb]", "+tracking.wandb.api_key=hunter2hunter2", "name=hunter2hunter2"])
    assert "hunter2" not in str(raised.value)
    assert raised.value.__cause__ is None and raised.value.__suppress_context__


def test_a_config_of_ones_own(tmp_path):
    folder = tmp_path / "mine"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "short.yaml").write_text("# @package _global_\ntrainer:\n  epochs: 7\n")
    assert arctic_hydra.compose(["experiment=short"], config_dir="mine").trainer.epochs == 7
    with pytest.raises(arctic_hydra.ConfigError, match="--config-dir: got 'absent', not a directory"):
        arctic_hydra.compose(config_dir="absent")
    with pytest.raises(arctic_hydra.ConfigError, match="absent"):
        arctic_hydra.compose(config_name="absent")


def test_the_file_of_code_may_be_edited_and_left_out_again(tmp_path):
    file = tmp_path / "mine.py"
    for field in ("factor", "scale"):
        file.write_text(CODE.replace("FIELD", field))
        run = arctic_hydra.compose(["code=mine.py", "trainer=code:scaled", f"trainer.{field}=2"])
        assert getattr(run.trainer, field) == 2 and run.overrides[0] == "code=mine.py"
    arctic_hydra.compose()
    assert code_file.arguments() == [] and not [name for _, name in registered("trainer") if name.startswith("code:")]
    with pytest.raises(arctic_hydra.ConfigError, match="options with this prefix come from a file; pass code="):
        arctic_hydra.compose(["trainer=code:scaled"])
    assert not list(_stored(ConfigStore.instance().repo))


def _stored(repo):
    """Yield the names of the options of a file that Hydra's config store holds."""
    for name, item in repo.items():
        yield from _stored(item) if isinstance(item, dict) else [name] if name.startswith("code:") else []


def test_it_works_inside_a_hydra_application(tmp_path):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "app.yaml").write_text("size: 3\n")
    with initialize_config_dir(str(tmp_path / "app"), version_base="1.3", job_name="app"):
        theirs = GlobalHydra.instance().hydra
        arctic_hydra.compose(config_dir=str(tmp_path / "app"))
        with pytest.raises(arctic_hydra.ConfigError):
            arctic_hydra.compose(["optimizer.lrr=1"])
        assert GlobalHydra.instance().hydra is theirs and JobRuntime.instance().get("name") == "app"
        assert compose_of_hydra("app").size == 3


def test_threads_may_compose_at_once():
    found = []
    threads = [
        threading.Thread(target=lambda lr=lr: found.append(arctic_hydra.compose([f"optimizer.lr={lr}"]).optimizer.lr))
        for lr in (1e-4, 2e-4, 3e-4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [1e-4, 2e-4, 3e-4]


def test_the_process_is_left_alone():
    before = dict(os.environ), os.getcwd(), list(sys.argv), sys.stdout, os.umask(0o022)
    os.umask(before[-1])
    arctic_hydra.compose()
    after = dict(os.environ), os.getcwd(), list(sys.argv), sys.stdout, os.umask(0o022)
    os.umask(after[-1])
    assert after == before


def test_importing_the_package_imports_nothing_else():
    """Every command and every rank imports it; the names come when they are used."""
    code = (
        "import sys; before = set(sys.modules); import arctic_hydra; arctic_hydra.__version__, dir(arctic_hydra)\n"
        "print(sorted(name for name in set(sys.modules) - before if '.' in name and name.startswith('arctic')))\n"
        "print(sorted({'hydra', 'omegaconf', 'pandas', 'matplotlib'} & set(sys.modules)))\n"
        "from arctic_hydra import *\n"
        "import arctic_hydra.sweep.directory\n"
        "print(arctic_hydra.compose is compose, callable(arctic_hydra.sweep), arctic_hydra.sweep is sweep)\n"
        "print(sorted({'torch', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]", "True True True", "[]"]


def test_a_program_that_imports_the_package_keeps_its_path(tmp_path):
    """Another package is started with `python -m`, in the folder that contains it; a module of this one imports nothing from there."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("import arctic_hydra\n")
    (tmp_path / "mine" / "train.py").write_text(
        "import os, sys\nprint(sys.path[0], os.environ.get('PYTHONSAFEPATH'))\n"
    )
    (tmp_path / "json.py").write_text("raise SystemExit('the json.py of the folder')")
    own = [sys.executable, "-m", "mine.train", "x"]
    done = subprocess.run(own, cwd=tmp_path, capture_output=True, text=True, env=_paths(), check=True)
    assert done.stdout == f"{tmp_path} None\n"
    for words in (["-m", "arctic_hydra"], ["-marctic_hydra"], ["-um", "arctic_hydra.launch.child"]):
        done = subprocess.run(
            [sys.executable, *words, "--version"], cwd=tmp_path, capture_output=True, text=True, env=_paths()
        )
        assert done.returncode == 0, done.stderr


def _paths():
    return {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}


def test_names_of_the_package():
    assert set(arctic_hydra.__all__) <= set(dir(arctic_hydra))
    for name in arctic_hydra.__all__:
        assert getattr(arctic_hydra, name).__doc__ or name == "sweep", name
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        arctic_hydra.train  # noqa: B018
