"""The start of every process of a run: its environment variables, and the signal that kills it when its parent dies."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

SECRETS_VARIABLE = "ARCTIC_HYDRA_SECRETS"
PARENT_VARIABLE = "ARCTIC_HYDRA_PARENT"
"""Environment variable with the id of the parent process."""


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask the kernel to send this process a signal when its parent dies, so that no rank outlives its run.

    The kernel reports only later deaths; if the parent has already died, this process exits.
    """
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is not None and int(parent) != os.getppid():
        os._exit(1)
