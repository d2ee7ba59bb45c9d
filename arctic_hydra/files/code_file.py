"""The file of `code=`: custom components without an installed package.

Only a command line names it, and the command lines of child processes pass it on; no config, state file or environment
variable does. The file and the modules of its directory that it imports with a dot (`from .losses import ...`) form the
package `arctic_hydra_code`; `sys.path` does not change.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from arctic_hydra.errors import ConfigError, describe

PACKAGE = "arctic_hydra_code"
"""Name of the package whose modules are the file and those that it imports from its directory."""
PREFIX = "code:"
"""Precedes the names under which the components of the file are registered."""
REFUSAL = "no config may name code; pass code=<path of a Python file> as an argument of the command, without +"
"""Why `code` is not a config key."""
_KEY = "code="


@dataclass(frozen=True)
class CodeFile:
    """The file of this command."""

    path: Path
    """Absolute."""
    typed: str
    """The path as the user gave it."""
    sha256: dict[str, str]
    """Hashes of the file and of each module of its directory that it imports, by path relative to that directory."""

    @classmethod
    def of(cls, text: str) -> CodeFile:
        """Check a path and hash the code; raises ConfigError unless it is the path of a Python file that can be parsed."""
        expected = "expected the path of a Python file, such as code=my_trainer.py"
        if "${" in text:
            raise ConfigError(f"code: got {text!r}, but interpolations have no effect here; {expected}")
        path = _absolute(text)
        if not text.isprintable() or not os.path.isfile(path):
            raise ConfigError(f"code: got {text[:250]!r}, but there is no such file; {expected}")
        if path.suffix != ".py" or not path.stem.isidentifier():
            raise ConfigError(f"code: got {text!r}, whose name is not that of a Python module; {expected}")
        sums = {str(item.relative_to(path.parent)): _sha256(item) for item in sorted(_modules(path, path.parent))}
        return cls(path, text, sums)


def _absolute(text: str) -> Path:
    return Path(os.path.expanduser(text)).absolute()


_FILES: list[CodeFile] = []
"""The file of this process, if there is one."""


def take(arguments: Sequence[str], *, load: bool = True) -> list[str]:
    """Import the file that `code=<path>` among the arguments names, which registers its components; return the others.

    With `load=False` the file is not imported, only passed on to the ranks, which report what is wrong with it. Raises
    ConfigError if it cannot be imported.
    """
    named = [item.removeprefix(_KEY) for item in arguments if item.startswith(_KEY)]
    if len(named) > 1:
        raise ConfigError(
            f"code: got {' and '.join(named)}, expected one file; import the other from it: `from .other import *`"
        )
    for text in named:
        try:
            _FILES[:] = [CodeFile.of(text)]
        except ConfigError:
            if load:
                raise
            _FILES[:] = [CodeFile(_absolute(text), text, {})]
        if load:
            _import(_FILES[0])
    return [item for item in arguments if not item.startswith(_KEY)]


def forget() -> None:
    """Have no file any more; the modules of an earlier one are imported anew when it is named again."""
    _FILES.clear()
    if _Finder in sys.meta_path:
        sys.meta_path.remove(_Finder)
    for name in [name for name in sys.modules if owns(name)]:
        del sys.modules[name]


def arguments(copied_to: Path | None = None) -> list[str]:
    """Return the argument that names the file to a child process, or its copy in a folder; none without a file."""
    return [f"{_KEY}{copied_to / file.path.name if copied_to else file.path}" for file in _FILES]


def typed_arguments() -> list[str]:
    """Return the argument as the user gave it, for a command that is shown; none without a file."""
    return [f"{_KEY}{file.typed}" for file in _FILES]


def owns(module: str) -> bool:
    """Whether a module is the file, or one that it imported from its directory."""
    return module.partition(".")[0] == PACKAGE


def content() -> dict[str, Any] | None:
    """Return the name of the file, and the SHA-256 of it and of each module of its directory that it imports; None without a file."""
    return {"file": _FILES[0].path.name, "sha256": _FILES[0].sha256} if _FILES else None


def module_digest(name: str) -> str:
    """Return a hash of one of the modules that `owns` and of those of its directory that it imports."""
    [file] = _FILES
    root = file.path.parent
    path = root.joinpath(*name.split(".")[1:])
    mine = [path.with_name(f"{path.name}.py"), path / "__init__.py"]
    names = sorted(str(item.relative_to(root)) for start in mine if start.is_file() for item in _modules(start, root))
    sums = [(name, file.sha256.get(name, "")) for name in names]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def record_entry(before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry `code` of a run's record; none if neither this start nor the one before has a file."""
    return {"code": content()} if _FILES or before.get("code") else {}


def change_since(before: Mapping[str, Any] | None) -> str:
    """Return a sentence on how the code differs from that of an earlier start, as `content` described it; empty if it is equal."""
    now = content()
    if before == now:
        return ""
    old, new = ((item or {}).get("sha256", {}) for item in (before, now))
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    how = "was not used when" if not before else "is not used any more since" if not now else "has changed since"
    return f"code: {', '.join(names)} {how} this run last started; pass fresh=true to start over"


def copy_to(folder: Path) -> None:
    """Copy the file and the modules of its directory that it imports."""
    for file in _FILES:
        for path in _modules(file.path, file.path.parent):
            target = folder / path.relative_to(file.path.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)


class _Loader(SourceFileLoader):
    """Compiles the source whenever it is imported: a `.pyc` counts as current if size and second of the file are unchanged."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)  # type: ignore[no-any-return]


class _Finder:
    """Has the modules of the package be imported by `_Loader`, too."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path) if path is not None and owns(name) else None
        if found is not None and isinstance(found.loader, SourceFileLoader):
            found.loader = _Loader(found.loader.name, found.loader.path)
        return found


def _import(file: CodeFile) -> None:
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
    package = ModuleType(PACKAGE)
    package.__path__ = [str(file.path.parent)]  # where relative imports look
    sys.modules[PACKAGE] = package
    name = f"{PACKAGE}.{file.path.stem}"
    spec = importlib.util.spec_from_file_location(name, file.path, loader=_Loader(name, str(file.path)))
    assert spec is not None and spec.loader is not None, "every .py file has a loader"
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"code: {file.typed} cannot be imported: {describe(error)}; {remedy(error)}") from error


def remedy(error: BaseException) -> str:
    """Return what to do about an error of the user's code, which may import a module of its directory without a dot."""
    if isinstance(error, ModuleNotFoundError) and any(
        (f.path.parent / f"{error.name}.py").is_file() or any((f.path.parent / str(error.name)).glob("*.py"))
        for f in _FILES
    ):
        return f"import a module of its directory with a dot: `from .{error.name} import ...`"
    return "fix it"


def _modules(path: Path, root: Path) -> set[Path]:
    """Return a file and the modules below `root` that it imports with a dot, directly or through others.

    Imports inside functions count, so the files are read instead of `sys.modules`.
    """
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        packages = [folder / "__init__.py" for folder in file.parents if root in folder.parents]
        waiting += [item for item in packages if item.is_file()]
        try:
            tree = ast.parse(file.read_bytes(), file)
        except (
            SyntaxError,
            ValueError,
            OSError,
            RecursionError,
            MemoryError,
        ) as error:  # the last two: nested too deeply
            raise ConfigError(f"code: {file} cannot be read: {describe(error)}; fix it") from error
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and 0 < node.level <= len(file.parents):
                folder = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                names = [folder, *(folder / alias.name for alias in node.names)]
                candidates = [item for name in names for item in (Path(f"{name}.py"), name / "__init__.py")]
                waiting += [item for item in candidates if item.is_file() and root in item.parents]
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
