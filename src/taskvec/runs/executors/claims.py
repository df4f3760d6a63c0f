"""Names that one worker holds at a time."""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

W = TypeVar("W")


@dataclass
class Claims(Generic[W]):
    """Who holds a name, and who waits for it."""

    _holders: dict[str, W] = field(default_factory=dict)
    _waiting: dict[str, deque[W]] = field(default_factory=dict)

    def claim(self, name: str, worker: W) -> bool:
        """Whether the worker holds the name now; if not, it waits, and :meth:`release` tells of its turn."""
        if self._holders.setdefault(name, worker) == worker:
            return True
        self._waiting.setdefault(name, deque()).append(worker)
        return False

    def release(self, name: str, worker: W) -> W | None:
        """The worker whose turn it is now, if anybody waits."""
        if self._holders.get(name) != worker:
            return None
        del self._holders[name]
        line = self._waiting.get(name)
        if not line:
            self._waiting.pop(name, None)
            return None
        self._holders[name] = line.popleft()
        return self._holders[name]

    def forget(self, worker: W) -> list[W]:
        """A worker is gone, with all that it held or waited for; those whose turn it is now."""
        for line in self._waiting.values():
            while worker in line:
                line.remove(worker)
        held = [name for name, holder in self._holders.items() if holder == worker]
        return [following for name in held if (following := self.release(name, worker)) is not None]
