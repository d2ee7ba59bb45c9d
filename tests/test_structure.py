"""The size and the names of modules, as CONTRIBUTING.md states them."""

from __future__ import annotations

import ast
import os
import re
from collections import defaultdict
from pathlib import Path

from tests.command import environment
from tests.test_layering import LAYERS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "arctic_hydra"
OPTIONS = {path.stem for path in (ROOT / "conf").rglob("*.yaml")}
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.stem != "__init__"]


def test_a_room_holds_at_most_ten_modules() -> None:
    rooms: dict[Path, list[str]] = defaultdict(list)
    for path in MODULES:
        if path.stem not in OPTIONS:
            rooms[path.parent.relative_to(ROOT)].append(path.stem)
    top = rooms.pop(Path("arctic_hydra"))
    assert len(top) <= 24, sorted(top)
    assert {str(room): names for room, names in rooms.items() if len(names) > 10} == {}


def test_no_two_modules_share_a_name() -> None:
    """Options of config groups aside, which are named after their YAML file, as are `base` and `__main__`."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        places[path.stem].append(str(path.relative_to(ROOT)))
    shared = {stem: found for stem, found in places.items() if len(found) > 1 and stem not in OPTIONS}
    assert set(shared) <= {"base", "__main__"}, shared


def test_files_have_at_most_400_lines_and_functions_60() -> None:
    long = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        if text.count("\n") > 400:
            long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60:
                long.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}")
    assert long == []


UNMIRRORED: dict[str, str] = {
    "trainer/toolbox.py": "one dataclass without behavior; every test of the trainer builds it",
}
"""Modules without a test file of their name, and why."""


def test_every_module_has_a_test_file_of_its_name() -> None:
    """`arctic_hydra/<room>/<module>.py` is tested by `tests/<room>/test_<module>.py`, `__main__` by `test_main`."""
    missing = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if not (ROOT / "tests" / path.relative_to(PACKAGE).parent / f"test_{path.stem.strip('_')}.py").is_file()
    }
    assert missing == set(UNMIRRORED), "write the test file, or add the module with a reason; drop what has one"
    assert len(missing) <= 0.1 * len(MODULES)


def test_the_layer_table_of_the_guide_is_that_of_the_layering_test() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", text, re.MULTILINE)
    listed = {name.strip("/"): int(layer) for layer, names in rows for name in re.findall(r"`([^`]+)`", names)}
    assert listed == LAYERS


def test_files_that_the_guides_name_exist() -> None:
    """Paths in code spans, but for those of examples, which show what to write."""
    examples = {"conf/tracking/csv.yaml", "arctic_hydra/tracking/csv.py", "tests/tracking/test_csv.py"}
    for guide in ("CONTRIBUTING.md", "README.md"):
        text = (ROOT / guide).read_text()
        named = set(re.findall(r"`((?:arctic_hydra|conf|launchers|tests)/[\w/.]+)`", text)) - examples
        assert named, guide
        assert [path for path in sorted(named) if not (ROOT / path).exists() and "sgd" not in path] == []


def test_tests_do_not_reach_the_hub() -> None:
    for variables in (os.environ, environment()):
        assert (variables["HF_HUB_OFFLINE"], variables["HF_DATASETS_OFFLINE"]) == ("1", "1")


def test_every_known_pitfall_names_a_test_that_exists() -> None:
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Known pitfalls")[2]
    rows = re.findall(r"^\| ([PBW]\d+[^|]*) \| [^|]+ \| `([\w/]+\.py)::(\w+)` \|$", section, re.MULTILINE)
    named = {number for numbers, *_ in rows for number in numbers.split(", ")}
    known = {f"{kind}{number}" for kind, last in (("P", 29), ("B", 14), ("W", 34)) for number in range(1, last + 1)}
    assert named == known
    lost = [
        f"{path}::{name}"
        for _, path, name in rows
        if not re.search(rf"^def {name}\(", (ROOT / "tests" / path).read_text(), re.MULTILINE)
    ]
    assert lost == []
