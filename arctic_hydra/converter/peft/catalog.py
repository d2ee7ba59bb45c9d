"""The adapter types of the installed peft, read from its source: importing it takes seconds and loads torch."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path


@cache
def types() -> dict[str, frozenset[str]]:
    """Return the config fields of each type, by the type's name (LORA, IA3, ...)."""
    spec = importlib.util.find_spec("peft")
    assert spec is not None and spec.origin is not None, "peft is a dependency of this package"
    package = Path(spec.origin).parent
    classes: dict[str, ast.ClassDef] = {}
    for path in [
        package / "config.py",
        *sorted((package / "tuners").glob("*/config.py")),
        *(package / "tuners").glob("*.py"),
    ]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                classes[node.name] = node
    found = {}
    for path in sorted((package / "tuners").glob("*/__init__.py")):
        for name, config in _registrations(ast.parse(path.read_text(encoding="utf-8"))):
            found[name] = frozenset(_fields(config, classes))
    return found


def _registrations(tree: ast.Module) -> list[tuple[str, str]]:
    """Return name and config class of each `register_peft_method(name=..., config_cls=...)`."""
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "register_peft_method"
    ]
    given = [{item.arg: item.value for item in call.keywords} for call in calls]
    return [(str(ast.literal_eval(item["name"])).upper(), ast.unparse(item["config_cls"])) for item in given]


def _fields(name: str, classes: dict[str, ast.ClassDef]) -> set[str]:
    if name not in classes:
        return set()
    node = classes[name]
    own = {
        item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    return own.union(*(_fields(ast.unparse(base), classes) for base in node.bases))
