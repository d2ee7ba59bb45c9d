"""Processes that die with the one that started them."""

from __future__ import annotations

import subprocess
import sys

from tests.command import environment


def test_a_rank_whose_parent_is_gone_already_does_not_start(tmp_path):
    """The kernel tells of a parent's death only those who asked before it."""
    variables = environment(ARCTIC_HYDRA_PARENT="1")
    command = [sys.executable, "-m", "arctic_hydra.worker", str(tmp_path / "run.json")]
    assert subprocess.run(command, env=variables, timeout=60).returncode == 1
    assert not list(tmp_path.iterdir()), "it began its work, and left the error of a missing file"
