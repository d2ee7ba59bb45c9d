"""A stand-in for ssh."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def shell(tmp_path: Path) -> Path:
    """A remote shell whose hosts are all this machine: it drops the host and runs the command."""
    path = tmp_path / "remote"
    path.write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')
    path.chmod(0o755)
    return path
