"""The help page and the pages of the groups."""

from __future__ import annotations

from arctic_hydra.__main__ import main
from arctic_hydra.cli.help import PLUGIN_OPTIONS, groups
from arctic_hydra.cli.search_path import hydra_with


def test_help_names_every_group_and_documents_every_field(capsys):
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"  {group} " in page for group in groups())
    for group in groups():
        if group == "experiment":
            continue
        assert main(["--help", group]) == 0
        page = capsys.readouterr().out
        undocumented = [
            line for line in page.splitlines() if line.startswith("  ") and "=" in line and line.rstrip().endswith("=")
        ]
        assert not undocumented


def test_help_of_an_unknown_group(capsys):
    assert main(["--help", "trainr"]) == 2
    assert "there is no such group; did you mean trainer" in capsys.readouterr().err


def test_the_groups_of_hydra_plugins_list_their_options_and_keys(capsys):
    """The options are written down in `help`, since loading Hydra's plugins takes long; they must be those that Hydra finds."""
    with hydra_with() as loader:
        assert {group: loader.get_group_options(group) for group in PLUGIN_OPTIONS} == PLUGIN_OPTIONS
    assert main(["--help", "hydra/launcher"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("hydra/launcher: basic, local, slurm\n") and "several at once" not in page
    assert "  hydra.launcher.slots=null " in page and "  hydra.launcher.gpus_per_node=null " in page
    assert main(["--help", "hydra/sweeper"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("hydra/sweeper: basic, optuna\n") and "  hydra.sweeper.n_trials=20 " in page


def test_a_group_without_a_default_has_a_page(capsys):
    assert main(["--help", "callback"]) == 0
    assert capsys.readouterr().out.startswith("callback: early_stopping, ema, ")


def test_groups_of_named_sets_say_how_to_choose_several(capsys):
    assert main(["--help", "data/sources"]) == 0
    assert "several at once: data/sources=[acemath,...]; their keys: --help source" in capsys.readouterr().out
