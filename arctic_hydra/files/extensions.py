"""The extensions: installed packages that register components when they are imported through the entry point group `arctic_hydra`."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from arctic_hydra.errors import DuplicateOption, describe

ENTRY_POINT_GROUP = "arctic_hydra"


@cache
def extensions() -> tuple[EntryPoint, ...]:
    """Return the entry points of installed extension packages, sorted by name."""
    return tuple(sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name))


@cache
def extension_of(package: str) -> str:
    """Return the entry point that registers the components of a package; empty for this package and unregistered ones."""
    return next((point.name for point in extensions() if point.module.partition(".")[0] == package), "")


BROKEN_EXTENSIONS: dict[str, str] = {}
"""Why an installed extension cannot be imported, by its top-level package."""
DISPUTED_OPTIONS: dict[tuple[str, str], str] = {}
"""Options that an installed extension registers a second time, by group and name, and which two classes these are."""


_TRIED: set[str] = set()
"""The modules of the extensions that this process has imported or failed to import."""


def load_extensions() -> list[str]:
    """Import each installed extension that this process has not tried yet, which registers its components; return the problems found.

    One that cannot be imported blocks only the commands that use it: the reason is kept in `BROKEN_EXTENSIONS`. If the reason
    is an option that exists, commands that use this option are blocked too, because two classes may be meant. It is not
    imported again, since the options that it registered before it failed would then seem to exist twice.
    """
    problems = []
    for point in extensions():
        if point.module in _TRIED:
            continue
        _TRIED.add(point.module)
        try:
            importlib.import_module(point.module)
        except Exception as error:
            owner = point.dist.name if point.dist else point.name
            problem = (
                f"extension {point.name!r} of package {owner!r} cannot be imported: {describe(error)}; "
                f"fix it, or `pip uninstall {owner}`"
            )
            BROKEN_EXTENSIONS[point.module.partition(".")[0]] = problem
            if isinstance(error, DuplicateOption):
                DISPUTED_OPTIONS[error.args[1]] = problem
            problems.append(problem)
    return problems
