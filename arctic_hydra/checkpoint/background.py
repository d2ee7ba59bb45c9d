"""Saving beside training: contents are copied to host memory at once, and written by a thread.

The thread writes, hashes and fsyncs this rank's files and nothing else. Every collective of a save, the commit above
all, stays on the main thread: training's own collectives (and NCCL) then never meet one of another thread, all ranks
commit at the same step boundary, and a failed save stops all of them at the same step.
"""

from __future__ import annotations

import copy
import threading
from typing import Any

import torch

from arctic_hydra.checkpoint.store import Stage
from arctic_hydra.checkpoint.writer import write_tensors


class HostBuffers:
    """Host memory for copies of tensors, kept from one save to the next: pinned where there is CUDA.

    Pinning, and touching fresh pages, would take longer than the copy itself.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[torch.UntypedStorage]] = {}
        self._used: list[torch.UntypedStorage] = []

    def copy(self, contents: Any) -> Any:
        """Return a deep copy of nested containers with every tensor in host memory.

        Copies share storage where the tensors do, so both are the same file to torch.save. Copies from a device are
        complete only once it is synchronised.
        """
        return self._copy(contents, {}, {})

    def release(self) -> None:
        """Take back all memory; copies made so far are invalid from here on."""
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
            place = (item.storage_offset(), item.size(), item.stride())
            return torch.empty(0, dtype=item.dtype).set_(host, *place)  # type: ignore[call-overload]
        if id(item) in seen:
            return seen[id(item)]
        made: Any
        if isinstance(item, dict | list):
            made = seen[id(item)] = copy.copy(item)  # keeps the class, and what else it holds
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
    """One save of this rank: `hold` what to write, `start` the thread, `wait` for it; errors are kept in the stage."""

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
        """Start writing, once the copies are complete: training may change what they were made from."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the thread is done, successfully or not."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Return once the thread is done, and give the memory back."""
        self._thread.join()
        self._contents = []
        self._buffers.release()

    def _work(self) -> None:
        for name, contents in self._contents:
            write_tensors(self.stage, name, contents)
