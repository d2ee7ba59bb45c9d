"""What is shipped works from anywhere: a wheel, an editable install, and a bare checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.command import SMALLEST

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("packaging")]

ROOT = Path(__file__).parents[1]
SHIPPED = ("arctic_hydra", "conf", "launchers", "pyproject.toml", "README.md", "LICENSE", ".gitignore")


def clean_environment() -> dict[str, str]:
    """Return this process's environment without what would let a checkout shadow the installed package."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def shell(command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=cwd,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_tests_of_a_group_stay_on_one_worker(request):
    """pytest 9.2 gives tests an id that xdist 3.8 cannot add the group to: each worker would start a SLURM of its own."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("not run with --dist loadgroup")
    assert request.node.nodeid.endswith("@packaging")


def composed(output: str) -> bool:
    """Whether `--cfg job` printed a composed config."""
    return any(line.startswith("model:") for line in output.splitlines())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git would hold, so that a build leaves nothing in the real tree."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out, checkout)
    (built,) = out.glob("arctic_hydra-*.whl")
    return built


def new_environment(folder: Path) -> Path:
    """Make a virtual environment that sees this one's libraries, but not its arctic_hydra; return its `bin`."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    libraries = Path(sysconfig.get_paths()["purelib"])
    site = Path(
        run(folder / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
    )
    # A plain path entry: unlike a site directory it does not process the .pth files of an editable install.
    (site / "libraries.pth").write_text(f"{libraries}\n")
    return folder / "bin"


def install(environment: Path, *what: str | Path) -> None:
    run(sys.executable, "-m", "pip", "--python", environment / "python", "install", "--no-deps", *what)


def where(environment: Path, cwd: Path) -> Path:
    code = "import arctic_hydra; print(arctic_hydra.__file__)"
    return Path(run(environment / "python", "-c", code, cwd=cwd).strip())


def test_the_wheel_holds_package_configs_assets_and_plugin(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{target}/{path.relative_to(ROOT / folder)}"
        for folder, target in (
            ("arctic_hydra", "arctic_hydra"),
            ("conf", "arctic_hydra/conf"),
            ("launchers/hydra_plugins", "hydra_plugins"),
        )
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected - names == set()
    extra = {name for name in names - expected if ".dist-info/" not in name}
    assert extra == set()
    assert "hydra_plugins/__init__.py" not in names
    for needed in (
        "arctic_hydra/conf/__init__.py",
        "arctic_hydra/assets/tokenizer/tokenizer.json",
        "arctic_hydra/py.typed",
    ):
        assert needed in names
    assert any(name.endswith(".jsonl") for name in names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_a_wheel_runs_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    environment = new_environment(tmp_path / "venv")
    install(environment, wheel)
    assert where(environment, tmp_path).is_relative_to(tmp_path / "venv")
    assert composed(shell(f"'{environment}/arctic-hydra' --cfg job", tmp_path))
    assert composed(shell(f"'{environment}/python' -m arctic_hydra --cfg job", tmp_path))


def test_an_extension_is_a_wheel_beside_this_one(wheel: Path, tmp_path: Path) -> None:
    """One run with an option of each of its groups, which its own `conf` package holds."""
    source = shutil.copytree(ROOT / "tests" / "examples" / "my_lab", tmp_path / "source")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source)
    [extension] = tmp_path.glob("my_lab-*.whl")
    groups = {path.parts[2] for path in map(Path, zipfile.ZipFile(extension).namelist()) if path.suffix == ".yaml"}
    options = {
        "callback": "callback=[recorder]",
        "converter": "converter=[clamp]",
        "model": "model=shallow",
        "optimizer": "optimizer=soap",
        "source": "data=mix +source@data.sources.sums=sums +source@data.eval_sources.sums=sums",
        "trainer": "trainer=plain",
    }
    assert set(options) == groups
    environment = new_environment(tmp_path / "venv")
    install(environment, wheel, extension)
    assert where(environment, tmp_path).is_relative_to(tmp_path / "venv")
    small = f"{SMALLEST} trainer.train_iters=1 tracking=[] checkpoint=[] ranks=1"
    shell(f"'{environment}/arctic-hydra' {' '.join(options.values())} {small}", tmp_path)
    [examples] = tmp_path.glob("outputs/default/*/examples.jsonl.rank0")
    assert len(examples.read_text().splitlines()) == 1


def test_an_editable_install_runs_from_anywhere(checkout: Path, tmp_path: Path) -> None:
    environment = new_environment(tmp_path / "venv")
    install(environment, "--no-build-isolation", "-e", checkout)
    assert where(environment, tmp_path).is_relative_to(checkout)
    assert composed(shell(f"'{environment}/arctic-hydra' --cfg job", tmp_path))


def test_a_checkout_runs_without_an_install(checkout: Path, tmp_path: Path) -> None:
    output = shell(f"'{sys.executable}' -m arctic_hydra --cfg job", tmp_path, PYTHONPATH=str(checkout))
    assert composed(output)
    assert composed(shell(f"'{sys.executable}' -m arctic_hydra --cfg job", checkout))
