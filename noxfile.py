"""All checks of this repository: `pip install nox && nox`.

`nox` runs lint, types, docs and tests. Start the sessions slurm, faults, extras, bench, peers, audit and gpu by name, with `nox -s NAME`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.sessions = ["lint", "types", "docs", "tests"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"

PINNED = ("-c", "constraints.txt")
TEST_TIMEOUT_SECONDS = 600


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff."""
    session.install(*PINNED, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with strict mypy; heavy libraries count as Any (see pyproject.toml), so they are not installed."""
    session.install(*PINNED, "mypy", "hydra-core", "omegaconf", "numpy", "xxhash")
    session.run("mypy", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests in three processes, because many of them wait; `nox -s tests -- tests/tracking -k resume` selects some of them."""
    session.install(*PINNED, "-e", ".[test]")
    # Where PYTHONDONTWRITEBYTECODE is set, each of hundreds of interpreters would compile the checkout again.
    session.run("python", "-m", "compileall", "-q", "arctic_hydra", "launchers")
    session.run("pytest", "-n", "3", "--dist", "loadgroup", f"--timeout={TEST_TIMEOUT_SECONDS}", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/; warnings, such as a broken link, are errors."""
    session.install(
        *PINNED, "furo", "myst-parser", "sphinx", "sphinx-copybutton", "hydra-core", "omegaconf", "numpy", "xxhash"
    )
    session.run("sphinx-build", "-W", "--keep-going", "-q", "docs", "site", *session.posargs)


@nox.session
def slurm(session: nox.Session) -> None:
    """Run the tests on a real SLURM cluster, as root, on a machine with slurm-wlm, slurmdbd, munge and mariadb-server."""
    session.install(*PINNED, "-e", ".[test]")
    session.run("pytest", "-m", "slurm", "--durations=0", f"--timeout={TEST_TIMEOUT_SECONDS}", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Kill, freeze and starve runs, then soak one; `nox -s faults -- --kills 200` passes options to the kill loop."""
    session.install(*PINNED, "-e", ".[test]")
    session.run("pytest", "-m", "faults", f"--timeout={TEST_TIMEOUT_SECONDS}")
    session.run("python", "-m", "tests.faults.kill_loop", *session.posargs)
    session.run("python", "-m", "tests.faults.soak", "--minutes", "30", "--results", "soak.json")


@nox.session
def extras(session: nox.Session) -> None:
    """Run the tests marked `extras`, which need g++ and ninja (DeepSpeed's optimizers, inductor) or torchao."""
    session.install(*PINNED, "-e", ".[test]", "ninja", "torchao")
    session.run("pytest", "-m", "extras", f"--timeout={2 * TEST_TIMEOUT_SECONDS}", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks, tests/bench/bench_*.py, one after another."""
    scripts = sorted(Path("tests/bench").glob("bench_*.py"))
    if not scripts:
        session.skip("tests/bench/ contains no bench_*.py")
    session.install(*PINNED, "-e", ".[test]")
    for script in scripts:
        session.run("python", str(script), *session.posargs)


@nox.session
def peers(session: nox.Session) -> None:
    """Compare prepared conversations with TRL's and ArcticTraining's, and preference training with TRL's, in environments of theirs."""
    session.install(*PINNED, "-e", ".[test]")
    pinned_torch = next(line for line in Path("constraints.txt").read_text().split() if line.startswith("torch=="))
    # ArcticTraining needs transformers 4, so its environment pins only torch.
    needs = {"trl": [*PINNED, "trl"], "arctic": [pinned_torch, "setuptools", "arctic-training", "transformers<5"]}
    pythons = []
    for peer, packages in needs.items():
        folder = Path(session.virtualenv.location).with_name(f"peers-{peer}")
        if not folder.exists():
            session.run("python", "-m", "venv", str(folder))
        python = str(folder / "bin" / "python")
        session.run(python, "-m", "pip", "install", "-q", *packages, external=True)
        pythons += [f"--{peer}", python]
    session.run("python", "-m", "tests.bench.peers.compare", *pythons, *session.posargs)
    session.run("python", "-m", "tests.bench.peers.compare_pairs", *pythons[:2])


@nox.session
def audit(session: nox.Session) -> None:
    """Look up the pinned packages in the database of known vulnerabilities, with pip-audit; fails without the network."""
    session.install("pip-audit")
    session.run("pip-audit", "--strict", "--no-deps", "--disable-pip", "-r", "constraints.txt", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """Run the tests marked `gpu`, in one process, on a machine with a CUDA device."""
    if shutil.which("nvidia-smi") is None:
        session.skip("no CUDA device here: nvidia-smi is not installed")
    session.install(*PINNED, "-e", ".[test]", "ninja", "torchao")
    session.run("pytest", "-m", "gpu", f"--timeout={TEST_TIMEOUT_SECONDS}", *session.posargs)
