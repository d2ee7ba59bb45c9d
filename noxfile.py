"""All checks of this repository: `pip install nox && nox`.

`nox` runs lint, types, docs and tests. Start the sessions slurm, faults, extras, bench, peers, audit, gpu, dist, release, newest
and constraints by name, with `nox -s NAME`.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.sessions = ["lint", "types", "docs", "tests"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"

PINNED = ("-c", "constraints.txt")
TEST_TIMEOUT_SECONDS = 600
SHORT_DEFAULT = ("trainer.train_iters=20", "trainer.eval_frequency=10")
"""Overrides that cut the default run to half a minute."""
SAMPLE = (
    *("tests/data/rows", "tests/converter/peft", "tests/launchers/test_search.py", "tests/tracking/test_mlflow.py"),
    *("tests/checkpoint/test_hf.py", "tests/test_main.py", "tests/test_packaging.py"),
)
"""Tests that `newest` runs: those of what is built on pyarrow, peft, Optuna, MLflow, transformers, Hydra and hatchling."""


def pinned_torch() -> str:
    """Return the requirement of constraints.txt for torch, which all environments have."""
    return next(line for line in Path("constraints.txt").read_text().split() if line.startswith("torch=="))


def versions(text: str) -> dict[str, str]:
    """Return the versions in the lines of a file of constraints, or of `pip freeze`, by normalized name."""
    found = re.findall(r"^([^=#\s]+)==([^+\s]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


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
    """Run the benchmarks: those that compare write tests/bench/RESULTS.md, the others print; `-- startup --rounds 9` selects."""
    session.install(*PINNED, "-e", ".[test]")
    session.run("python", "-m", "tests.bench", *session.posargs)
    if not session.posargs:
        for script in sorted(Path("tests/bench").glob("bench_*.py")):
            if "\ndef comparisons(" not in script.read_text():
                session.run("python", "-m", f"tests.bench.{script.stem}")


@nox.session
def peers(session: nox.Session) -> None:
    """Compare prepared conversations with TRL's and ArcticTraining's, and preference training with TRL's, in environments of theirs."""
    session.install(*PINNED, "-e", ".[test]")
    # ArcticTraining needs transformers 4, so its environment pins only torch.
    needs = {"trl": [*PINNED, "trl"], "arctic": [pinned_torch(), "setuptools", "arctic-training", "transformers<5"]}
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


@nox.session
def dist(session: nox.Session) -> None:
    """Build the sdist, and the wheel from it, into dist/, and check how their metadata would look on an index."""
    session.install("build", "twine")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    session.run("twine", "check", "--strict", *map(str, sorted(Path("dist").iterdir())))


@nox.session(python=["3.11", "3.12", "3.13"], reuse_venv=False, requires=["dist"])
def release(session: nox.Session) -> None:
    """Run the wheel of `dist` from an empty folder, in a new environment of each Python that is installed, without and with extras.

    Only the CPU build of the pinned torch is installed, from PyTorch's CPU index or a local folder (`PIP_EXTRA_INDEX_URL`,
    `PIP_FIND_LINKS`): another one may be several GB large. Where there is none for a Python, the wheel composes a run only.
    """
    [wheel] = [path.absolute() for path in Path("dist").glob("*.whl")]
    constraints = ("-c", str(Path("constraints.txt").absolute()))
    torch = f"{pinned_torch()}+cpu"
    found = session.run(
        *("python", "-m", "pip", "install", "--dry-run", "--no-deps", "--only-binary=:all:", torch),
        success_codes=[0, 1],
        silent=True,
    )
    with session.chdir(session.create_tmp()):
        if "Would install torch" not in str(found):
            session.warn(
                f"there is no {torch} for Python {session.python}: the wheel is installed without torch, and composes only"
            )
            session.install(*constraints, "hydra-core", "omegaconf", "numpy", "xxhash")
            session.install("--no-deps", str(wheel))
            session.run("arctic-hydra", "--help", "trainer", silent=True)
            session.run("arctic-hydra", "experiment=lora", "--cfg", "job", silent=True)
            return
        session.install(*constraints, torch, str(wheel))
        session.run("python", "-m", "pip", "check")
        session.run("arctic-hydra", *SHORT_DEFAULT)
        session.install(*constraints, torch, f"{wheel}[tensorboard,wandb,ui]")
        session.run("python", "-m", "pip", "check")
        trackers = "tracking=[mlflow,tensorboard,wandb]"
        session.run("arctic-hydra", "name=extras", trackers, *SHORT_DEFAULT, env={"WANDB_MODE": "offline"})


@nox.session(reuse_venv=False)
def newest(session: nox.Session) -> None:
    """Run the default and a sample of the tests with the newest versions, also those above the ranges of pyproject.toml.

    torch is the pinned one. `nox -s newest -- tests/data` runs other tests.
    """
    project = nox.project.load_toml("pyproject.toml")["project"]
    listed = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    others = [item for item in listed if not item.startswith(("torch>", "arctic-hydra", "mlflow>"))]
    session.install(pinned_torch(), *(re.sub(r",?<[^,;]*", "", item) for item in others))
    session.install("--no-deps", "-e", ".")
    pins = versions(Path("constraints.txt").read_text())
    installed = versions(str(session.run("python", "-m", "pip", "freeze", "--exclude-editable", silent=True)))
    for name, version in installed.items():
        if pins.get(name, version) != version:
            session.log(f"{name} {version}, in constraints.txt {pins[name]}")
    session.run("python", "-m", "pip", "check", success_codes=[0, 1])  # says which ranges of ours are exceeded
    with session.chdir(session.create_tmp()):
        session.run("arctic-hydra", *SHORT_DEFAULT)
    session.run(
        "pytest", "-n", "2", "--dist", "loadgroup", f"--timeout={TEST_TIMEOUT_SECONDS}", *(session.posargs or SAMPLE)
    )


@nox.session
def constraints(session: nox.Session) -> None:
    """Renew constraints.txt: the newest versions that the ranges of pyproject.toml allow, with torch as it is pinned there."""
    path, report = Path("constraints.txt"), Path(session.create_tmp()) / "report.json"
    session.run(
        *("python", "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(report)),
        *(pinned_torch(), "ninja", ".[dev,ui]"),
    )
    found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    unpinned = ("arctic-hydra", "setuptools", "triton")  # torch's CUDA builds pin their own triton
    lines = [
        f"{item['name']}=={item['version'].removesuffix('+cpu')}" for item in found if item["name"] not in unpinned
    ]
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    path.write_text("\n".join([*head, *sorted(lines, key=str.lower)]) + "\n")
