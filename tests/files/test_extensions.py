"""A user's own package adds options without a fork: one entry point, a `conf` package, classes with `@component`."""

from __future__ import annotations

import json
import math
from importlib.metadata import EntryPoint

import pytest

from arctic_hydra import component
from arctic_hydra.files import extensions
from tests.command import SMALL, losses, metrics, only_run, run


def test_its_options_compose_with_their_own_keys(my_lab, tmp_path):
    done = run("optimizer=soap optimizer.precondition_every_steps=2Ki --cfg job", tmp_path, PYTHONPATH=str(my_lab))
    assert "precondition_every_steps: 2Ki" in done.stdout
    assert "lr: 0.0001" in done.stdout
    wrong = run("optimizer=soap optimizer.precondition_steps=3 --cfg job", tmp_path, code=2, PYTHONPATH=str(my_lab))
    assert "did you mean optimizer.precondition_every_steps?" in wrong.stderr
    zero = run(
        "optimizer=soap optimizer.precondition_every_steps=0 --cfg job", tmp_path, code=2, PYTHONPATH=str(my_lab)
    )
    assert "optimizer.precondition_every_steps: got 0, expected 1 or more" in zero.stderr


def test_its_free_form_dictionaries_take_values_like_ours(my_lab, tmp_path):
    done = run("callback=[courier] callback.courier.options={a:2^10} --cfg job", tmp_path, PYTHONPATH=str(my_lab))
    assert "a: 1024" in done.stdout


def test_without_it_the_option_is_unknown(tmp_path):
    done = run("optimizer=soap --cfg job", tmp_path, code=2)
    assert "optimizer: got 'soap', expected one of adamw" in done.stderr


def test_its_callback_hears_the_run(my_lab, tmp_path):
    run(
        f"{SMALL} optimizer=soap callback=[recorder] trainer.train_iters=2 tracking=[]",
        tmp_path,
        PYTHONPATH=str(my_lab),
    )
    run_dir = only_run(tmp_path)
    assert json.loads((run_dir / "moments.jsonl.rank0").read_text()) == {"train_end": 2, "model": True}
    assert len((run_dir / "examples.jsonl.rank0").read_text().splitlines()) == 2


def test_a_models_config_and_its_making_are_overridden_one_by_one(my_lab, tmp_path):
    small = f"{SMALL} trainer.train_iters=1 tracking=[]"
    run(f"{small} model=shallow name=shallow", tmp_path, PYTHONPATH=str(my_lab))
    config = json.loads((only_run(tmp_path, "shallow") / "export" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"]) == (1, 64)
    run(f"{small} model=silent name=silent", tmp_path, PYTHONPATH=str(my_lab))
    assert losses(only_run(tmp_path, "silent"))[0] == pytest.approx(math.log(4096), abs=1e-4)


def test_its_callback_hears_an_error_while_the_run_is_built(my_lab, tmp_path):
    (tmp_path / "empty").mkdir()
    arguments = f"{SMALL} callback=[recorder] tracking=[] init_from=empty"
    run(arguments, tmp_path, code=1, PYTHONPATH=str(my_lab))
    heard = json.loads((only_run(tmp_path) / "moments.jsonl.rank0").read_text())
    assert "/empty holds no weights; expected" in heard["exception"]


def test_its_callback_ends_a_run_and_its_converter_changes_weights_at_zero_3(my_lab, tmp_path):
    from safetensors.torch import load_file

    acting = (
        "callback=[target] callback.target.loss=100 converter=[clamp] converter.clamp.limit=0.5 deepspeed=zero3 ranks=2"
    )
    done = run(f"{SMALL} {acting} checkpoint=[hf] tracking=[]", tmp_path, PYTHONPATH=str(my_lab))
    assert "finished 1 step;" in done.stdout and "the loss has reached 100" in done.stdout
    run_dir = only_run(tmp_path)
    assert {line["target"] for line in metrics(run_dir)} == {100.0}
    weights = load_file(run_dir / "export" / "model.safetensors")
    assert max(float(value.max()) for name, value in weights.items() if "norm" in name) == 0.5


def test_an_extension_can_be_a_single_module(tmp_path):
    (tmp_path / "single.py").write_text("")
    (tmp_path / "single-1.0.dist-info").mkdir()
    (tmp_path / "single-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: single\nVersion: 1.0\n")
    (tmp_path / "single-1.0.dist-info" / "entry_points.txt").write_text("[arctic_hydra]\ns = single\n")
    run("--cfg job", tmp_path, PYTHONPATH=str(tmp_path))


OPTIONS = """
from arctic_hydra.callback.base import Callback
from arctic_hydra.component import component
from arctic_hydra.optimizer.adamw import AdamWFactory


@component(group="optimizer", name="soap2")
class Soap2(AdamWFactory):
    \"""Registered.\"""


@component(group="callback", name="herald")
class Herald(Callback):
    \"""Registered.\"""
"""
ABSTRACT = """

from arctic_hydra.trainer.base import Trainer


@component(group="trainer", name="abstract")
class Abstract(Trainer):
    \"""Has no loss.\"""


@component(group="trainers", name="misplaced")
class Misplaced(Trainer):
    \"""Names a group that does not exist.\"""


@component(group="trainer", name="stranger")
class Stranger(AdamWFactory):
    \"""Is no trainer.\"""
"""
SCHEMA = "defaults:\n  - /schema/{}@_here_\n  - _self_\n"


def install(folder, name, options, **confs):
    """Write an extension package with one module, and return what PYTHONPATH has to be."""
    package, metadata = folder / name, folder / f"{name}-1.0.dist-info"
    (package / "conf").mkdir(parents=True)
    metadata.mkdir()
    for path, text in (("__init__.py", ""), ("conf/__init__.py", ""), ("options.py", options)):
        (package / path).write_text(text)
    for option, text in confs.items():
        path = package / "conf" / f"{option.replace('__', '/')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[arctic_hydra]\n{name} = {name}.options\n")
    return str(folder)


def fails(arguments, folder, path):
    """Run a command that is refused, and return its only line of error."""
    done = run(f"{arguments} --cfg job", folder, code=2, PYTHONPATH=path)
    [line] = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert line.startswith("error: "), done.stderr
    return line


BROKEN = {
    "a missing package": (
        "import nothing_of_that_name\n",
        "ModuleNotFoundError: No module named 'nothing_of_that_name'",
    ),
    "a typo in an event": (
        OPTIONS + "    def on_step_ende(self, trainer, facts): ...\n",
        "TypeError: Herald.on_step_ende",
    ),
    "a name twice": (
        OPTIONS.replace("soap2", "fused_adam"),
        "DuplicateOption: optimizer=fused_adam is already arctic_hydra.optimizer",
    ),
    "bad syntax": ("def\n", "SyntaxError: "),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_extension_is_named_and_blocks_only_what_uses_it(what, tmp_path):
    text, said = BROKEN[what]
    confs = {"optimizer__soap2": SCHEMA.format("optimizer/soap2"), "callback__herald": "# @package callback.herald\n"}
    confs["callback__herald"] += SCHEMA.format("callback/herald")
    path = install(tmp_path / "site", "broken_lab", text, **confs)
    done = run("--cfg job", tmp_path, PYTHONPATH=path)
    [warning] = done.stderr.splitlines()
    told = "extension 'broken_lab' of package 'broken-lab' cannot be imported: "
    assert warning.startswith(f"warning: {told}{said}") and "fix it, or `pip uninstall broken-lab`" in warning
    assert "broken_lab/options.py:" in warning
    for option in ("optimizer=soap2", "callback=[herald]"):
        assert told in fails(option, tmp_path, path)


def test_one_that_failed_is_not_imported_again(tmp_path, monkeypatch):
    """Its options would then seem to exist twice, which blocks them and hides the reason."""
    path = install(
        tmp_path, "failing_lab", OPTIONS.replace("soap2", "soap3").replace("herald", "crier") + "\n\n1 / 0\n"
    )
    monkeypatch.syspath_prepend(path)
    for name in ("BROKEN_EXTENSIONS", "DISPUTED_OPTIONS"):
        monkeypatch.setattr(extensions, name, {})
    monkeypatch.setattr(extensions, "_TRIED", set())
    monkeypatch.setattr(component, "_REGISTRY", dict(component._REGISTRY))
    monkeypatch.setattr(component, "BY_TARGET", dict(component.BY_TARGET))
    point = EntryPoint("failing_lab", "failing_lab.options", "arctic_hydra")
    monkeypatch.setattr(extensions, "extensions", lambda: (point,))
    [problem] = extensions.load_extensions()
    assert "ZeroDivisionError" in problem and extensions.load_extensions() == []
    assert list(extensions.BROKEN_EXTENSIONS.values()) == [problem] and not extensions.DISPUTED_OPTIONS


def test_what_a_package_had_registered_before_its_import_failed_is_not_used(tmp_path):
    path = install(tmp_path / "site", "broken_lab", OPTIONS)
    (tmp_path / "site" / "broken_lab" / "__init__.py").write_text("from broken_lab import options\n\n1 / 0\n")
    for arguments in ("optimizer=soap2", "callback=[herald]", "model=spec model.spec=mine"):
        assert "cannot be imported: ZeroDivisionError" in fails(arguments, tmp_path, path)


def test_a_name_that_two_classes_are_to_have_is_refused_where_it_is_used(tmp_path):
    path = install(tmp_path / "site", "broken_lab", OPTIONS.replace("soap2", "fused_adam"))
    line = fails("optimizer=fused_adam", tmp_path, path)
    assert line.startswith(
        "error: optimizer._target_: got 'arctic_hydra.optimizer.fused_adam.FusedAdamFactory', an option that"
    )
    assert "broken_lab.options.Soap2 needs another name" in line and "broken_lab/options.py:" in line


def test_an_extension_whose_package_cannot_be_imported_blocks_only_what_uses_it(tmp_path):
    path = install(tmp_path / "site", "broken_lab", OPTIONS, optimizer__soap2=SCHEMA.format("optimizer/soap2"))
    (tmp_path / "site" / "broken_lab" / "__init__.py").write_text("1 / 0\n")
    assert "ZeroDivisionError" in run("--cfg job", tmp_path, PYTHONPATH=path).stderr
    assert "cannot be imported: ZeroDivisionError" in fails("optimizer=soap2", tmp_path, path)


def test_the_errors_of_authors_say_what_to_write(tmp_path):
    path = install(
        tmp_path / "site",
        "new_lab",
        OPTIONS + OPTIONS.partition("AdamWFactory\n")[2].replace("soap2", "twice").replace("herald", "bare") + ABSTRACT,
        callback__bare=SCHEMA.format("callback/bare"),
        callback__ghost="# @package callback.ghost\n" + SCHEMA.format("callback/ghost"),
        trainer__abstract=SCHEMA.format("trainer/abstract"),
        trainer__stranger=SCHEMA.format("trainer/stranger"),
        optimizer__twice=SCHEMA.format("optimizer/twice") + "lr: 1e-3\nlr: 1e-4\n",
    )
    for option, group, name in (("optimizer=soap2", "optimizer", "Soap2"), ("callback=[herald]", "callback", "Herald")):
        line = fails(option, tmp_path, path)
        assert (
            f"new_lab.options.{name} is registered under this name but has no YAML file: write new_lab/conf/{group}/"
            in line
        )
        assert ("# @package callback.herald" in line) == (group == "callback")
    line = fails("callback=[bare]", tmp_path, path)
    assert (
        "new_lab/conf/callback/bare.yaml has no package line; write '# @package callback.bare' as its first line"
        in line
    )
    assert "new_lab/conf/optimizer/twice.yaml:5: found duplicate key lr" in fails("optimizer=twice", tmp_path, path)
    line = fails("trainer=abstract", tmp_path, path)
    assert line.endswith("got 'new_lab.options.Abstract', which does not define loss; add what its base class requires")
    assert "misplaced is registered in the group trainers" in fails("trainer=misplaced", tmp_path, path)
    line = fails("trainer=stranger", tmp_path, path)
    assert "trainer=stranger: Stranger does not extend Trainer, the base class of the group trainer; extend it" in line
    line = fails("callback=[ghost]", tmp_path, path)
    assert "its YAML file names the schema callback/ghost, but no class of this name is registered" in line
