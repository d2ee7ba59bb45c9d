"""Prefetching in a background thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


def prefetch(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """Yield the items in order, up to `depth` of them produced ahead by a thread; 0 produces each item on demand."""
    if not depth:
        yield from items
        return
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="arctic_hydra-loader")
    try:
        while True:
            while len(waiting) <= depth:
                waiting.append(pool.submit(next, items, _END))
            item = waiting.popleft().result()
            if item is _END:
                return
            yield item
    finally:  # also if the trainer stops early
        pool.shutdown(wait=True, cancel_futures=True)
        items.close()
