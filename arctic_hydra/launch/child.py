"""What a process that belongs to a run does when it starts: the variables it reads, and dying with its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

SECRETS_VARIABLE = "ARCTIC_HYDRA_SECRETS"
PARENT_VARIABLE = "ARCTIC_HYDRA_PARENT"
"""Environment variable with the id of the process that starts this one."""


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that started it dies, so that no rank outlives its run.

    The kernel speaks of later deaths only: a parent that was gone before ends this process here.
    """
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is not None and int(parent) != os.getppid():
        os._exit(1)
