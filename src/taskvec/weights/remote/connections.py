"""Requests to web servers: connections are kept, redirects followed with care, and nothing takes for ever."""

import atexit
import base64
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, InvalidURL
from socket import SHUT_RDWR, gaierror
from threading import Lock, Timer
from typing import NamedTuple
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from taskvec._version import __version__
from taskvec.errors import InputError
from taskvec.urls import said
from taskvec.weights.remote.file import Broken

TIMEOUT = 15.0
"""Seconds without a byte after which a server counts as silent."""

SLOWEST = 20_000
"""Bytes a second that an answer has to bring, after the first half minute."""

_HOPS = 6
_SHORT = 1 << 16
"""Bytes of a body that is read so that its connection can be kept."""

_IDLE = 8
"""Connections that are kept for each server."""

_SECRET = ("authorization", "cookie")
_SAFE = "/%:@!$&'()*+,;=~-._?"

_Server = tuple[str, str, int | None]


class _Pool:
    """Connections of this process that nobody uses, by server."""

    def __init__(self) -> None:
        self._lock, self._idle = Lock(), dict[_Server, list[HTTPConnection]]()

    def take(self, server: _Server) -> tuple[HTTPConnection, bool]:
        """A connection, and whether it was used before: the server may have closed that meanwhile."""
        with self._lock:
            kept = self._idle.get(server)
            if kept:
                return kept.pop(), True
        return _connection(server), False

    def give(self, server: _Server, connection: HTTPConnection) -> None:
        with self._lock:
            kept = self._idle.setdefault(server, [])
            if len(kept) < _IDLE:
                kept.append(connection)
                return
        connection.close()

    def close(self) -> None:
        with self._lock:
            for connection in (each for kept in self._idle.values() for each in kept):
                connection.close()
            self._idle.clear()


_pools: dict[int, _Pool] = {}


def _pool() -> _Pool:
    """That of this process: a forked one must not share the sockets, or the lock, of the one before."""
    pool = _pools.get(os.getpid())
    return _pools.setdefault(os.getpid(), _Pool()) if pool is None else pool


@atexit.register
def close_connections() -> None:
    """Let go of the connections that this process keeps."""
    _pool().close()


class Answer(NamedTuple):
    """The head of an answer; the body is to be read.

    Attributes:
        url: where it came from in the end.
        linked: the etag that the hub gives the file that it sends elsewhere for.
    """

    response: HTTPResponse
    url: str
    linked: str | None


@contextmanager
def ask(method: str, url: str, headers: Mapping[str, str], size: int = 0) -> Iterator[Answer]:
    """Send a request without a body, and follow where it is sent on to.

    Args:
        headers: those that hold secrets go to the server of ``url`` alone.
        size: bytes that are to be read of the answer, which decide how long it may take.

    Raises: Broken; InputError for an address that is none, or a redirect that leads where it must not.
    """
    first, linked = _split(url), None
    for _ in range(_HOPS):
        parts = _split(url)
        own = _server(parts) == _server(first)
        sent = {name: value for name, value in headers.items() if own or name.lower() not in _SECRET}
        with _exchange(method, parts, sent, size) as response:
            target = response.getheader("Location")
            if response.status not in (301, 302, 303, 307, 308) or target is None:
                yield Answer(response, url, linked)
                return
            linked = linked or (response.getheader("X-Linked-ETag") if own else None)
            url = _followed(url, target)
            if response.length and response.length < _SHORT:
                response.read()
    raise InputError(f"{said(url)}: sent on more than {_HOPS} times; name the place itself")


def _followed(url: str, target: str) -> str:
    """Where a redirect leads: to a web server, and no less safely than before."""
    with suppress(ValueError):
        there = urljoin(url, target)
        before, after = urlsplit(url).scheme.lower(), urlsplit(there).scheme.lower()
        if after in ("http", "https") and not (before == "https" and after == "http"):
            return there
    raise InputError(
        f"{said(url)}: sent on to {said(target)!r}, which is not followed; name the place itself"
    )


@contextmanager
def _exchange(
    method: str, parts: SplitResult, headers: Mapping[str, str], size: int
) -> Iterator[HTTPResponse]:
    """One request and the head of its answer; the connection is kept if the answer was read whole."""
    server, pool = _server(parts), _pool()
    connection, used = pool.take(server)
    response: HTTPResponse | None = None
    timer = Timer(TIMEOUT * 2 + size / SLOWEST, _hang_up, [connection])
    timer.daemon = True
    timer.start()
    try:
        response = _send(connection, method, parts, headers, used=used)
        yield response
        if _is_over(response, method):
            pool.give(server, connection)
            connection = HTTPConnection("")
    except Broken:
        raise
    except TimeoutError:
        raise Broken(f"no answer for {TIMEOUT:g} seconds", tries=3) from None
    except ssl.SSLCertVerificationError as error:
        raise InputError(
            f"{_place(parts)}: its certificate is not trusted ({error.verify_message})"
        ) from None
    except gaierror as error:
        raise Broken(f"no such server: {error.strerror}", tries=3) from None
    except (OSError, HTTPException) as error:
        raise Broken(_reason(error)) from None
    finally:
        timer.cancel()
        if response is not None:
            response.close()
        connection.close()


def _send(
    connection: HTTPConnection, method: str, parts: SplitResult, headers: Mapping[str, str], *, used: bool
) -> HTTPResponse:
    target = quote(parts.path or "/", _SAFE) + (f"?{quote(parts.query, _SAFE)}" if parts.query else "")
    standard = {"User-Agent": f"taskvec/{__version__}", "Accept-Encoding": "identity", "Accept": "*/*"}
    sent = {**standard, **_login(parts, "Authorization"), **headers}
    if parts.scheme == "http" and (proxy := _proxy(parts)) is not None:
        target = f"http://{parts.netloc.rpartition('@')[2]}{target}"
        sent |= _login(proxy, "Proxy-Authorization")
    try:
        connection.request(method, target, headers=sent)
        return connection.getresponse()
    except (InvalidURL, UnicodeError) as error:
        raise InputError(f"{_place(parts)}: no address that can be asked for ({error})") from None
    except (OSError, HTTPException) as error:
        if used and not isinstance(error, TimeoutError):  # closed since by the server, as it may
            connection.close()
            return _send(connection, method, parts, headers, used=False)
        raise


def _is_over(response: HTTPResponse, method: str) -> bool:
    """Whether nothing of an answer is left on the connection."""
    return not response.will_close and (method == "HEAD" or response.length == 0 or response.isclosed())


def _hang_up(connection: HTTPConnection) -> None:
    """End an answer that takes too long, in whatever read it is waited for."""
    with suppress(OSError, AttributeError):
        connection.sock.shutdown(SHUT_RDWR)


def _connection(server: _Server) -> HTTPConnection:
    scheme, host, port = server
    proxy = _proxy(urlsplit(f"{scheme}://{host}"))
    at = (host, port) if proxy is None else (proxy.hostname or "", proxy.port or 80)
    if scheme == "http":
        return HTTPConnection(*at, timeout=TIMEOUT)
    connection = HTTPSConnection(*at, timeout=TIMEOUT, context=_trusted())
    if proxy is not None:
        connection.set_tunnel(host, port or 443, headers=_login(proxy, "Proxy-Authorization"))
    return connection


@cache
def _trusted() -> ssl.SSLContext:
    return ssl.create_default_context()


def _proxy(parts: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for a server."""
    named = getproxies().get(parts.scheme)
    if not named or proxy_bypass(parts.hostname or ""):
        return None
    return urlsplit(named if "://" in named else f"http://{named}")


def _login(parts: SplitResult, header: str) -> dict[str, str]:
    """The header for the user and the password of a URL."""
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {header: f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise InputError(f"{said(url)}: no address of a web server ({error})") from None
    if not parts.hostname:
        raise InputError(f"{said(url)}: names no server, expected http(s)://HOST/PATH")
    return parts


def _server(parts: SplitResult) -> _Server:
    return parts.scheme.lower(), parts.hostname or "", parts.port


def _place(parts: SplitResult) -> str:
    return said(parts.geturl())


def _reason(error: Exception) -> str:
    """Why an exchange failed, in words without an address."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    known = {"RemoteDisconnected": "the connection was cut", "IncompleteRead": "the answer was cut off"}
    return known.get(type(error).__name__, f"the answer makes no sense: {type(error).__name__}")
