"""Replacement for DeepSpeed's checkpoint engine, which saves through our store and loads without running code.

DeepSpeed's own engine writes files without fsync and hashes, loads with `weights_only=False`, and copies executable
recovery scripts into the checkpoint.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch

from arctic_hydra.checkpoint.store import CheckpointStore, Stage

# Besides the classes that torch allows, DeepSpeed's ZeRO and loss-scaler states contain only these.
_DEEPSPEED_CLASSES = {
    "deepspeed.runtime.fp16.loss_scaler": ("LossScaler", "DynamicLossScaler"),
    "deepspeed.utils.tensor_fragment": ("fragment_address",),
    "deepspeed.runtime.zero.config": ("ZeroStageEnum",),
}


def load_tensors(path: str | Path, map_location: Any = "cpu", *, mmap: bool = False) -> Any:
    """Return the contents of a checkpoint file. Raises pickle.UnpicklingError for code in it, which never runs."""
    with torch.serialization.safe_globals(_allowed_classes()):
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)


def check_readable(folder: Path, names: Iterable[str]) -> None:
    """Parse files of a checkpoint. Raises RuntimeError for the first that `load_tensors` cannot load."""
    for name in names:
        try:
            load_tensors(folder / name, mmap=True)
        except Exception as error:
            raise RuntimeError(f"{name} cannot be loaded without running code from it ({error})") from error


def _allowed_classes() -> list[Any]:
    # Only the engine module may import DeepSpeed. If there is an engine, these modules are already loaded.
    modules = {name: sys.modules.get(name) for name in _DEEPSPEED_CLASSES}
    return [getattr(module, cls) for name, module in modules.items() if module for cls in _DEEPSPEED_CLASSES[name]]


def write_tensors(stage: Stage, name: str, contents: Any) -> None:
    """Write one file of this rank in the format of `load_tensors`; errors are kept in the stage."""
    stage.write(name, lambda file: torch.save(contents, cast("IO[bytes]", file)))


class SafeCheckpointEngine:
    """Implements DeepSpeed's checkpoint engine: saves into a stage, loads with `weights_only=True`.

    `put(name, contents)` receives each file. Failures are kept in the stage, so that this rank still reaches the
    collectives that its peers wait in; `commit`, which DeepSpeed calls on every rank after the last file, raises them
    on all ranks.
    """

    name = "arctic_hydra"

    def __init__(
        self,
        store: CheckpointStore | None = None,
        stage: Stage | None = None,
        put: Callable[[str, Any], None] | None = None,
        leave_out: frozenset[str] = frozenset(),
    ) -> None:
        self._store = store
        self._stage = stage
        self._put = put
        self._leave_out = leave_out
        self.agreed = False
        """Whether the ranks have compared their errors, successfully or not."""

    def create(self, info: Any) -> None:
        """Do nothing: the stage exists already."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Create a directory below the stage."""
        assert self._stage is not None, "this engine was opened for reading"
        with self._stage.keep_error():
            os.makedirs(path, mode=0o700, exist_ok=exist_ok)

    def save(self, state_dict: Any, path: str) -> None:
        """Pass one file of this rank to `put`, without the weights in `leave_out`."""
        assert self._stage is not None and self._put is not None, "this engine was opened for reading"
        if self._leave_out and isinstance(state_dict.get("module"), dict):
            kept = {name: value for name, value in state_dict["module"].items() if not self._is_left_out(name)}
            state_dict = {**state_dict, "module": kept}
        self._put(os.path.relpath(path, self._stage.path), state_dict)

    def _is_left_out(self, name: str) -> bool:
        """Whether `name`, or the quantized weight that it belongs to (`<weight>.absmax`), is in `leave_out`."""
        parts = name.split(".")
        return any(".".join(parts[:end]) in self._leave_out for end in range(1, len(parts) + 1))

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file."""
        return load_tensors(path, map_location)

    def commit(self, info: Any) -> bool:
        """Gather the errors of all ranks. Raises the same CheckpointError on every rank if one failed."""
        assert self._stage is not None and self._store is not None, "this engine was opened for reading"
        self.agreed = True
        self._store.agree(self._stage)
        return True

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        """Whether this data-parallel rank writes the files that all ranks share."""
        return dp_rank == 0

    def is_decoupled(self) -> bool:
        """Whether another process writes the files: no."""
        return False

    def preserves_storage_sharing(self) -> bool:
        """Whether a view is saved with its whole storage, as torch.save does."""
        return True

    def set_commit_info(self, info: Any) -> None:
        """Do nothing: only decoupled engines use it."""

    def get_commit_info(self) -> None:
        """Do nothing: only decoupled engines use it."""

    def cleanup(self) -> None:
        """Do nothing: there are no resources to release."""


@contextmanager
def replace_checkpoint_engine(engine: Any, safe: SafeCheckpointEngine) -> Iterator[None]:
    """Within this context, the DeepSpeed engine saves and loads through `safe` and copies no recovery scripts."""
    original = engine.checkpoint_engine
    engine.checkpoint_engine = safe
    engine._copy_recovery_script = lambda save_path: None
    try:
        yield
    finally:
        engine.checkpoint_engine = original
        del engine._copy_recovery_script


def save_files(engine: Any, safe: SafeCheckpointEngine, stage: Stage, *, omit_frozen: bool) -> None:
    """Save DeepSpeed's files through `safe`; collective. Raises the same CheckpointError on every rank if one failed."""
    try:
        with replace_checkpoint_engine(engine, safe):
            # save_latest=False: DeepSpeed writes `latest` before the other ranks' files exist.
            engine.save_checkpoint(
                str(stage.path.parent), tag=stage.path.name, save_latest=False, exclude_frozen_parameters=omit_frozen
            )
    except Exception as error:
        if safe.agreed:
            raise
        # This rank failed before `commit`, where its peers now wait: join them.
        stage.error = stage.error or f"{type(error).__name__}: {error}"
        safe.commit(None)
