"""The README's commands, in order, as printed: through a shell where they use one."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from tests.command import ROOT, environment, run
from tests.composing import built

README = (ROOT / "README.md").read_text()
TOUR = [
    line for block in re.findall(r"<!-- tour -->\n```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()
]


def test_the_tour_has_commands():
    assert len(TOUR) > 8


@pytest.mark.timeout(1500)
def test_tour(tmp_path):
    program = "python -m arctic_hydra "
    for line in TOUR:
        if line.startswith(program):
            done = run(line.removeprefix(program), tmp_path)
        else:
            command = line.replace("python -m", f"{shlex.quote(sys.executable)} -m")
            streams = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
            done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment(), **streams)
            assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert "Traceback" not in done.stdout + done.stderr, line
        if "|| echo" in line:
            assert "exit code 75" in done.stdout


COMMANDS = sorted(
    {line.partition("  #")[0].strip() for line in README.splitlines() if line.startswith("python -m arctic_hydra")}
    - set(TOUR)
)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_other_command_composes(line, tmp_path, monkeypatch):
    """What needs a GPU or the hub is composed and checked, up to the machine."""
    monkeypatch.chdir(tmp_path)
    words = [word for word in shlex.split(line)[3:] if word != "-m"]
    overrides = [word if "[" in word else word.partition(",")[0] for word in words]
    built(*overrides)


def test_the_table_of_groups_is_complete():
    from arctic_hydra.cli.help.inventory import groups

    for group, options in groups().items():
        if "/" in group:
            assert f"`{group}`" in README
            continue
        [row] = [
            line for line in README.splitlines() if re.match(rf"\| .*`{group}`.* \|", line) and line.startswith("| `")
        ][:1]
        assert all(f"`{name}`" in row or f"[{name}]" in row or name in row for name in options), (group, row)
