"""DeepSpeed's optimizer classes, provided by the engine, the only module that may import DeepSpeed."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_find: Callable[[str], Any] | None = None


def provide(find: Callable[[str], Any]) -> None:
    """Register the function that returns a DeepSpeed optimizer class by name."""
    global _find
    _find = find


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """Return DeepSpeed's optimizer class `name`, such as FusedAdam."""
    assert _find is not None, "the engine provides DeepSpeed's optimizers when it is imported"
    return _find(name)  # type: ignore[no-any-return]


def compiler_problems(operation: str, needs_cuda: bool) -> Iterator[str]:
    """Yield why DeepSpeed could not compile `operation` (`fused_adam`, `cpu_adam`) on this machine; nothing if it is prebuilt."""
    spec = importlib.util.find_spec("deepspeed")  # finds, does not import
    folder = Path(str(spec.origin)).parent if spec else Path()
    if any(folder.glob(f"ops/adam/{operation}_op*.so")):
        return
    missing = [] if os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") else ["a C++ compiler (g++)"]
    if not (shutil.which("ninja") or importlib.util.find_spec("ninja")):
        missing.append("ninja")
    if needs_cuda and not (os.environ.get("CUDA_HOME") or shutil.which("nvcc")):
        missing.append("nvcc (set CUDA_HOME)")
    if missing:
        yield (
            f"_target_: DeepSpeed compiles {operation} on first use, and this machine lacks {', '.join(missing)}; install "
            f"it, or pass optimizer=adamw"
        )
