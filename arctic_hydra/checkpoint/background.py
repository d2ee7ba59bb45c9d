"""Background saves: contents are copied to host memory, then a thread writes them.

The thread only writes, hashes and fsyncs the files of this rank. All collectives of a save stay on the main thread:
they cannot interleave with those of training (or NCCL), all ranks commit after the same step, and a failed save stops
all ranks at the same step.
"""

from __future__ import annotations

import copy
import threading
from typing import Any

import torch

from arctic_hydra.checkpoint.store import Stage
from arctic_hydra.checkpoint.writer import write_tensors


class HostBuffers:
    """Host memory for copies of tensors, reused by later saves; pinned with CUDA.

    Pinning and first-touching memory would take longer than the copy itself.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[torch.UntypedStorage]] = {}
        self._used: list[torch.UntypedStorage] = []

    def copy(self, contents: Any) -> Any:
        """Return a deep copy of nested containers with every tensor in host memory.

        Copies share storage if the tensors do, so torch.save writes the same file. Copies from a device are complete
        only after it is synchronized.
        """
        return self._copy(contents, {}, {})

    def release(self) -> None:
        """Reclaim the memory of the last save for the next one, which invalidates its copies; free what it had no use for."""
        self._free = {}
        for storage in self._used:
            self._free.setdefault(storage.nbytes(), []).append(storage)
        self._used = []

    def _copy(self, item: Any, seen: dict[int, Any], storages: dict[int, torch.UntypedStorage]) -> Any:
        if isinstance(item, torch.Tensor):
            source = item.detach().untyped_storage()
            host = storages.get(source._cdata)
            if host is None:
                host = storages[source._cdata] = self._storage(source.nbytes())
                host.copy_(source, non_blocking=True)
            layout = (item.storage_offset(), item.size(), item.stride())
            return torch.empty(0, dtype=item.dtype).set_(host, *layout)  # type: ignore[call-overload]
        if id(item) in seen:
            return seen[id(item)]
        made: Any
        if isinstance(item, dict | list):
            made = seen[id(item)] = copy.copy(item)  # keeps the class and its attributes
            for key, value in item.items() if isinstance(item, dict) else enumerate(item):
                made[key] = self._copy(value, seen, storages)
        elif type(item) is tuple:
            made = seen[id(item)] = tuple(self._copy(value, seen, storages) for value in item)
        else:
            made = copy.deepcopy(item, seen)
        return made

    def _storage(self, size: int) -> torch.UntypedStorage:
        free = self._free.get(size)
        if free:
            storage = free.pop()
        else:
            storage = torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available()).untyped_storage()
        self._used.append(storage)
        return storage


class BackgroundSave:
    """One background save of this rank: `hold` copies contents, `start` writes them in a thread; errors are kept in the stage."""

    def __init__(self, stage: Stage, buffers: HostBuffers, facts: dict[str, Any]) -> None:
        self.stage = stage
        self.facts = facts
        self._buffers = buffers
        self._contents: list[tuple[str, Any]] = []
        self._thread = threading.Thread(target=self._work, name="arctic_hydra.checkpoint", daemon=True)

    def hold(self, name: str, contents: Any) -> None:
        """Copy the contents of the file `name`."""
        with self.stage.keep_error():
            self._contents.append((name, self._buffers.copy(contents)))

    def start(self) -> None:
        """Start writing once the copies are complete; training may change the originals after this call."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the thread has finished, successfully or not."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Wait for the thread and release its memory."""
        self._thread.join()
        self._contents = []
        self._buffers.release()

    def _work(self) -> None:
        for name, contents in self._contents:
            write_tensors(self.stage, name, contents)
