"""How long work tells a watcher where it stands; the library itself prints nothing."""

from time import perf_counter
from typing import Protocol

DETAILS = frozenset(
    {
        *("lr", "gradient_norm", "seconds", "norm", "examples_per_second", "tokens_per_second"),
        *("lr_found", "lr_search_steps"),
    }
)
"""Facts of a training that are for a log, and too many for a line."""

_DETAILED = ("cosine", "weight/", "loss/")
"""What further such facts begin with: those of pairs of tasks, and of each."""

PATIENCE = 5.0
"""Seconds of silence that nobody minds."""


class Watch(Protocol):
    """Called as work advances. ``facts`` are figures worth showing, such as the loss."""

    def __call__(self, label: str, done: int, total: int, **facts: float) -> None:
        """``done`` of ``total`` units of ``label`` are finished; ``done == total`` comes exactly once."""


def is_detail(fact: str) -> bool:
    """Whether a fact of a training is for a log, and one of too many for a line."""
    return fact in DETAILS or fact.startswith(_DETAILED)


def patient(watch: Watch) -> Watch:
    """A watcher that is told nothing of work which is done within some seconds from now."""
    begun = perf_counter()

    def told(label: str, done: int, total: int, **facts: float) -> None:
        if perf_counter() - begun >= PATIENCE:
            watch(label, done, total, **facts)

    return told


def unwatched(label: str, done: int, total: int, **facts: float) -> None:
    """Nobody is looking."""
