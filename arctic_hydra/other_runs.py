"""Other runs, for messages: the run that a folder of runs stands for, and how a run differs from the last one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from arctic_hydra.component import flatten
from arctic_hydra.errors import StateFileError
from arctic_hydra.files.state_file import read_state
from arctic_hydra.run_directory import FINISHED, RECORD_FILE, modified_at, relative


def newest_run_in(folder: Path) -> Path | None:
    """Return the newest run of a folder of runs, such as outputs/default; None for another folder, such as a run itself."""
    is_one = any((folder / name).exists() for name in ("run.json", "config.json"))  # a run, or a model
    runs = [] if is_one else list(folder.glob("*/run.json"))
    return relative(max(runs, key=lambda file: modified_at(file) or 0).parent.absolute()) if runs else None


def hint_of_run(folder: Path) -> str:
    """Return the end of an error about a folder that is not a run: the run in it that was meant; empty if it holds none."""
    return f"; it is a folder of runs; did you mean {run}?" if (run := newest_run_in(folder)) else ""


def start_problem(path: str) -> str | None:
    """Return why `path` cannot be an export, a checkpoint or a run directory to start from, or None; looks at the folder only."""
    if not Path(path).is_dir():
        return f"got {path}, which is not a directory; expected an export, a checkpoint or a run directory"
    run = newest_run_in(Path(path))
    return f"got {path}, a folder of runs; expected one of them; did you mean {run}?" if run else None


def difference_from_last_run(path: Path, identity: dict[str, Any]) -> str | None:
    """Return how a run differs from the latest finished run of the same name, or None for no value or more than five."""
    others = [item for item in path.parent.glob("*/record.json") if item.parent != path]
    for other in sorted(others, key=lambda item: modified_at(item) or 0, reverse=True):
        try:
            record = read_state(other, RECORD_FILE) or {}
        except StateFileError:
            continue  # its own command reports it
        if record.get("status") != FINISHED:
            continue
        theirs, ours = flatten(record.get("identity", {})), flatten(json.loads(json.dumps(identity, default=str)))
        changed = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
        options = tuple(key.removesuffix("@") for key in changed if key.endswith(".@"))
        # What only one of two options has follows from the choice.
        told = [
            key
            for key in changed
            if key.endswith(".@") or (key in ours and key in theirs) or not key.startswith(options)
        ]
        if 0 < len(told) <= 5:
            words = ", ".join(_change(key, theirs.get(key), ours.get(key)) for key in told)
            return f"differs from the finished run {other.parent.name} in {words}"
        return None
    return None


def _change(key: str, before: Any, now: Any) -> str:
    """Return what has changed: two values, or two options such as "trainer/sft version 1", named as on the command line."""
    if key.endswith(".@"):
        before, now = (str(value).rpartition("/")[2] for value in (before, now))
        versions = [text.partition(" version ") for text in (before, now)]
        if versions[0][0] != versions[1][0]:
            (before, *_), (now, *_) = versions
    return f"{key.removesuffix('.@')} {before} -> {now}"
