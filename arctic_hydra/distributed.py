"""Process groups: the rank of this process, and the collectives that the rest of the package uses."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class World:
    """Rank and world size of this process, as set by torch's launchers in the environment."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_env(cls) -> World:
        """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; a single rank if they are unset.

        Raises ConfigError for one that is not a number.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        values = {name: os.environ.get(name, default) for name, default in zip(names, "0101", strict=True)}
        if wrong := [name for name, value in values.items() if not re.fullmatch("[0-9]{1,9}", value)]:
            raise ConfigError(
                [
                    f"{name}: got {values[name]!r} in the environment, expected a whole number; unset it"
                    for name in wrong
                ]
            )
        return cls(*map(int, values.values()))

    @property
    def is_main(self) -> bool:
        """Whether this is global rank 0, the one that writes shared files."""
        return self.rank == 0

    def data_parallel(self, sequence_parallel_size: int) -> World:
        """Return the data-parallel world: ranks that share their sequences count as one."""
        groups = self.size // sequence_parallel_size
        return World(self.rank // sequence_parallel_size, groups, self.local_rank, self.local_size)

    @property
    def device(self) -> torch.device:
        """The CUDA device of this local rank, or the CPU without CUDA."""
        import torch

        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")


_CPU_GROUP: Any = None


@dataclass(frozen=True)
class SequenceGroup:
    """Ranks that share each sequence (sequence parallelism): `rank` of `size` holds its part of the tokens."""

    rank: int
    size: int
    group: Any
    """torch's process group."""


_SEQUENCE: SequenceGroup | None = None


def start(world: World, timeout_seconds: float) -> None:
    """Start the process group (nccl with CUDA, else gloo) and a gloo group for small collectives on the CPU.

    `timeout_seconds` limits each collective, so a rank whose peer has died fails instead of hanging. A second call has
    no effect.
    """
    global _CPU_GROUP
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    timeout = timedelta(seconds=timeout_seconds)
    # Default of the groups that libraries (DeepSpeed) create later; otherwise half an hour.
    c10d: Any = dist.distributed_c10d
    c10d.default_pg_timeout = c10d.default_pg_nccl_timeout = timeout
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(world.local_rank)
    backend = "nccl" if cuda else "gloo"
    if world.size == 1:
        # An in-process store needs no port, so concurrent single-rank runs cannot collide.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            os.environ.setdefault(name, value)
    else:
        dist.init_process_group(backend, timeout=timeout)
    _CPU_GROUP = dist.new_group(backend="gloo", timeout=timeout) if cuda else dist.group.WORLD


def start_sequence_groups(world: World, size: int, timeout_seconds: float) -> None:
    """Create the groups of `size` consecutive ranks that share each sequence; collective. A `size` of 1 creates none."""
    global _SEQUENCE
    import torch.distributed as dist

    _SEQUENCE = None
    if size == 1:
        return
    for first in range(0, world.size, size):
        group = dist.new_group(list(range(first, first + size)), timeout=timedelta(seconds=timeout_seconds))
        if first <= world.rank < first + size:
            _SEQUENCE = SequenceGroup(world.rank - first, size, group)


def sequence_group() -> SequenceGroup | None:
    """Return the group of ranks that share this rank's sequences, or None without sequence parallelism."""
    return _SEQUENCE


def stop() -> None:
    """Destroy the process group, if there is one."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(values: list[int]) -> list[int]:
    """Return the element-wise sum of integers over all ranks, with one small collective on the CPU."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(tensor, group=_CPU_GROUP)
    return tensor.tolist()  # type: ignore[no-any-return]


def sum_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor` summed over all ranks, in place."""
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def max_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the element-wise maximum of `tensor` over all ranks, in place."""
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def broadcast_object(value: Any) -> Any:
    """Return rank 0's `value` on every rank."""
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_CPU_GROUP)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Return every rank's `value`, in rank order, on every rank."""
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_CPU_GROUP)
    return values


def barrier() -> None:
    """Wait until every rank has called this function."""
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier(group=_CPU_GROUP)


def failed_alike(where: str, seconds: float) -> bool:
    """Return whether all ranks call this within `seconds`, with the same `where` and after the same number of collectives.

    If so, further collectives work although an error interrupted this rank, because no rank waits in an earlier one. All
    ranks get the same answer. It communicates through torch's store only, once per process.
    """
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return True
    c10d: Any = dist.distributed_c10d
    counts = [group._get_sequence_number_for_group() for group in c10d._world.pg_map]  # no public function tells them
    store, ranks = c10d._get_default_store(), range(dist.get_world_size())
    keys = [f"arctic_hydra/failed/{rank}" for rank in ranks]
    end = time.monotonic() + seconds
    try:
        store.set(keys[dist.get_rank()], f"{where} {counts}")
        while not (present := store.check(keys)) and time.monotonic() < end:
            time.sleep(0.05)
        alike = present and len({store.get(key) for key in keys}) == 1
        # The first decision holds, so that a rank that fails after another has given up does not wait for it.
        return bool(store.compare_set("arctic_hydra/failed", "", "alike" if alike else "apart") == b"alike")
    except dist.DistError:  # the process with the store has ended
        return False


@contextmanager
def without_sequence_group() -> Iterator[None]:
    """Disable the communication of sequence parallelism within this context: the rank holds whole sequences."""
    global _SEQUENCE
    kept, _SEQUENCE = _SEQUENCE, None
    try:
        yield
    finally:
        _SEQUENCE = kept


_GPUS_ELSEWHERE: int | None = None


def override_gpu_count(gpus: int | None) -> None:
    """Have `count_gpus` answer for the machines that a cluster's jobs get, in a process that only composes them.

    None means this machine again.
    """
    global _GPUS_ELSEWHERE
    _GPUS_ELSEWHERE = gpus


def count_gpus() -> int:
    """Return the number of NVIDIA GPUs that this process may use, without importing torch.

    Counts the devices that the driver lists, even if torch cannot use them, as far as CUDA_VISIBLE_DEVICES allows.
    """
    if _GPUS_ELSEWHERE is not None:
        return _GPUS_ELSEWHERE
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    if visible is None:
        return present
    return min(present, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))


def choose_accelerator() -> None:
    """Make DeepSpeed use the CPU if there are no GPUs; call it before DeepSpeed is imported.

    A value of the user is replaced: only CUDA and CPU are supported, so that any other accelerator would fail.
    """
    if count_gpus() == 0:
        os.environ["DS_ACCELERATOR"] = "cpu"


def whole_shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of a parameter; under ZeRO-3 `shape` is that of this rank's shard."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def count_numbers(parameter: Any) -> int:
    """Return how many numbers a parameter holds on all ranks; bytes of 4-bit weights hold two each."""
    packed = getattr(parameter, "quant_state", None)
    return math.prod(packed.shape if packed else whole_shape(parameter))


def gathered(value: torch.Tensor, *, writes: bool = False) -> AbstractContextManager[Any]:
    """Return a context that gathers a partitioned parameter (ZeRO-3); with `writes`, rank 0's changes are kept on all ranks."""
    if not hasattr(value, "ds_id"):
        return nullcontext()
    # Only the engine module may import DeepSpeed; it is loaded if there is a partitioned parameter.
    zero = sys.modules["deepspeed"].zero
    context: AbstractContextManager[Any] = zero.GatheredParameters([value], modifier_rank=0 if writes else None)
    return context
