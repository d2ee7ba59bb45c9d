"""Every check of this repository: `pip install nox && nox`.

`nox` runs lint, types and tests. `nox -s faults`, `nox -s compiled`, `nox -s bench` and `nox -s gpu` are run by hand.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"

PINNED = ("-c", "constraints.txt")
TEST_TIMEOUT_SECONDS = 600


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format with ruff."""
    session.install(*PINNED, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy strict; the heavy libraries are Any (pyproject.toml says why), so none is installed."""
    session.install(*PINNED, "mypy", "hydra-core", "omegaconf", "numpy")
    session.run("mypy", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on two processes; `nox -s tests -- tests/tracking -k resume` runs some of them."""
    session.install(*PINNED, "-e", ".[test]")
    session.run("pytest", "-n", "2", "--dist", "loadgroup", f"--timeout={TEST_TIMEOUT_SECONDS}", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Kill, freeze and starve runs at length; `nox -s faults -- --kills 200 --results kills.json` sets the kill loop."""
    session.install(*PINNED, "-e", ".[test]")
    session.run("pytest", "-m", "faults", f"--timeout={TEST_TIMEOUT_SECONDS}")
    session.run("python", "-m", "tests.faults.kill_loop", *session.posargs)


@nox.session
def compiled(session: nox.Session) -> None:
    """Run the tests marked `compiles`: DeepSpeed's own optimizers, which it builds with g++ and ninja."""
    session.install(*PINNED, "-e", ".[test]", "ninja")
    session.run("pytest", "-m", "compiles", f"--timeout={2 * TEST_TIMEOUT_SECONDS}", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks, tests/bench/bench_*.py, one after another."""
    scripts = sorted(Path("tests/bench").glob("bench_*.py"))
    if not scripts:
        session.skip("tests/bench/ holds no bench_*.py yet")
    session.install(*PINNED, "-e", ".[test]")
    for script in scripts:
        session.run("python", str(script), *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """Run the tests marked `gpu`, one process, on a machine with a CUDA device."""
    if shutil.which("nvidia-smi") is None:
        session.skip("no CUDA device here: nvidia-smi is not installed")
    session.install(*PINNED, "-e", ".[test]")
    session.run("pytest", "-m", "gpu", f"--timeout={TEST_TIMEOUT_SECONDS}", *session.posargs)
