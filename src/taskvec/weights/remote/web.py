"""Files on web servers, and what lies beside them as far as it can be guessed: a server lists nothing."""

import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from typing import NamedTuple
from urllib.parse import urlsplit

from taskvec.errors import InputError
from taskvec.weights.remote.connections import Answer, ask
from taskvec.weights.remote.file import Broken, RemoteFile, RemoteIdentity

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
LATER = (408, 425, 429, 500, 502, 503, 504)
"""Answers after which the same question may get another one."""

_ASKING = 8
_PIECE = 1 << 18
"""Bytes that are read at a time: what is lost at most where a connection breaks off."""

_NO_HEAD = (400, 403, 405, 501)
"""Answers of servers, and to addresses that are signed, that may give what may not be asked about."""

_KEPT = 240.0
"""Seconds for which what a redirect led to is asked at once: such addresses are signed for a while."""

_SAYS = {
    401: "may not be read without a login (401); give the user and password, or log in on the hub",
    403: "may not be read (403); ask for access, or for a new address if it was signed for a while",
    404: "no such file (404)",
    407: "the proxy wants a login (407)",
    410: "no longer there (410)",
    416: "is shorter than it was said to be (416); run again",
    451: "may not be read (451)",
}


class State(NamedTuple):
    """What tells one state of a file on a server from another; what is not known tells nothing."""

    size: int
    linked: str | None = None
    tag: str | None = None
    modified: str | None = None

    def fits(self, other: "State") -> bool:
        """Whether another answer may come from the same state of the file."""
        pairs = [(self.linked, other.linked), (self.tag, other.tag)]
        if self.tag is None or other.tag is None:
            pairs.append((self.modified, other.modified))
        return self.size == other.size and all(a is None or b is None or a == b for a, b in pairs)

    def with_more(self, other: "State") -> "State":
        """What both know."""
        return State(self.size, *(a or b for a, b in zip(self[1:], other[1:], strict=True)))


class WebFile(RemoteFile):
    """A file on a web server.

    Args:
        url: where it lies.
        said: as it may be printed.
        headers: sent to the server of ``url``, to no other.
        state: what is known of it; else the first answer tells.
        version: tells its content from any other, where the server keeps several under names of their own.
    """

    def __init__(
        self,
        url: str,
        said: str,
        headers: Mapping[str, str] | None = None,
        state: State | None = None,
        version: str = "",
    ) -> None:
        super().__init__(said)
        self._url, self._headers, self._state = url, dict(headers or {}), state
        self._version = version
        self._first = b""
        self._there: tuple[str, float] | None = None

    @property
    def size(self) -> int:
        """Bytes of the file, as the server says."""
        return self._known().size

    @property
    def identity(self) -> RemoteIdentity:
        """Its URL, size, and the best that the server says of its state."""
        size, linked, tag, modified = self._known()
        state = self._version or linked or tag or modified or ""
        return RemoteIdentity(self.said, size, state, bool(self._version))

    def read(self, size: int, place: int = 0) -> bytes:
        """As of any file; from memory where that came before."""
        known = self._first[place : place + min(size, self.size - place)]
        return known if len(known) == min(size, self.size - place) else super().read(size, place)

    def read_whole(self) -> bytes:
        """All of a small file, which is kept."""
        self._first = self.read(self.size)
        return self._first

    def exists(self) -> bool:
        """Whether the server has it, as far as it says; takes its size and state from the answer."""
        if self._state is None:
            with suppress(Broken, InputError):
                with ask("HEAD", self._url, self._headers) as answer:
                    self._state, status = _stated_by(answer), answer.response.status
                if status in _NO_HEAD:
                    with ask("GET", self._url, {**self._headers, "Range": "bytes=0-0"}) as answer:
                        self._state = _stated_by(answer)
        return self._state is not None

    def _known(self) -> State:
        if self._state is None:
            first = bytearray(8)
            self._fill(memoryview(first), 0)
            self._first = bytes(first)
        assert self._state is not None
        return self._state

    def _ask(self, buffer: memoryview, place: int) -> int:
        url, headers = self._there_or_here()
        asked = {**headers, "Range": f"bytes={place}-{place + len(buffer) - 1}"}
        with ask("GET", url, asked, len(buffer)) as answer:
            if url != self._url and answer.response.status not in (200, 206):
                self._there = None
                raise Broken(f"answered {answer.response.status}")
            count = self._check(answer, place, len(buffer))
            if urlsplit(answer.url).netloc != urlsplit(url).netloc:
                self._there = answer.url, time.monotonic() + _KEPT
            return _read(answer.response, buffer[:count])

    def _there_or_here(self) -> tuple[str, dict[str, str]]:
        """Where to ask, with what headers; where a redirect led, without those of the first server."""
        if self._there is not None and time.monotonic() < self._there[1]:
            return self._there[0], {}
        return self._url, self._headers

    def _check(self, answer: Answer, place: int, size: int) -> int:
        """How many of the bytes that were asked for an answer brings."""
        response, status = answer.response, answer.response.status
        if status in LATER:
            raise Broken(f"answered {status}", wait=_wait(response))
        if status not in (200, 206):
            raise InputError(f"{self.said}: {_SAYS.get(status, f'answered {status}, expected the file')}")
        if _encoded(response):
            raise InputError(
                f"{self.said}: sent as {response.getheader('Content-Encoding')!r}, which has no ranges of "
                "the file; download it first, and name the copy"
            )
        if status == 200:
            return self._check_whole(answer, place, size)
        found = _RANGE.fullmatch((response.getheader("Content-Range") or "").strip())
        if found is None or found[3] == "*":
            raise InputError(
                f"{self.said}: the server does not say which bytes of how many it sends; download it first, "
                "and name the copy"
            )
        first, last, total = (int(part) for part in found.groups())
        self._keep(_state(total, answer))
        if first != place or not first <= last < total:
            raise InputError(
                f"{self.said}: the server sends bytes {first} to {last} of {total}, asked for {place} to "
                f"{place + size - 1}; download it first, and name the copy"
            )
        return min(size, last - first + 1)

    def _check_whole(self, answer: Answer, place: int, size: int) -> int:
        """Take the answer of a server that knows no ranges if it is no more than what was asked for."""
        length = answer.response.length
        if place == 0 and length == size and self._state is not None:
            self._keep(_state(length, answer))
            return size
        raise InputError(
            f"{self.said}: the server sends whole files alone, no ranges of them; download it first, and "
            "name the copy"
        )

    def _keep(self, state: State) -> None:
        if self._state is not None and not self._state.fits(state):
            raise self._changed()
        self._state = state if self._state is None else self._state.with_more(state)


def ask_sizes(files: Sequence[WebFile]) -> list[bool]:
    """Ask for what is not known of files, several at a time; whether the server has each."""
    with ThreadPoolExecutor(_ASKING) as pool:
        return list(pool.map(WebFile.exists, files))


def _state(size: int, answer: Answer) -> State:
    header = answer.response.getheader
    return State(size, answer.linked, header("ETag"), header("Last-Modified"))


def _stated_by(answer: Answer) -> State | None:
    """The state of a file, by an answer of which only the head is wanted; none if there is no such file."""
    response = answer.response
    length = response.getheader("Content-Length") or ""
    if response.status == 206:
        length = (response.getheader("Content-Range") or "").rpartition("/")[2]
    # Some servers answer with a page where there is no such file.
    page = "html" in (response.getheader("Content-Type") or "")
    there = response.status in (200, 206) and length.isdecimal() and not page and not _encoded(response)
    return _state(int(length), answer) if there else None


def _encoded(response: HTTPResponse) -> bool:
    return (response.getheader("Content-Encoding") or "identity").strip().lower() not in ("identity", "")


def _wait(response: HTTPResponse) -> float:
    """The seconds that a server asks to wait; a date counts as none."""
    stated = (response.getheader("Retry-After") or "").strip()
    return float(stated) if stated.isdecimal() and len(stated) < 9 else 0.0


def _read(response: HTTPResponse, buffer: memoryview) -> int:
    """Fill a buffer from the body of an answer."""
    got = 0
    while got < len(buffer):
        try:
            count = response.readinto(buffer[got : got + _PIECE])
        except TimeoutError:
            raise Broken("the answer stopped in the middle", got=got, tries=3) from None
        except (OSError, HTTPException):
            count = 0
        if not count:
            raise Broken("the answer was cut off", got=got)
        got += count
    return got
