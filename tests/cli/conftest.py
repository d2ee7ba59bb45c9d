"""Every test runs in an empty folder."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
