"""arctic_hydra: a Hydra-composed experiment runner for post-training language models on DeepSpeed."""

import os
import sys

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


if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and python_flags():
    del sys.path[0]  # `python -m` puts the working directory first
    os.environ["PYTHONSAFEPATH"] = "1"  # for processes that multiprocessing starts
