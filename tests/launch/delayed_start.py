"""Interpreters that wait for a signal while they start."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

SITE = """\
import os, pathlib, signal, sys, time
if {module!r} in sys.orig_argv[3:5]:
    pathlib.Path({folder!r}, f"started-{{os.getpid()}}").touch()
    end = time.monotonic() + 60
    while not signal.sigpending() and time.monotonic() < end:
        time.sleep(0.01)
    {then}
"""
"""A sitecustomize: the interpreter of a module waits for a signal before it is through with `site`."""


def delay(folder: Path, module: str, then: str = "pass") -> str:
    """Have the interpreters of `python -u -m module` wait for a signal; return the folder to put on PYTHONPATH."""
    (folder / "sitecustomize.py").write_text(SITE.format(module=module, folder=str(folder), then=then))
    return str(folder)


def wait_for_starts(folder: Path, count: int, process: subprocess.Popen) -> None:
    """Wait until `count` interpreters wait for a signal."""
    end = time.monotonic() + 60
    while len(list(folder.glob("started-*"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{count} interpreters did not start"
        time.sleep(0.01)
