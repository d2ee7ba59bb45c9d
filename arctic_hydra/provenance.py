"""The environment of a run for its record: package versions, host and git revisions."""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from arctic_hydra import __version__
from arctic_hydra.redaction import mask
from arctic_hydra.redaction.masking import MASK, mask_settings, secret_settings

PACKAGES = (
    "arctic-hydra torch deepspeed transformers datasets tokenizers hydra-core omegaconf liger-kernel safetensors mlflow "
    "mlflow-skinny submitit peft numpy pyarrow"
).split()

_SETTINGS = ("*.yaml", "*.yml", "*.json")
_DIFF_OF_SETTINGS = re.compile(r"diff --git .*\.(?:ya?ml|json)\"?\n")
_DIFF = ("diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--ignore-submodules=all")
_MOST_CHARACTERS = 1_000_000
"""Of a diff in the record of a run; with the whole files around it, ten times as many are searched for secrets."""


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
        "git": git_state(code.parent) if is_tracked(code) else None,
        "working_directory": {"path": str(Path.cwd()), "git": git_state(Path.cwd())},
    }


_WITHOUT_COMMANDS = re.compile(r"core\.(filemode|symlinks|ignorecase|precomposeunicode|autocrlf|eol)=\w+")
"""The repository's own settings that `git diff` is told, because it would show other differences without them."""


@dataclass(frozen=True)
class _Checkout:
    root: str
    revision: str
    git: Callable[..., str | None]
    """Runs a git command and returns its output, None if it fails."""


def is_tracked(path: Path) -> bool:
    """Whether git tracks a file; a package installed into a `.venv` inside a checkout is not part of its revision."""
    with _checkout(path.parent) as found:
        return found is not None and found.git("ls-files", "--error-unmatch", str(path)) is not None


def tracked_and_new_files(root: Path) -> list[str]:
    """Return the paths of the files of the checkout at `root`, relative to it, without those that it ignores."""
    with _checkout(root) as found:
        if found is None:
            return []
        listed = found.git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", str(root)) or ""
        return [os.path.relpath(os.path.join(found.root, name), root) for name in listed.split("\0") if name]


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the revision and the uncommitted diff of the git checkout that contains `folder`, or None.

    `dirty` is None if git cannot tell, as with missing objects.
    """
    with _checkout(folder) as found:
        if found is None:
            return None
        diff = found.git(*_DIFF)
        whole = found.git(*_DIFF, "--unified=100000", "--", *(f":(top){name}" for name in _SETTINGS)) if diff else None
    dirty = None if diff is None else bool(diff)
    shown = _without_secrets((diff or "")[:_MOST_CHARACTERS], (whole or "")[: 10 * _MOST_CHARACTERS])
    return {"revision": found.revision, "dirty": dirty, "diff": shown}


def _without_secrets(diff: str, whole: str) -> str:
    """Return a diff without its secrets; `whole` is the diff of the files of settings with all of their lines.

    A part of the diff may begin in the middle of a secret of several lines, whose key only `whole` contains.
    """
    hidden = {_name_of(file): _lines_of_secrets(file) for file in _files_of(whole)}
    return "".join(
        mask_settings(_without_lines(file, hidden.get(_name_of(file), set())), is_diff=True)
        if _DIFF_OF_SETTINGS.match(file)
        else mask(file)
        for file in _files_of(diff)
    )


def _files_of(diff: str) -> list[str]:
    return re.split(r"^(?=diff --git )", diff, flags=re.MULTILINE)


def _name_of(file: str) -> str:
    return file.partition("\n")[0]


def _lines_of_secrets(file: str) -> set[str]:
    """Return the lines that only continue a secret."""
    parts = (file[start:end] for start, end in secret_settings(file, is_diff=True))
    return {line for part in parts for line in part.split("\n")[1:] if line[1:].strip()}


def _without_lines(file: str, hidden: set[str]) -> str:
    return "\n".join(f"{line[:1]}{MASK}" if line in hidden else line for line in file.split("\n"))


@contextmanager
def _checkout(folder: Path) -> Iterator[_Checkout | None]:
    """Yield the checkout that contains `folder`, or None if there is none.

    The repository may have come with data, and its configuration can name commands: filters, hooks, a program to fetch
    missing objects. So git works in a directory of our own with an empty configuration, on the repository's index and
    objects; only `rev-parse` and `config --list`, which run nothing, read the repository itself.
    """
    names = ["--show-toplevel", "--git-path", "objects", "--git-path", "index"]
    found = _run_git(folder, "rev-parse", "--path-format=absolute", *names, "--show-object-format", "HEAD")
    lines = (found or "").splitlines()
    if len(lines) != 5:
        yield None
        return
    root, objects, index, kind, revision = lines
    own = (_run_git(folder, "config", "--list") or "").splitlines()
    with tempfile.TemporaryDirectory(prefix="arctic_hydra-git-") as name:
        ours = Path(name)
        for part in ("refs", "objects/info"):
            (ours / part).mkdir(parents=True)
        (ours / "HEAD").write_text(f"{revision}\n")
        (ours / "objects" / "info" / "alternates").write_text(f"{objects}\n")
        (ours / "config").write_text(
            f"[core]\nrepositoryformatversion = 1\nbare = false\n[extensions]\nobjectFormat = {kind}\n"
        )
        words = [f"--git-dir={ours}", f"--work-tree={root}"]
        words += [word for line in own if _WITHOUT_COMMANDS.fullmatch(line) for word in ("-c", line)]
        yield _Checkout(root, revision, lambda *command: _run_git(Path(root), *words, *command, GIT_INDEX_FILE=index))


def _run_git(folder: Path, *words: str, **more: str) -> str | None:
    """Return the output of a git command, or None if it fails or git is not installed."""
    environment = {**os.environ, "GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0", **more}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
