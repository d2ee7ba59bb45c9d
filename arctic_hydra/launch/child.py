"""The start of every process of a run: its environment variables, and the signal that kills it when its parent dies."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import MutableMapping

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


def limit_threads(environment: MutableMapping[str, str], ranks: int, cores: int | None = None) -> None:
    """Set the variables that share `cores` (by default those that this process may use) among `ranks`, where unset."""
    # Spinning at OpenMP barriers makes a step on the CPU up to 15 times slower when other processes use the cores.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cores = cores or len(os.sched_getaffinity(0))
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // ranks)))
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's, which would start a thread per core and use none
