"""How long work tells a watcher where it stands; the library itself prints nothing."""

from typing import Protocol


class Watch(Protocol):
    """Called as work advances. ``facts`` are figures worth showing, such as the loss."""

    def __call__(self, label: str, done: int, total: int, **facts: float) -> None:
        """``done`` of ``total`` units of ``label`` are finished; ``done == total`` comes exactly once."""


def unwatched(label: str, done: int, total: int, **facts: float) -> None:
    """Nobody is looking."""
