"""docs/python.md and the notebook: their code runs, and the page names all that is promised."""

from __future__ import annotations

import json
import re

import pytest

import arctic_hydra
from arctic_hydra.api.loaded_run import LoadedRun
from arctic_hydra.api.sweep_result import SweepResult
from arctic_hydra.run_directory import RunDirectory
from tests.api.cells import cells
from tests.command import ROOT, run
from tests.sweep.sweeps import sweep_of

PAGE, NOTEBOOK = ROOT / "docs" / "python.md", ROOT / "docs" / "notebook.ipynb"


def test_the_notebook_runs(tmp_path):
    said = run(str(NOTEBOOK), tmp_path, module="tests.api.cells").stdout
    assert "step 8/8  loss" in said and "<td>finished</td>" in said and "<svg" in said
    assert said.count("best: job") == 1
    assert "optimizer.lrr: there is no such key; did you mean optimizer.lr?\n" in said


def test_the_code_of_the_page_is_that_of_the_notebook():
    blocks = re.findall(r"^```py\n(.*?)\n```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5 and set(blocks) <= set(cells(NOTEBOOK))


def test_the_notebook_is_stored_without_outputs():
    stored = json.loads(NOTEBOOK.read_text())["cells"]
    assert [cell for cell in stored if cell.get("outputs") or cell.get("execution_count")] == []


@pytest.mark.parametrize("kind", ["A composed run", "A run", "A sweep"])
def test_the_page_names_every_attribute(kind, tmp_path):
    (tmp_path / "run.json").write_text('{"format": 1, "config": {}}')
    sweep_of(tmp_path).save()
    RunDirectory(tmp_path).update_record(status="stopped")
    things = {"A composed run": arctic_hydra.compose(), "A run": LoadedRun(tmp_path), "A sweep": SweepResult(tmp_path)}
    section = PAGE.read_text().partition(f"## {kind}\n")[2].partition("\n## ")[0]
    first = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    named = {name for cell in first for name in re.findall(r"`(\w+)", cell)}
    thing = things[kind]
    assert named == {name for name in {*vars(thing), *vars(type(thing))} if not name.startswith("_")}


def test_the_page_names_every_name_of_the_package():
    table = PAGE.read_text().partition("| name | what it does |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `arctic_hydra\.(\w+)", table, re.MULTILINE)) == set(arctic_hydra.__all__)
