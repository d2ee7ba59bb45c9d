"""The sbatch scripts, as the page of the launchers shows them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra_plugins.arctic_hydra._slurm_submit import Snapshot, arrays, run_job, script, submit

from arctic_hydra import distributed
from arctic_hydra.__main__ import main
from arctic_hydra.errors import ArcticHydraError, ConfigError
from arctic_hydra.run_directory import RunDirectory
from tests.command import ROOT
from tests.launchers.slurm_defaults import defaults

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


def test_an_array_has_as_many_jobs_as_secrets_fit_into_its_environment():
    """Linux limits a variable to 128 KiB."""
    secrets = {"b": {"key": "x" * 60_000}, "c": {"key": "x" * 60_000}, "d": {"key": "x" * 200_000}}
    assert list(arrays("abcdefg", 3, secrets)) == [["a", "b"], ["c"], ["d"], ["e", "f", "g"]]
    assert list(arrays("abcd", 3, {})) == [["a", "b", "c"], ["d"]] and list(arrays([], 3, {})) == []


def test_without_a_run_nothing_is_written(tmp_path):
    options = defaults(snapshot=True, folder=str(tmp_path / "slurm"))
    assert list(submit(options, [], {}, tmp_path, Snapshot())) == [] and not list(tmp_path.iterdir())


def test_jobs_of_one_command_run_from_one_copy_of_the_code_and_others_from_their_own(tmp_path):
    """As the batches of a search, between which files are edited, and a second command while the first's jobs run."""
    one, other = Snapshot(), Snapshot()
    assert one.path(tmp_path) == one.path(tmp_path) != other.path(tmp_path)
    assert (other.path(tmp_path) / "arctic_hydra" / "worker.py").is_file()
    with pytest.raises(ConfigError, match="hydra.launcher.snapshot: cannot copy the code to .*No such file"):
        Snapshot().path(tmp_path / "absent")


def test_what_jobs_need_is_exported_with_the_names_that_are_or_refused(tmp_path):
    wanted = "#SBATCH --export=HOME,USER,PYTHONPATH,ARCTIC_HYDRA_JOB_SECRETS"
    assert wanted in script(defaults(additional_parameters={"export": "HOME,USER"}), 1).splitlines()
    for how in ("ALL", "NONE"):
        assert f"#SBATCH --export={how}" in script(defaults(additional_parameters={"export": how}), 1).splitlines()
    for snapshot, secrets in ((True, {}), (False, {"run": {"key": "x"}})):
        options = defaults(snapshot=snapshot, folder=str(tmp_path / "slurm"), additional_parameters={"export": "NONE"})
        with pytest.raises(ConfigError, match=r"additional_parameters.export: got NONE, with which neither the code"):
            list(submit(options, ["run"], secrets, tmp_path, Snapshot()))


def test_zero_is_a_number_and_false_leaves_an_option_out(capsys):
    more = "hydra.launcher.additional_parameters={requeue: false, overcommit: false, nice: 0}"
    asked = ["timeout_min=0", "mem_gb=0", "gpus_per_node=0", "exclusive=false", "dry_run=true", 'exclude="n1,n2"']
    assert main(["hydra/launcher=slurm", *(f"hydra.launcher.{item}" for item in asked), more]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in ("--time=0", "--mem=0GB", "--gpus-per-node=0", "--no-requeue", "--nice=0", "--exclude=n1,n2"):
        assert f"#SBATCH {line}" in lines
    assert not [line for line in lines if "exclusive" in line or "overcommit" in line or "--requeue" in line]


@pytest.mark.parametrize(("ranks", "gpus", "count"), [("auto", None, 1), ("auto", 8, 8), ("4", None, 4), (4, 8, 4)])
def test_a_retried_run_has_as_many_ranks_per_node_as_when_it_was_composed(ranks, gpus, count, tmp_path):
    RunDirectory(tmp_path).write_run({"ranks": ranks})
    assert run_job(defaults(gpus_per_node=gpus), str(tmp_path)).ranks_per_node == count


@pytest.mark.parametrize("ranks", ["x", "0", "-1", 1.5, None, "9" * 5000, [1], "1\n"])
def test_ranks_of_an_edited_file_that_are_no_number_are_refused(ranks, tmp_path):
    RunDirectory(tmp_path).write_run({"ranks": ranks})
    with pytest.raises(
        ArcticHydraError, match="run.json: ranks: got .*, expected auto or a number; repeat the command"
    ):
        run_job(defaults(), str(tmp_path))
