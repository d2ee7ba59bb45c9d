"""The import table of the design: every module has a layer and imports from lower ones only.

Imports inside functions count; those under `if TYPE_CHECKING:` do not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "arctic_hydra"

LAYERS: dict[str, int] = {
    name: layer
    for layer, names in enumerate(
        (
            "errors human_numbers progress hub redaction patterns provenance assets",
            "determinism distributed log metrics display stopping entry_point files",
            "component instantiate run_directory",
            "model tokenizer data optimizer scheduler checkpoint converter callback tracking",
            "engine cross_checks generation",
            "trainer",
            "config",
            "assembly report memory runner tasks",
            "launch sweep worker migrate",
            "cli __main__",
            "api",
        )
    )
    for name in names.split()
}
# The rooms of data/, in the order in which one may import another; a module that is not listed is an option.
DATA_LAYERS: dict[str, int] = {
    name: layer
    for layer, names in enumerate(
        (
            "arrays batch code_identity",
            "documents rows",
            "formats cache",
            "encode base",
            "prepare source load",
            "stream checks tokenized_settings",
            "tokenized",
        )
    )
    for name in names.split()
}
# Rooms of one layer that never import each other; within the other layers, modules may.
SIBLINGS_APART = 3

# Third-party packages that only some modules may import.
ONLY_IN = {
    "deepspeed": {"engine"},
    "hydra": {"cli", "__main__"},
    "omegaconf": {"component", "cli", "__main__"},
    "hydra_plugins": set[str](),
    "submitit": set[str](),
}


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield line and absolute name of everything imported at run time; `from a import b` yields `a.b`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for branch in node.orelse:
                yield from imports(ast.Module([branch], []), module, is_package)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        else:
            yield from imports(node, module, is_package)


def room(module: str) -> str:
    """Return the part of a module's name that the table lists: `arctic_hydra.data.json` -> `data`."""
    return module.split(".")[1]


def violations(path: Path, source: str, module: str) -> Iterator[str]:
    """Yield one line for each import in `source` that the table does not allow."""
    own = room(module) if "." in module else ""
    if own and own not in LAYERS:
        yield f"{path}:1: {own} is in no layer; add it to LAYERS here and to the design"
        return
    for line, name in imports(ast.parse(source), module, path.name == "__init__.py"):
        top, *rest = name.split(".")
        if top != PACKAGE:
            allowed = ONLY_IN.get(top)
            if allowed is not None and own not in allowed:
                only = ", ".join(sorted(allowed)) or "launchers/"
                yield f"{path}:{line}: {own or PACKAGE} imports {top}, which belongs to {only} only"
            continue
        other = rest[0] if rest else ""
        if (
            other in ("", "__version__", "python_flags", "without_garbage_collection") or other == own
        ):  # of the package itself
            continue
        if other not in LAYERS:
            yield f"{path}:{line}: imports {name}, which is in no layer"
            continue
        here, there = LAYERS.get(own, 0), LAYERS[other]
        if there > here:
            yield f"{path}:{line}: {own} (layer {here}) imports {other} (layer {there}), which is above it"
        elif there == here == SIBLINGS_APART:
            yield f"{path}:{line}: {own} (layer {here}) imports its sibling {other} (layer {there})"


def data_violations(path: Path, source: str, module: str) -> Iterator[str]:
    """Yield one line for each import within data/ that goes against the order of its pipeline."""
    parts = module.split(".")
    own = parts[2] if len(parts) > 2 else ""
    here = DATA_LAYERS.get(own, len(DATA_LAYERS))
    for line, name in imports(ast.parse(source), module, path.name == "__init__.py"):
        _, _, other, *_ = [*name.split("."), "", "", ""]
        if name.startswith(f"{PACKAGE}.data.") and other != own and DATA_LAYERS.get(other, -1) >= here:
            yield f"{path}:{line}: data/{own} imports {name}, which comes after it"


def modules() -> list[tuple[Path, str]]:
    """Return path and dotted name of every module of the package."""
    found = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append((path.relative_to(ROOT), ".".join(parts[:-1] if parts[-1] == "__init__" else parts)))
    return found


def test_every_import_follows_the_table() -> None:
    problems = [line for path, module in modules() for line in violations(path, (ROOT / path).read_text(), module)]
    assert not problems, "\n" + "\n".join(problems)


def test_the_rooms_of_data_import_each_other_in_the_order_of_the_pipeline() -> None:
    within = [(path, module) for path, module in modules() if module.startswith(f"{PACKAGE}.data.")]
    problems = [line for path, name in within for line in data_violations(path, (ROOT / path).read_text(), name)]
    assert not problems, "\n" + "\n".join(problems)


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions count: one that only delays a circle is still a circle."""
    known = {module: path for path, module in modules()}
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        names = imports(ast.parse((ROOT / path).read_text()), module, path.name == "__init__.py")
        targets = {name if name in known else name.rpartition(".")[0] for _, name in names}
        graph[module] = {name for name in targets if name in known and name != module}
    for package in [module for module, path in known.items() if path.name == "__init__.py"]:
        graph[package] = set()  # a package imports its options only to register them
    TopologicalSorter(graph).prepare()  # raises CycleError, which shows the circle


def test_every_layer_entry_exists() -> None:
    present = {room(module) for _, module in modules() if "." in module}
    assert set(LAYERS) - present == set()
    data = ROOT / PACKAGE / "data"
    assert [name for name in DATA_LAYERS if not ((data / name).is_dir() or (data / f"{name}.py").is_file())] == []


def test_nothing_imports_the_launchers_but_they_import_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "deepspeed", "datasets"}
    problems = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}"
        for path in sorted((ROOT / "launchers").rglob("*.py"))
        for line, name in imports(ast.parse(path.read_text()), "hydra_plugins.x", False)
        if name.split(".")[0] in heavy
    ]
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        (
            "arctic_hydra.data.json",
            "from arctic_hydra.model.base import ModelFactory",
            "data (layer 3) imports its sibling model",
        ),
        (
            "arctic_hydra.metrics",
            "def f():\n    from arctic_hydra import config",
            "2: metrics (layer 1) imports config (layer 6)",
        ),
        (
            "arctic_hydra.model.hf",
            "try:\n    import deepspeed.zero\nexcept ImportError: pass",
            "model imports deepspeed",
        ),
        (
            "arctic_hydra.runner",
            "from omegaconf import OmegaConf",
            "runner imports omegaconf, which belongs to __main__, cli, comp",
        ),
        (
            "arctic_hydra.launch.job",
            "from arctic_hydra.cli.composition import compose",
            "launch (layer 8) imports cli (layer 9)",
        ),
        ("arctic_hydra.trainer.sft", "from ..runner import run", "trainer (layer 5) imports runner (layer 7)"),
        (
            "arctic_hydra.launch",
            "import hydra_plugins.arctic_hydra",
            "launch imports hydra_plugins, which belongs to launchers/",
        ),
        ("arctic_hydra.nowhere", "", "nowhere is in no layer"),
        ("arctic_hydra.model.hf", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import deepspeed", ""),
        ("arctic_hydra.data.json", "from arctic_hydra.data.base import DataSource\nimport torch", ""),
    ],
)
def test_what_the_table_refuses(module: str, source: str, message: str) -> None:
    found = "\n".join(violations(Path("x.py"), source, module))
    assert message in found
    assert bool(found) == bool(message)
