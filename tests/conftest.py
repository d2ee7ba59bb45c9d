"""Settings for every test: no network, few threads, and marks that skip what this machine cannot run."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Before any library reads them; child processes of tests inherit them, and find the checkout under test.
os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", MLFLOW_DISABLE_TELEMETRY="true"
)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist already uses every core
_PATHS = [str(ROOT), str(ROOT / "launchers"), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(_PATHS)

import tests.command  # noqa: E402  # takes its environment from this one, as it is now
from arctic_hydra import distributed  # noqa: E402
from arctic_hydra.redaction import masking  # noqa: E402


@pytest.fixture(autouse=True)
def _gpus_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the GPUs that a test composes for: later tests would not run in forks, for fear of the driver."""
    monkeypatch.setattr(distributed, "_GPUS_ELSEWHERE", None)


@pytest.fixture(autouse=True)
def _settings_of_this_process() -> Iterator[None]:
    """Undo what a command that runs in this process does to it: files of other tests are for several users, such as SLURM's.

    It may also have made the loggers quiet, whose records other tests read.
    """
    before = os.umask(0o022)
    os.umask(before)
    levels = {logger: logger.level for logger in (logging.getLogger(), logging.getLogger("arctic_hydra"))}
    yield
    os.umask(before)
    masking._learned.clear()
    logging.captureWarnings(False)
    for logger, level in levels.items():
        if logger.level != level:
            logger.setLevel(level)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def my_lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example extension package installed into it, to be put on PYTHONPATH."""
    source = tmp_path_factory.mktemp("source") / "my_lab"
    shutil.copytree(ROOT / "tests" / "examples" / "my_lab", source)
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True)
    return target


def pytest_unconfigure() -> None:
    """Leave no warm process behind."""
    tests.command.SERVER.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip `gpu` tests without CUDA, `slurm` ones without SLURM, `extras` and `long` ones unless asked for, and say so."""
    wanted = {mark for mark in ("gpu", "slurm") if any(item.get_closest_marker(mark) for item in items)}
    missing = {}
    if "gpu" in wanted:
        import torch

        if not torch.cuda.is_available():
            missing["gpu"] = "no CUDA device"
    if "slurm" in wanted:
        from tests.slurm import cluster

        if reason := cluster.missing():
            missing["slurm"] = reason
    if "extras" not in config.option.markexpr:
        missing["extras"] = "needs a compiler or torchao; run `nox -s extras`"
    if not config.option.markexpr:
        missing["long"] = "another case of what runs here; run `nox -s faults`"
    for item in items:
        for mark, reason in missing.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))
