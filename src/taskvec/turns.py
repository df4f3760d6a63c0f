"""Taking turns, where several processes work on the same run and one of them makes what others need too."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol


class Turn(Protocol):
    """What holds a name, so that no other process does; it waits until none does."""

    def __call__(self, name: str, *files: Path) -> AbstractContextManager[object]:
        """As :func:`alone`."""
        ...


def _unshared(name: str, *files: Path) -> AbstractContextManager[object]:
    return nullcontext(name)


_turn: ContextVar[Turn] = ContextVar("turn", default=_unshared)


def alone(name: str, *files: Path) -> AbstractContextManager[object]:
    """While this is held, no other process of the same run holds this name; look again at what is there.

    In a process that works by itself it costs nothing. Who holds a name may wait for another so long as those
    needs run one way: a cell may hold its own name and wait for a vector's.

    Args:
        files: of the run, that another process may have made; those are here when this is held.
    """
    return _turn.get()(name, *files)


@contextmanager
def taking_turns(turn: Turn) -> Iterator[None]:
    """Work in a process that is one of several."""
    token = _turn.set(turn)
    try:
        yield
    finally:
        _turn.reset(token)
