"""The environment of a run for its record: package versions, host and git revisions."""

from __future__ import annotations

import platform
import re
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from arctic_hydra import __version__
from arctic_hydra.redaction import mask
from arctic_hydra.redaction.masking import mask_settings

PACKAGES = (
    "arctic-hydra torch deepspeed transformers datasets tokenizers hydra-core omegaconf liger-kernel safetensors mlflow "
    "mlflow-skinny submitit peft numpy pyarrow"
).split()

_SETTINGS = re.compile(r"diff --git .*\.(?:ya?ml|json)\n")


def package_versions() -> dict[str, str]:
    """Return the versions of `PACKAGES`, as far as they are installed."""
    versions: dict[str, str] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def surroundings() -> dict[str, Any]:
    """Return what a result may depend on besides the config: host, package versions and git revisions.

    `git` is the checkout of this package, None if it is installed without one. `working_directory` has its own entry,
    because it may contain option files and data.
    """
    code = Path(__file__).resolve()
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executable": sys.executable,
        "versions": package_versions(),
        "version": __version__,
        "git": git_state(code.parent) if _is_tracked(code) else None,
        "working_directory": {"path": str(Path.cwd()), "git": git_state(Path.cwd())},
    }


_OWN_SCOPES = ("local\t", "worktree\t")
_RUNS = re.compile(
    r"core\.(fsmonitor|hookspath|pager)|pager\..*|filter\..*\.(clean|smudge|process|required)|diff\.(.*\.command|external)"
)
"""Settings of git that name commands to run while it compares files."""
_OFF = {"core.fsmonitor": "false", "core.hookspath": "/dev/null"}


def _is_tracked(path: Path) -> bool:
    """Whether git tracks a file; a package installed into a `.venv` inside a checkout is not part of its revision."""
    return _git(path.parent, "ls-files", "--error-unmatch", path.name) is not None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the revision and the uncommitted diff of the git checkout that contains `folder`, or None."""
    revision = _git(folder, "rev-parse", "HEAD")
    if revision is None:
        return None
    diff = _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--ignore-submodules=all") or ""
    return {"revision": revision.strip(), "dirty": bool(diff), "diff": _without_secrets(diff[:1_000_000])}


def _without_secrets(diff: str) -> str:
    files = re.split(r"^(?=diff --git )", diff, flags=re.MULTILINE)
    return "".join(mask_settings(file) if _SETTINGS.match(file) else mask(file) for file in files)


def _git(folder: Path, *words: str) -> str | None:
    """Return the output of a git command, or None if it fails or git is not installed.

    Commands that the repository's own configuration names, such as its filters, do not run: it may have come with data.
    """
    settings = _run_git(folder, "config", "--show-scope", "--list") or ""
    own = [line.partition("\t")[2].partition("=")[0] for line in settings.splitlines() if line.startswith(_OWN_SCOPES)]
    off = [word for key in sorted(set(own)) if _RUNS.fullmatch(key) for word in ("-c", f"{key}={_OFF.get(key, '')}")]
    return _run_git(folder, *off, *words)


def _run_git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, errors="replace", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
