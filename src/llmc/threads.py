"""Threads that never change a result.

Work is cut into parts that do not depend on the number of workers, every part runs with torch single-threaded (also
with one worker, since a BLAS call on several threads may sum in another order), and results come back in order.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

from llmc.late import torch

T = TypeVar("T")
R = TypeVar("R")

_here = threading.local()


def ordered_map(work: Callable[[T], R], parts: Iterable[T], workers: int) -> Iterator[R]:
    """`work(part)` for every part, in the order of the parts, on `workers` threads.

    At most `workers + 1` results are held at a time. Called from within such a thread it runs there, one by one.
    """
    if getattr(_here, "single", False):
        yield from map(work, parts)
        return
    pool = _pool(max(workers, 1))
    pending: deque[Future[R]] = deque()
    try:
        for part in parts:
            pending.append(pool.submit(work, part))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def run_single(work: Callable[[], R]) -> R:
    """`work()` with torch single-threaded, whatever the caller's setting."""
    return next(ordered_map(lambda _: work(), (None,), 1))


def row_tiles(rows: int, size: int) -> list[tuple[int, int]]:
    """Cut `rows` into the fewest nearly equal parts of at most `size` rows."""
    count = max(1, -(-rows // max(size, 1)))
    edges = [rows * i // count for i in range(count + 1)]
    return list(pairwise(edges))


@lru_cache(maxsize=4)
def _pool(workers: int) -> ThreadPoolExecutor:
    # Kept: BLAS gives every new thread buffers of its own and does not take them back.
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="llmc", initializer=_single)
    ready = threading.Barrier(workers)
    for _ in pool.map(lambda _: ready.wait(), range(workers)):
        pass
    torch.set_num_threads(threads)  # torch hands the last setting to threads born later
    return pool


def _single() -> None:
    torch.get_num_threads()  # takes over the global setting, once per thread: not after the next line
    torch.set_num_threads(1)
    _here.single = True


def memory() -> int:
    """Bytes of RAM that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def overlapped(work: Callable[[T], R], items: Iterable[T], workers: int = 1) -> Iterator[tuple[T, R]]:
    """Each item with what `work` makes of it, in other threads while the next item comes and the last one goes."""
    coming: deque[tuple[T, Future[R]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            coming.append((item, pool.submit(work, item)))
            if len(coming) > workers:
                yield coming[0][0], coming.popleft()[1].result()
        while coming:
            yield coming[0][0], coming.popleft()[1].result()
    finally:
        pool.shutdown(cancel_futures=True)
