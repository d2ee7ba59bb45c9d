"""Runs a function on several ranks: real process groups over gloo, forked so that torch is imported once."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from typing import Any

from tests.warm import prepare


def free_port() -> int:
    """Return a port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 300.0) -> list[Any]:
    """Call `function(*arguments)` on `size` ranks of a fresh process group; return their results in rank order.

    Each rank is a process of its own, also for size 1: engines and process groups leave state behind.
    """
    prepare()  # else every rank would do the same
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    port = free_port()
    processes = [
        context.Process(target=_rank, args=(queue, rank, size, port, function, arguments)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    results: dict[int, Any] = {}
    for _ in processes:
        rank, failed, value = queue.get()
        if failed:
            for process in processes:
                process.kill()
            raise AssertionError(f"rank {rank} failed:\n{value}")
        results[rank] = pickle.loads(value)
    for process in processes:
        process.join(timeout)
    return [results[rank] for rank in range(size)]


def _rank(
    queue: Any, rank: int, size: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
    }
    try:
        import torch

        gc.freeze()  # DeepSpeed collects garbage often, and what the parent imported is none
        torch.set_num_threads(1)  # OpenMP's pool of the parent does not survive the fork
        from arctic_hydra import distributed

        distributed.start(distributed.World.from_env(), 60)
        value = function(*arguments)
    except BaseException:
        queue.put((rank, True, traceback.format_exc()))
        os._exit(1)
    # Plain pickle copies tensors; multiprocessing's own would share memory with a process that is about to go.
    queue.put((rank, False, pickle.dumps(value)))
    os._exit(0)
