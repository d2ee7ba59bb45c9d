"""Paths of runs, checkpoints and exports that a command starts from, and what was meant by a path that is none of them."""

from __future__ import annotations

import glob
import os
from pathlib import Path


def newest_run_in(folder: Path) -> Path | None:
    """Return the newest run of a folder of runs, such as outputs/default; None for another folder, such as a run itself."""
    is_one = any((folder / name).exists() for name in ("run.json", "config.json"))  # a run, or a model
    runs = [] if is_one else list(folder.glob("*/run.json"))
    return _shown(max(runs, key=os.path.getmtime).parent) if runs else None


def hint_of_run(folder: Path) -> str:
    """Return the end of an error about a folder that is not a run: the run in it that was meant; empty if it holds none."""
    return f"; it is a folder of runs; did you mean {run}?" if (run := newest_run_in(folder)) else ""


def hint_of_pattern(path: str) -> str:
    """Return the end of an error about a path that does not exist: what it matches as a pattern; empty if it matches nothing."""
    found = sorted(glob.glob(path)) if "*" in path else []
    return f"; shells expand no pattern after `=`; did you mean {_shown(Path(found[-1]))}?" if found else ""


def start_problem(path: str) -> str | None:
    """Return why `path` cannot be an export, a checkpoint or a run directory to start from, or None; looks at the folder only."""
    if not Path(path).is_dir():
        return f"got {path}, which is not a directory; expected an export, a checkpoint or a run directory{hint_of_pattern(path)}"
    run = newest_run_in(Path(path))
    return f"got {path}, a folder of runs; expected one of them; did you mean {run}?" if run else None


def _shown(path: Path) -> Path:
    """Return a path as short as it can be written in the working directory."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
