"""arctic_hydra: a Hydra-composed experiment runner for post-training language models on DeepSpeed.

The names in `__all__` are the Python API, see docs/python.md.
"""

import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arctic_hydra.api.composed_run import compose as compose
    from arctic_hydra.api.loaded_run import load_run as load_run
    from arctic_hydra.api.start_run import run as run
    from arctic_hydra.api.sweep_result import sweep as sweep
    from arctic_hydra.errors import ConfigError as ConfigError
    from arctic_hydra.errors import RunFailed as RunFailed

__all__ = ["ConfigError", "RunFailed", "compose", "load_run", "run", "sweep"]
__version__ = "0.1.0"

_MODULES = {
    "ConfigError": "arctic_hydra.errors",
    "RunFailed": "arctic_hydra.errors",
    "compose": "arctic_hydra.api.composed_run",
    "load_run": "arctic_hydra.api.loaded_run",
    "run": "arctic_hydra.api.start_run",
}
"""Where the names of `__all__` are. They are imported when they are used, since every command imports this package."""


def __getattr__(name: str) -> Any:
    if name == "sweep":
        return importlib.import_module("arctic_hydra.sweep")  # the package, which is a function as well
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_PARENT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def python_flags(folder: str | os.PathLike[str] | None = None) -> list[str]:
    """Return the flags with which child processes start Python in a folder (default: the working directory).

    It is `-P`, so that they import nothing from the folder: a `torch.py`, a folder `hydra_plugins` or the metadata of an
    extension may lie there, beside downloaded data. Only a checkout in which the user works is imported from its directory.
    """
    try:
        return [] if os.fspath(folder or os.getcwd()) == _PARENT else ["-P"]
    except FileNotFoundError:
        return ["-P"]


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Suspend the garbage collector while much is made that stays, such as modules or rows, which it would scan again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _is_program() -> bool:
    """Whether `python -m` is about to run a module of this package, not one of another package that imports this one."""
    if sys.argv[:1] != ["-m"]:
        return False
    first = sys.orig_argv[-len(sys.argv)].partition(".")[
        0
    ]  # the word before the arguments: the module, or `-m<module>`
    return first == __name__ or (first.startswith("-") and first.endswith(f"m{__name__}"))


if _is_program() and not sys.flags.safe_path and python_flags():
    del sys.path[0]  # `python -m` puts the working directory first
    os.environ["PYTHONSAFEPATH"] = "1"  # for processes that multiprocessing starts
