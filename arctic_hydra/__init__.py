"""arctic_hydra: a Hydra-composed experiment runner for post-training language models on DeepSpeed."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__version__ = "0.1.0"

_PARENT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def python_flags() -> list[str]:
    """Return the flags with which child processes start Python: `-P`, so that they import nothing from the working directory.

    A `torch.py`, a folder `hydra_plugins` or the metadata of an extension may lie there, beside downloaded data. Only a
    checkout in which the user works is imported from its directory.
    """
    try:
        return [] if os.getcwd() == _PARENT else ["-P"]
    except FileNotFoundError:
        return ["-P"]


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Suspend Python's garbage collector while libraries are imported: what they make stays, but it would be looked at again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and python_flags():
    del sys.path[0]  # `python -m` puts the working directory first
    os.environ["PYTHONSAFEPATH"] = "1"  # for processes that multiprocessing starts
