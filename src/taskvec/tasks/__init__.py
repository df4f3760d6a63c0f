"""Tasks: data with splits, a frozen head, a metric; and suites of them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskvec.tasks.loaders import Batch, Batches, batches, features, head_for
    from taskvec.tasks.suite import Suite, load_suite, suite_names
    from taskvec.tasks.task import Split, Task

_HOME = {
    "Batch": "loaders",
    "Batches": "loaders",
    "batches": "loaders",
    "features": "loaders",
    "head_for": "loaders",
    "Suite": "suite",
    "load_suite": "suite",
    "suite_names": "suite",
    "Split": "task",
    "Task": "task",
}

__all__ = [
    "Batch",
    "Batches",
    "Split",
    "Suite",
    "Task",
    "batches",
    "features",
    "head_for",
    "load_suite",
    "suite_names",
]


def __getattr__(name: str) -> Any:
    # Listing suites must not cost an import of torch.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
