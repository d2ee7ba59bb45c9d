"""Every option of `hydra/launcher=slurm` is checked in one place."""

from __future__ import annotations

import os
from dataclasses import fields

import pytest
from hydra_plugins.arctic_hydra._slurm_conf import SlurmConf

from arctic_hydra.errors import ConfigError
from arctic_hydra.launch import slurm_options
from arctic_hydra.launch.slurm_options import check_folder, check_options
from tests.launchers.slurm_defaults import LINE_BREAKS, defaults


def problem(**options) -> str:
    with pytest.raises(ConfigError) as refused:
        check_options(defaults(**options))
    [found] = refused.value.problems
    assert found.isprintable(), "one line"
    return found


def test_every_key_of_the_launcher_is_checked():
    assert {item.name for item in fields(SlurmConf) if not item.name.startswith("_")} == slurm_options.KEYS
    check_options(defaults())


@pytest.mark.parametrize("text", LINE_BREAKS, ids=ascii)
@pytest.mark.parametrize("key", [*slurm_options._TEXTS, *slurm_options._LISTS])
def test_no_text_holds_a_line_break(key, text):
    value = f"gpu{text}touch canary"
    found = problem(**{key: [value] if key in slurm_options._LISTS else value})
    assert found.startswith(f"hydra.launcher.{key}: got 'gpu") and "expected a single line" in found


@pytest.mark.parametrize("text", LINE_BREAKS, ids=ascii)
def test_no_further_parameter_holds_a_line_break(text):
    where = "hydra.launcher.additional_parameters"
    assert problem(additional_parameters={"begin": f"now{text}"}).startswith(f"{where}.begin: got 'now")
    assert problem(additional_parameters={f"be{text}gin": 1}).startswith(f"{where}: got the name 'be")


@pytest.mark.parametrize(
    "name", ["", "-", "--wrap", "wrap=x", "a b", "Begin", "1", "é", "a#", "a'", 5, True, "x" * 101]
)
def test_further_parameters_have_the_names_of_options(name):
    found = problem(additional_parameters={name: "x"})
    assert found.startswith("hydra.launcher.additional_parameters: got the name ") and "such as mail-user" in found


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("nodes", 0, "got 0, expected 1 or more"),
        ("nodes", 10**400, "expected at most 65536"),
        ("nodes", 1.5, "got 1.5, expected a number"),
        ("nodes", True, "got True, expected a number"),
        ("nodes", None, "got None, expected a number"),
        ("gpus_per_node", -1, "got -1, expected 0 or more"),
        ("gpus_per_node", 99_999_999_999, "got 99999999999, expected at most 1024"),
        ("cpus_per_task", 0, "got 0, expected 1 or more"),
        ("mem_gb", float("nan"), "got nan, expected a number"),
        ("mem_gb", float("inf"), "got inf, expected a number"),
        ("mem_gb", -0.5, "got -0.5, expected 0 or more"),
        ("mem_gb", 1e300, "got 1e+300, expected at most 1000000"),
        ("poll_seconds", float("nan"), "got nan, expected more than 0"),
        ("poll_seconds", float("inf"), "got inf, expected a number"),
        ("poll_seconds", 1e30, "got 1e+30, expected at most 86400"),
        ("signal_delay_s", 70_000, "got 70000, expected at most 65535"),
        ("exclusive", "maybe", "got 'maybe', expected true or false"),
        ("partition", 5, "got 5, expected text"),
        ("partition", " ", "got ' ', expected text, or null to omit the option"),
        ("comment", "x" * 4097, "got 4,097 characters, expected at most 4,096"),
        ("setup", "module load cuda", "got 'module load cuda', expected a list"),
        ("setup", [5], "got 5, expected text in each item"),
        ("setup", ["#SBATCH --wrap=x"], "which sbatch reads as an option; pass it in hydra.launcher.additional_param"),
        ("srun_args", [""], "got '', expected text in each item"),
        ("additional_parameters", ["x"], "got ['x'], expected options of sbatch by name"),
        ("additional_parameters", {"nice": [1, 2]}, "nice: got [1, 2], expected text, a number, true or false"),
        (
            "additional_parameters",
            {"test_only": True},
            "got test_only, which the launcher cannot work with",
        ),
        ("folder", "/shared/%j", "got '/shared/%j', but SLURM replaces '%j' in the paths of logs"),
        ("folder", "/shared\\x", "but SLURM replaces '\\\\' in the paths of logs"),
    ],
)
def test_what_is_refused(key, value, text):
    found = problem(**{key: value})
    assert found.startswith(f"hydra.launcher.{key}") and text in found


@pytest.mark.parametrize(
    "name",
    "bb bbf chdir cluster clusters wait container container-image container_mounts epilog error export-file export_file export-fi input "
    "open-mode open_mo output out prolog task-epilog task-prolog wrap wra".split(),
)
def test_options_that_name_code_or_choose_files_are_refused(name):
    """Also abbreviated, as sbatch accepts them."""
    found = problem(additional_parameters={name: "/root/.bashrc"})
    assert found.startswith(f"hydra.launcher.additional_parameters: got {name}, which ")


@pytest.mark.parametrize(
    "value", ["ALL,PYTHONPATH=/evil", "PYTHONPATH=/evil", "A=1", "", "A,,B", "A B", 5, "ALL,é", "@x"]
)
def test_a_job_inherits_variables_by_name_only(value):
    found = problem(additional_parameters={"export": value})
    assert found.startswith("hydra.launcher.additional_parameters.export: got ") and "hydra.launcher.setup" in found


@pytest.mark.parametrize("value", ["ALL", "NONE", "NIL", "HOME,PATH", "ALL,MY_1", None, False])
def test_a_job_may_inherit_variables_by_name(value):
    check_options(defaults(additional_parameters={"export": value, "begin": "now", "nice": 0, "get-user-env": True}))


def test_missing_and_unknown_keys_of_an_edited_file_are_refused():
    options = defaults(ghost=1)
    del options["nodes"]
    with pytest.raises(ConfigError) as refused:
        check_options(options)
    assert refused.value.problems == [
        "hydra.launcher.ghost: there is no such key",
        "hydra.launcher.nodes: there is no value",
    ]


def test_a_folder_in_which_others_could_replace_the_jobs_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "shared" / "scripts"
    check_folder(folder)
    folder.mkdir(parents=True)
    folder.parent.chmod(0o755)  # others can reach what is in it
    check_folder(folder)
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match=r"hydra.launcher.folder: .* every user may write to it"):
        check_folder(folder)
    folder.chmod(0o700)
    os.chown(folder, 12345, -1) if os.getuid() == 0 else monkeypatch.setattr(os, "getuid", lambda: 1)
    with pytest.raises(ConfigError, match="belongs to .*, so the jobs could be replaced"):
        check_folder(folder)
