"""What a result depends on besides its config: package versions, host and git revisions."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from arctic_hydra import __version__

PACKAGES = (
    "arctic-hydra torch deepspeed transformers datasets tokenizers hydra-core omegaconf liger-kernel safetensors mlflow "
    "mlflow-skinny submitit peft numpy pyarrow"
).split()


def environment() -> dict[str, Any]:
    """Return what the result may depend on besides the config: host, versions, and the code's revisions.

    `git` is this program's checkout, None where it is installed without one; `working_directory` has its own, where option
    files and data may lie.
    """
    code = Path(__file__).resolve()
    versions: dict[str, str] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executable": sys.executable,
        "versions": versions,
        "version": __version__,
        "git": git_state(code.parent) if _is_tracked(code) else None,
        "working_directory": {"path": str(Path.cwd()), "git": git_state(Path.cwd())},
    }


def _is_tracked(path: Path) -> bool:
    """Whether a git checkout holds a file: one that is merely installed below it (in its `.venv`) has no revision there."""
    return _git(path.parent, "ls-files", "--error-unmatch", path.name) is not None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the revision and the uncommitted diff of the git checkout around `folder`; None outside of one."""
    revision = _git(folder, "rev-parse", "HEAD")
    if revision is None:
        return None
    diff = _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff") or ""
    return {"revision": revision.strip(), "dirty": bool(diff), "diff": diff[:1_000_000]}


def _git(folder: Path, *words: str) -> str | None:
    """Return what git prints, None where it fails or is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, errors="replace", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
