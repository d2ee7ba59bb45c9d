"""The options of `hydra/launcher=slurm`."""

from __future__ import annotations

from dataclasses import fields

from hydra_plugins.arctic_hydra._slurm_conf import SlurmConf

from arctic_hydra.cli.help.inventory import field_docs
from tests.command import ROOT

PAGE = (ROOT / "launchers" / "README.md").read_text()


def test_every_option_is_on_the_page():
    docs = field_docs(SlurmConf)
    for item in fields(SlurmConf):
        if not item.name.startswith("_"):
            assert f"`{item.name}`" in PAGE, item.name
            if item.name in docs:
                assert docs[item.name] in " ".join(PAGE.split()), f"{item.name}: the page says something else"
