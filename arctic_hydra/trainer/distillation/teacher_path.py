"""Resolves and checks the path of a teacher, without torch."""

from __future__ import annotations

from pathlib import Path

from arctic_hydra.hub import looks_like_path

_EXPECTED = "expected a hub id, the directory of a model, or of a run with an export"


def find_directory(path: str) -> str:
    """Return the directory of the model that `path` names: itself or, of a run, its export; a hub id as it is."""
    folder = Path(path).expanduser()
    export = folder / "export"
    return str(export) if not (folder / "config.json").is_file() and (export / "config.json").is_file() else path


def path_problem(path: str) -> str | None:
    """Return why there is no model at `path`, or None; a hub id is not looked up."""
    if not looks_like_path(path):
        return None
    folder = Path(find_directory(path)).expanduser()
    if not folder.is_dir():
        return f"got {path!r}, which is not a directory; {_EXPECTED}"
    if (folder / "config.json").is_file():
        return None
    if any((place / "adapter_config.json").is_file() for place in (folder, folder / "export")):
        return f"got {path!r}, which holds an adapter; expected a whole model; export it with checkpoint.hf.merge=true"
    return f"got {path!r}, which contains no config.json; {_EXPECTED}"
