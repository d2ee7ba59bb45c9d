"""No config runs code: each way to name code, in each place that takes a value.

The module `evil` can be imported, and leaves a file when it is imported or called. Nothing here may do either.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from arctic_hydra.__main__ import main
from arctic_hydra.files import code_file
from arctic_hydra.run_directory import RunDirectory, write_json
from arctic_hydra.sweep.directory import Sweep, SweepJob
from tests.command import SMALL, environment, only_run, run
from tests.composing import composed

WAYS = {
    "target": "{_target_:evil.f}",
    "target of a registered class": "{_target_:arctic_hydra.optimizer.adamw.AdamWFactory}",
    "target in a module of ours": "{_target_:arctic_hydra.run_directory.os.mkdir,_args_:[called]}",
    "partial": "{_target_:evil.f,_partial_:true}",
    "pickle": "{_target_:torch.load,f:data.pt,weights_only:false}",
    "resolver": "'${oc.create:${oc.env:EVIL_NODE}}'",
    "escaped resolver": r"'\${oc.create:{_target_:evil.f}}'",
    "twice escaped resolver": r"'\\\${oc.create:{_target_:evil.f}}'",
    "resolver in an environment variable": "${oc.env:EVIL}",
    "decoded environment variable": "'${oc.decode:${oc.env:EVIL}}'",
    "decoded node": "'${oc.decode:${oc.env:EVIL_NODE}}'",
    "eval": "${eval:1}",
}
PLACES = {
    "model.hf_config_kwargs={x:VALUE}": [],
    "deepspeed.config={x:VALUE}": [],
    "tokenizer.chat_template=VALUE": [],
    "log.print_ranks=VALUE": [],
    "optimizer=VALUE": [],
    "+optimizer.x=VALUE": [],
    "data.sources.chat.split=VALUE": [],
    "output_root=VALUE": [],
    "peft.config={target_modules:VALUE}": ["peft=any", "peft.peft_type=IA3"],
    "model.spec=VALUE": ["model=spec", "model.flavor=small"],
    "model.compile_backend=VALUE": ["model.compile=true"],
    "callback.samples.prompts=[VALUE]": ["callback=[samples]"],
    "callback.profiler.output_dir=VALUE": ["callback=[profiler]"],
    "tracking.wandb.project=VALUE": ["tracking=[wandb]"],
    "data.sources.ultrachat.kwargs={x:VALUE}": ["data=ultrachat"],
    "+hydra.callbacks.x=VALUE": [],
    "+hydra.job_logging.formatters.x=VALUE": [],
    "hydra.searchpath=[VALUE]": [],
    "+hydra.launcher.x=VALUE": ["-m"],
    "hydra.launcher=VALUE": ["-m", "seed=1,2"],
    "hydra.sweeper=VALUE": ["-m", "seed=1,2"],
    "hydra.launcher.comment=VALUE": ["hydra/launcher=slurm", "hydra.launcher.dry_run=true"],
    "hydra.launcher.additional_parameters={x:VALUE}": ["hydra/launcher=slurm", "hydra.launcher.dry_run=true"],
    "hydra.sweeper.pruner_kwargs={x:VALUE}": ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=0", "seed=1,2"],
}
"""Places that take a value, each with the further arguments that make the command use it."""


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose modules can be imported, as by a user with a careless PYTHONPATH."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "evil.py").write_text(
        "import os\nopen(os.environ['EVIL_FILE'], 'w').close()\ndef f(*a, **k):\n    open(os.environ['EVIL_FILE'], 'w').close()\n"
    )

    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, ("called",)

    (tmp_path / "data.pt").write_bytes(pickle.dumps(Payload()))
    monkeypatch.setenv("EVIL", "${oc.create:{_target_:evil.f}}")
    monkeypatch.setenv("EVIL_NODE", "{_target_: evil.f}")
    monkeypatch.setenv("EVIL_FILE", str(tmp_path / "called"))
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # `--info` adds one, for the output of this test
    return tmp_path


def assert_nothing_ran(evil: Path) -> None:
    assert not (evil / "called").exists()
    assert "evil" not in sys.modules


EVERY_WAY = ("model.hf_config_kwargs={x:VALUE}", "hydra.launcher.comment=VALUE", "hydra.launcher=VALUE")
"""Places that the quick table tries in every way; the others in the ways of `FEW`."""
FEW = ("target", "escaped resolver", "decoded node")
CASES = [(place, way, way not in FEW and place not in EVERY_WAY) for place in PLACES for way in WAYS]


@pytest.mark.parametrize(
    ("place", "way"),
    [
        pytest.param(place, way, marks=[pytest.mark.faults, pytest.mark.long] if slow else [])
        for place, way, slow in CASES
    ],
)
def test_no_value_runs_code(place: str, way: str, evil: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Composed, checked, and printed with its interpolations resolved, which used to resolve them once more."""
    arguments = [place.replace("VALUE", WAYS[way]), *PLACES[place]]
    if "-m" not in arguments and "hydra/launcher=slurm" not in arguments:
        arguments = ["--cfg", "all" if "hydra" in place else "job", "--resolve", *arguments]
    code = main(arguments)
    printed = capsys.readouterr()
    assert code in (0, 2)
    assert (code == 2) == printed.err.startswith("error: "), printed.err
    assert "Traceback" not in printed.err
    assert_nothing_ran(evil)


FILES = {
    "a search path": "defaults: [config, _self_]\nhydra: {searchpath: ['pkg://evil']}\n",
    "a structured search path": "defaults: [config, _self_]\nhydra: {searchpath: ['structured://evil']}\n",
    "a callback": "defaults: [config, _self_]\nhydra: {callbacks: {x: {_target_: evil.f}}}\n",
    "logging": "defaults: [config, _self_]\nhydra: {job_logging: {formatters: {x: {(): evil.f}}}}\n",
    "a launcher": "defaults: [config, _self_]\nhydra: {launcher: {_target_: evil.f}}\n",
    "an escaped interpolation": "defaults: [config, _self_]\ntokenizer: {chat_template: '\\${oc.create:{_target_:evil.f}}'}\n",
    "a YAML tag": "defaults: [config, _self_]\nname: !!python/object/apply:evil.f []\n",
    "a target": "defaults: [config, _self_]\noptimizer: {_target_: evil.f}\n",
}


@pytest.mark.parametrize("what", FILES)
def test_no_config_file_runs_code(what: str, evil: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (evil / "mine").mkdir()
    (evil / "mine" / "own.yaml").write_text(FILES[what])
    for arguments in (["--cfg", "job", "--resolve"], ["--info", "config"], ["-m", "seed=1,2"]):
        if what in ("an escaped interpolation", "logging") and "-m" in arguments:
            continue  # a valid sweep, which would train
        allowed = {0} if what in ("an escaped interpolation", "logging") else {0, 2} if "--info" in arguments else {2}
        assert main([*arguments, "--config-dir", "mine", "--config-name", "own"]) in allowed, arguments
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        assert_nothing_ran(evil)


BEHIND_A_CHOICE = {
    "params of a search": (
        "hydra: {sweeper: {params: {model.trust_remote_code: 'true', seed: 'choice(1,2)'}}}\n",
        "hydra.sweeper.params.model.trust_remote_code: lets code of another repository run; pass model.trust_remote_code=true",
    ),
    "an override in the params of a search": (
        "hydra: {sweeper: {params: {'model.trust_remote_code=sort(true,true,reverse': 'false)', seed: 'choice(1,2)'}}}\n",
        "hydra.sweeper.params: got the key 'model.trust_remote_code=sort(true,true,reverse', expected the key of a config",
    ),
    "the commands of a launcher": (
        "hydra: {launcher: {setup: ['touch called']}}\n",
        "hydra.launcher.setup: got a shell command from a config file",
    ),
}


@pytest.mark.parametrize("what", BEHIND_A_CHOICE)
def test_a_config_file_alone_asks_for_no_code(what: str, evil: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the file chooses the sweeper and the launcher: what runs code is asked for on the command line."""
    text, error = BEHIND_A_CHOICE[what]
    sweeper, launcher = ("optuna", "local") if "search" in what else ("basic", "slurm")
    defaults = f"defaults: [config, override hydra/sweeper: {sweeper}, override hydra/launcher: {launcher}, _self_]\n"
    (evil / "mine").mkdir()
    (evil / "mine" / "own.yaml").write_text(defaults + text)
    for more in ([], ["hydra.launcher.partition=gpu"] if "launcher" in what else []):
        assert main(["--config-dir", "mine", "--config-name", "own", *more]) == 2
        assert f"error: {error}" in capsys.readouterr().err
    assert_nothing_ran(evil)
    assert not (evil / "outputs").exists()


@pytest.mark.parametrize("path", ["pkg://evil", "structured://evil", "pkg://evil.sub", "file://lib/../nowhere", "evil"])
@pytest.mark.parametrize("arguments", [["--info", "all"], ["task=check"]])
def test_the_search_path_takes_directories(
    path: str, arguments: list[str], evil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, f"hydra.searchpath=[{path}]"]) == 2
    assert f"error: hydra.searchpath: got {path!r}, expected " in capsys.readouterr().err
    assert_nothing_ran(evil)


def test_a_run_file_is_plain_data(evil: Path) -> None:
    """An edited `run.json` neither names code nor interpolates, for the rank that reads it and for a sweep that retries it."""
    directory = RunDirectory(evil / "edited")
    directory.create()
    tree = composed("model.hf_config_kwargs={x:1}")
    for value, said in (
        ({"_target_": "evil.f"}, "model.hf_config_kwargs.x._target_: got 'evil.f', which is not allowed"),
        ({"_args_": [1]}, "model.hf_config_kwargs.x._args_: a key that Hydra interprets"),
    ):
        tree["model"]["hf_config_kwargs"] = {"x": value}
        write_json(directory.run_file, {"config": tree})
        rank = subprocess.run(
            [sys.executable, "-m", "arctic_hydra.worker", str(directory.run_file)],
            env=environment(PYTHONPATH=os.pathsep.join([str(evil / "lib"), os.environ["PYTHONPATH"]])),
            capture_output=True,
            text=True,
            cwd=evil,
        )
        assert rank.returncode == 2, rank.stderr
        assert said in directory.errors()[0]["message"]
        assert_nothing_ran(evil)


def test_the_working_directory_is_not_imported_from(tmp_path: Path) -> None:
    """`python -m` puts it first on the path: modules, Hydra plugins and the metadata of an extension, beside the data."""
    modules = "torch.py yaml.py json.py pickle.py struct.py numpy.py evil_extension.py"
    for name in [*modules.split(), "hydra_plugins/evil.py", "hydra_plugins/evil/__init__.py"]:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("open('called', 'w').close()\n")
    metadata = tmp_path / "evil-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[arctic_hydra]\nevil = evil_extension\n")
    for arguments in ("--cfg job", "task=check", f"{SMALL} data.num_proc=2 trainer.train_iters=1 tracking=[]"):
        run(arguments, tmp_path, fresh=True)
        assert not (tmp_path / "called").exists()
    script = run("hydra/launcher=slurm hydra.launcher.dry_run=true", tmp_path, fresh=True).stdout
    assert " -P -u -m hydra_plugins.arctic_hydra._slurm_start " in script


def test_text_with_a_dollar_sign_reaches_the_run_unchanged(tmp_path: Path) -> None:
    """Resolved text used to be parsed once more, so a value that holds `${` was lost or an error."""
    text = "price: ${5} and ${oc.env:HOME}"
    override = "tracking.mlflow.experiment='" + text.replace("$", "\\$") + "'"
    run(f"{SMALL} trainer.train_iters=1 {shlex.quote(override)}", tmp_path)
    tree = json.loads((only_run(tmp_path) / "run.json").read_text())["config"]
    assert tree["tracking"]["mlflow"]["experiment"] == text
    written = OmegaConf.load(only_run(tmp_path) / "config.yaml")
    assert OmegaConf.to_container(written, resolve=True) == tree


def test_only_the_command_line_trusts_code_of_a_model(
    evil: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (evil / "mine").mkdir()
    (evil / "mine" / "own.yaml").write_text(
        "defaults: [config, _self_]\nmodel: {trust_remote_code: true}\ntokenizer: {trust_remote_code: '${oc.env:EVIL_TRUE}'}\n"
    )
    monkeypatch.setenv("EVIL_TRUE", "true")
    own = ["--cfg", "job", "--config-dir", "mine", "--config-name", "own", "model=hf", "model.name_or_path=x"]
    assert main(own) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.partition(": got true from a config file")[0] for line in errors] == [
        "error: model.trust_remote_code",
        "error: tokenizer.trust_remote_code",
    ]
    assert main([*own, "model.trust_remote_code=true", "tokenizer.trust_remote_code=True"]) == 0


EVIL_FILE = """
import os
from arctic_hydra.component import component
from arctic_hydra.optimizer.adamw import AdamWFactory
open(os.environ["EVIL_FILE"], "w").close()
@component(group="optimizer", name="evil")
class Evil(AdamWFactory): pass
"""
CODE_IN_CONFIGS = {
    "a whole config": "defaults: [config, _self_]\ncode: evil_code.py\n",
    "an environment variable": "defaults: [config, _self_]\ncode: ${oc.env:EVIL_CODE}\n",
    "a list": "defaults: [config, _self_]\ncode: [evil_code.py]\n",
    "a component": "defaults: [config, _self_]\nmodel: {code: evil_code.py}\n",
    "an option of a file": "defaults: [config, override optimizer: 'code:evil', _self_]\n",
    "a class of a file": "defaults: [config, _self_]\noptimizer: {_target_: arctic_hydra_code.evil_code.Evil}\n",
    "Hydra": "defaults: [config, _self_]\nhydra: {code: evil_code.py}\n",
    "a sweeper": "defaults: [config, _self_]\nhydra: {sweeper: {params: {code: evil_code.py}}}\n",
}
CODE_IN_ARGUMENTS = [
    "+code=evil_code.py",
    "++code=evil_code.py",
    "code=${oc.env:EVIL_CODE}",
    "code='${oc.env:EVIL_CODE}'",
    "optimizer=code:evil",
    "+experiment.code=evil_code.py",
    "+hydra.code=evil_code.py",
    "hydra.sweeper.params={code:evil_code.py}",
]


@pytest.fixture
def evil_code(evil: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file for `code=`, which leaves a file when it is imported."""
    (evil / "evil_code.py").write_text(EVIL_FILE)
    (evil / "code").write_text("evil_code.py")
    for name in ("CODE", "EVIL_CODE", "ARCTIC_HYDRA_CODE"):
        monkeypatch.setenv(name, "evil_code.py")
    monkeypatch.setattr(code_file, "_FILES", [])
    return evil


def test_the_command_line_imports_a_file(evil_code: Path) -> None:
    """The control: the tests below would see it."""
    run("code=evil_code.py optimizer=code:evil --cfg job", evil_code, EVIL_FILE=str(evil_code / "called"))
    assert (evil_code / "called").exists()


@pytest.mark.parametrize("what", CODE_IN_CONFIGS)
def test_no_config_file_names_a_file_of_code(what: str, evil_code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (evil_code / "mine" / "experiment").mkdir(parents=True)
    (evil_code / "mine" / "own.yaml").write_text(CODE_IN_CONFIGS[what])
    experiment = CODE_IN_CONFIGS[what].partition("\n")[2]
    (evil_code / "mine" / "experiment" / "own.yaml").write_text(f"# @package _global_\n{experiment}")
    files = [["--config-name", "own"], *([["experiment=own"]] if experiment and "Hydra" not in what else [])]
    for arguments in ([*file, *more] for file in files for more in (["--cfg", "job"], ["-m", "seed=1,2"])):
        if what == "a sweeper" and "--cfg" in arguments:
            continue  # a single run has no sweeper
        assert main([*arguments, "--config-dir", "mine"]) == 2, arguments
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ") and "Traceback" not in printed.err, printed.err
        assert_nothing_ran(evil_code)


@pytest.mark.parametrize("argument", CODE_IN_ARGUMENTS)
@pytest.mark.parametrize("more", ["", "-m"])
def test_no_override_names_a_file_of_code(
    argument: str, more: str, evil_code: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument, *more.split(), "seed=1"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and "Traceback" not in printed.err, printed.err
    assert_nothing_ran(evil_code)


def test_no_state_file_names_a_file_of_code(evil_code: Path) -> None:
    """Neither `run.json` of a rank, nor its record, nor `sweep.json` of a retry; only their own command lines do."""
    directory = RunDirectory(evil_code / "edited")
    directory.create()
    tree = composed()
    for change, said in (
        ({"code": str(evil_code / "evil_code.py")}, "but no config may name code"),
        ({"optimizer": {**tree["optimizer"], "_target_": "arctic_hydra_code.evil_code.Evil"}}, "pass code=<path of"),
    ):
        write_json(directory.run_file, {"config": tree | change, "code": str(evil_code / "evil_code.py")})
        directory.update_record(status="failed", code={"file": str(evil_code / "evil_code.py"), "sha256": {}})
        rank = [sys.executable, "-m", "arctic_hydra.worker", str(directory.run_file)]
        done = subprocess.run(rank, env=environment(), capture_output=True, text=True, cwd=evil_code)
        assert done.returncode == 2, done.stderr
        assert said in directory.errors()[0]["message"]
        job = SweepJob(
            0, ["code=evil_code.py"], str(directory.path), str(directory.run_file), {"kind": "local", "pid": 1}
        )
        sweep = Sweep(evil_code / "sweep", "x", "x", "grid", ["code=evil_code.py"], "auto", False, "local", ".", [job])
        sweep.path.mkdir(exist_ok=True)
        sweep.save()
        retried = run("retry sweep", evil_code, code=1, module="arctic_hydra.sweep")
        assert said in retried.stdout, retried.stdout
        assert_nothing_ran(evil_code)
