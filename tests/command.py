"""Runs the program as users do: from a command line, in a separate process."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests import warm

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = f"{shlex.quote(sys.executable)} -m arctic_hydra"

SMALLEST = (
    "model.hidden_size=64 model.intermediate_size=128 model.num_hidden_layers=2 data.max_length=256 data.num_proc=1 "
    "optimizer.lr=1e-3 log.report=false"
)
"""Overrides with which a run on any data takes seconds."""
SMALL = f"{SMALLEST} data.eval_sources.chat.sample_count=20"
"""The same for the bundled chats, with fewer evaluation examples."""


_SHELL = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "RANK", "WORLD"))}
"""Environment variables before the first test; libraries that tests import set others."""


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a user's shell: with this checkout importable, without variables of the test run."""
    path = os.pathsep.join(part for part in (more.pop("PYTHONPATH", ""), str(ROOT), str(ROOT / "launchers")) if part)
    return {**_SHELL, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **more}


SERVER = warm.Server(environment())


def run(
    arguments: str,
    folder: Path,
    *,
    code: int | None = 0,
    timeout: float = 300,
    module: str = "arctic_hydra",
    fresh: bool = False,
    **more: str,
) -> subprocess.CompletedProcess[str]:
    """Run the program with `arguments` in `folder` and check its exit code; `code=None` accepts any.

    It runs in a fork of a warm process (tests/warm.py), or in a new interpreter if `fresh` is true, if `more` variables than
    PYTHONPATH are given, or if the arguments contain more than one command. A shell expands `*` and `$(...)` in any case.
    """
    done = None
    if not (fresh or more.keys() - {"PYTHONPATH"} or _has_operators(arguments)):
        done = SERVER.run(module, words(arguments, folder), folder, timeout, environment(**more)["PYTHONPATH"])
    done = done or subprocess.run(
        f"{shlex.quote(sys.executable)} -m {module} {arguments}",
        shell=True,
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    if code is not None:
        assert done.returncode == code, (
            f"exit {done.returncode} of: {arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    return done


def _has_operators(arguments: str) -> bool:
    """Whether a shell would run more than one command, or redirect it; operators in quotes are text."""
    lexer = shlex.shlex(arguments, posix=True, punctuation_chars="|&;<>")
    lexer.commenters = ""
    return any(set(token) <= set("|&;<>") for token in lexer if token)


def words(arguments: str, folder: Path) -> list[str]:
    """Return the arguments as a shell in `folder` passes them to a program."""
    if not set("$`*?") & set(arguments):
        return shlex.split(arguments)
    printed = subprocess.run(
        f"printf '%s\\0' {arguments}",
        shell=True,
        cwd=folder,
        env=environment(),
        capture_output=True,
        check=True,
        text=True,
    )
    return printed.stdout.split("\0")[:-1]


def start(arguments: str, folder: Path, *, stdout: Any = subprocess.PIPE, **more: str) -> subprocess.Popen[str]:
    """Start the program with `arguments` in `folder`; `exec` replaces the shell by the program."""
    return subprocess.Popen(
        f"exec {PROGRAM} {arguments}",
        shell=True,
        cwd=folder,
        env=environment(**more),
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def only_run(folder: Path, name: str = "default") -> Path:
    """Return the only run directory below `outputs/<name>`."""
    found = [item for item in (folder / "outputs" / name).iterdir() if item.is_dir() and item.name != "sweeps"]
    assert len(found) == 1, found
    return found[0]


def metrics(run_dir: Path) -> list[dict]:
    """Return the complete lines of metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def losses(run_dir: Path) -> list[float]:
    """Return the training losses in order, and check that every step is logged exactly once."""
    rows = [row for row in metrics(run_dir) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def wait_for_step(
    folder: Path, step: int, process: subprocess.Popen[str], name: str = "default", timeout: float = 120
) -> None:
    """Wait until `step` is logged or the process ends."""
    end = time.monotonic() + timeout
    while time.monotonic() < end and process.poll() is None:
        for path in (folder / "outputs" / name).glob("*/metrics.jsonl"):
            if any(row["step"] >= step and "loss" in row for row in metrics(path.parent)):
                return
        time.sleep(0.02)
    assert process.poll() is not None, f"step {step} was not logged within {timeout} s"


def wait_for_rank(process: subprocess.Popen[str], seconds: float = 60.0) -> int:
    """Wait until a run has started the process of its rank, which has not loaded anything yet; return its id."""
    end = time.monotonic() + seconds
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while time.monotonic() < end and process.poll() is None:
        for child in children.read_text().split():
            command = Path(f"/proc/{child}/cmdline")
            if command.exists() and b"arctic_hydra.worker" in command.read_bytes():
                return int(child)
        time.sleep(0.05)
    raise AssertionError(f"no rank after {seconds} s")
