"""One file elsewhere, read by ranges for as long as it stays what it was when it was found."""

import time
from abc import ABC, abstractmethod
from typing import NamedTuple

from taskvec.errors import CorruptFile, InputError, TaskvecError

TRIES = 5
"""Answers that may break off, one after the other, before a file is given up."""

PAUSE = 0.25
"""Seconds before the second try; twice as many before each further one."""

PATIENCE = 30.0
"""Seconds that all pauses of one read may take: a server that asks for more is told of, not waited for."""

_PROGRESS = 1 << 20
"""Bytes of an answer that broke off from which on it counts as progress."""


class Broken(Exception):
    """An answer that did not come, or broke off: asking again may help.

    Attributes:
        got: bytes that came all the same.
        wait: seconds that the server asks to wait.
        tries: how many of the tries it costs.
    """

    def __init__(self, reason: str, *, got: int = 0, wait: float = 0.0, tries: int = 1) -> None:
        super().__init__(reason)
        self.got, self.wait, self.tries = got, wait, tries


class RemoteIdentity(NamedTuple):
    """What tells one state of a file elsewhere from another.

    Attributes:
        url: as it may be stored.
        state: what the server says of it, such as an ETag.
        fixed: whether the URL can never have another content, as that of a commit.
    """

    url: str
    size: int
    state: str
    fixed: bool = False

    @property
    def anywhere(self) -> tuple[str | int, ...]:
        """What of it holds on other machines too: all of it."""
        return tuple(self)

    @property
    def mtime(self) -> int:
        """Nanoseconds of its last change, which nobody knows: for ever ago, or now."""
        return 0 if self.fixed else time.time_ns()


class RemoteFile(ABC):
    """A file elsewhere.

    Attributes:
        said: its URL, as it may be printed and stored.
    """

    def __init__(self, said: str) -> None:
        self.said = said
        self._reached = False

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes of the whole file."""

    @property
    @abstractmethod
    def identity(self) -> RemoteIdentity:
        """What tells one state of the file from another."""

    @abstractmethod
    def _ask(self, buffer: memoryview, place: int) -> int:
        """Fill the beginning of a buffer with what one answer brings from a byte on; how much that is.

        Raises: Broken; TaskvecError where asking again is of no use.
        """

    def fill(self, buffer: memoryview, place: int) -> bool:
        """Read from byte ``place`` until the buffer is full; whether the file is long enough.

        Raises: CorruptFile if the file is no longer what it was; InputError if it cannot be had, TaskvecError
            if that stops while it is read.
        """
        if place + len(buffer) > self.size:
            return False
        self._fill(buffer, place)
        return True

    def read(self, size: int, place: int = 0) -> bytes:
        """So many bytes from a place on, or what is left there. Raises: as ``fill``."""
        content = bytearray(max(0, min(size, self.size - place)))
        self.fill(memoryview(content), place)
        return bytes(content)

    def _fill(self, buffer: memoryview, place: int) -> None:
        tries, patience = TRIES, PATIENCE
        while buffer:
            try:
                got, broken = self._ask(buffer, place), Broken("the answers are too short")
            except Broken as error:
                got, broken = error.got, error
            enough = got >= max(1, min(_PROGRESS, len(buffer) // 2))
            buffer, place = buffer[got:], place + got
            tries = TRIES if enough else tries - broken.tries
            wait = 0.0 if enough else max(broken.wait, PAUSE * 2 ** (TRIES - tries - 1))
            if tries <= 0 or wait > patience:
                raise self._given_up(broken)
            patience -= wait
            time.sleep(wait)
        self._reached = True

    def _given_up(self, error: Broken) -> TaskvecError:
        kind = TaskvecError if self._reached else InputError
        later = f"; the server asks to wait {error.wait:.0f} seconds" if error.wait > PATIENCE else ""
        return kind(
            f"{self.said}: cannot be read from there ({error}){later}; run again later, or download it"
        )

    def _changed(self, what: str = "") -> CorruptFile:
        return CorruptFile(f"{self.said}: changed while it was read{what}; run again")
