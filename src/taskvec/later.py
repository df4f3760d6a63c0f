"""torch, imported when it is first used: what works on files alone begins without it."""

import os
import sys
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
else:

    class _Later:
        def __getattr__(self, name: str) -> Any:
            return getattr(import_module("torch"), name)

    torch = _Later()


def is_loaded() -> bool:
    """Whether anything has imported torch."""
    return "torch" in sys.modules


def version() -> str:
    """The version of torch."""
    return torch.__version__ if is_loaded() else metadata.version("torch")


def count_threads() -> int:
    """How many threads torch computes with, or would: ``OMP_NUM_THREADS``, or one a core."""
    if is_loaded():
        return torch.get_num_threads()
    stated = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if stated.isdecimal() and int(stated):
        return int(stated)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
