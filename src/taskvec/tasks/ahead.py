"""Batches made ready while the device computes on those before them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from taskvec.tasks.objective import Batch

K = TypeVar("K")
T = TypeVar("T")

_DEPTH = 3
"""Items that may wait for the device."""


def ahead(make: Callable[[K], T], keys: Iterable[K], device: torch.device) -> Iterator[T]:
    """``map(make, keys)``; a thread runs ahead of a device that is not the CPU.

    Order and results are those of ``map``. On a CPU the thread would take from the computation what it gives.
    """
    if device.type == "cpu":
        yield from map(make, keys)
        return
    with ThreadPoolExecutor(1) as worker:
        waiting: deque[Future[T]] = deque()
        for key in keys:
            waiting.append(worker.submit(make, key))
            if len(waiting) > _DEPTH:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def for_device(batch: Batch, device: torch.device) -> Batch:
    """A batch in the kind of memory that a device reads fastest."""
    return batch.pinned() if device.type == "cuda" else batch
