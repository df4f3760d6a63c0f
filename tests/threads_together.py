"""A group whose processes are threads: what several would do, without starting them."""

from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field
from threading import Barrier, Lock, Thread
from typing import Any, TypeVar

import torch
from torch import Tensor

from taskvec import group
from taskvec.group import Group

T = TypeVar("T")


@dataclass(frozen=True)
class Threaded(Group):
    """One of several threads that tell each other what they have.

    Args:
        held: what each told last.
        turn: whoever works has it: forward-mode derivatives are no more than one thread's at a time.
    """

    held: list[Any] = field(default_factory=list)
    meeting: Barrier = field(default_factory=lambda: Barrier(1))
    turn: Lock = field(default_factory=Lock)

    def sum_(self, flat: Tensor) -> None:
        """By adding up in the order of ranks."""
        flat.copy_(torch.stack(self.gather(flat.clone())).sum(0))

    def gather(self, mine: T) -> list[T]:
        """All wait for each other, before and after they look."""
        self.held[self.rank] = mine
        self._meet()
        found = list(self.held)
        self._meet()
        return found

    def broadcast(self, given: T) -> T:
        """That of the first."""
        return self.gather(given)[0]

    def _meet(self) -> None:
        self.turn.release()
        try:
            self.meeting.wait(120)
        finally:
            self.turn.acquire()


def in_threads(size: int, make: Callable[[], T]) -> list[T]:
    """What ``make`` gives in each of several threads of one group; one that fails ends all."""
    held, meeting, turn = [None] * size, Barrier(size), Lock()
    made: list[Any] = [None] * size
    failed: list[BaseException] = []

    def work(rank: int) -> None:
        with turn:
            try:
                group._CURRENT.set(Threaded(rank, size, rank, held, meeting, turn))
                made[rank] = make()
            except BaseException as error:
                failed.append(error)
                meeting.abort()

    threads = [Thread(target=copy_context().run, args=(work, rank)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return made
