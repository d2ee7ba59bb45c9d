"""Read ahead in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


def prefetch(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """Yield the items in order, up to `depth` of them made prefetch by a thread of this process; 0 makes each when asked."""
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
    finally:  # also when the trainer stops in the middle
        pool.shutdown(wait=True, cancel_futures=True)
        items.close()
