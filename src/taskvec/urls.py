"""Places that are no paths of this machine: buckets, servers, the hub; opened through fsspec.

A URL may hold a password or a signature. It is printed, recorded and made part of a key as :func:`said` says
it, and no other way.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from taskvec.errors import InputError, MissingExtra
from taskvec.reading import shown

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_URL = re.compile(r"(?P<chain>([\w+.-]+::)*)(?P<protocol>[A-Za-z][A-Za-z0-9+.-]+)://.+", re.DOTALL)

_IPV6 = re.compile(r"(?<=[/@])\[[0-9a-f:.]+\](?=[:/])", re.IGNORECASE)
"""Where a URL names its host so, the colons in it chain nothing."""

_WRAPPERS = frozenset(
    {"blockcache", "cached", "dask", "data", "dir", "dirfs", "filecache", "generic", "git", "jlab"}
    | {"jupyter", "libarchive", "reference", "simplecache", "tar", "zip"}
)
"""Protocols that are about other places, or make new ones of what they read."""


def is_url(text: object) -> bool:
    """Whether this is written like a URL; a path never holds ``://``, as its slashes are one.

    >>> is_url("s3://bucket/model"), is_url("org/name@main"), is_url("C:/model")
    (True, False, False)
    """
    return isinstance(text, str) and _URL.fullmatch(text) is not None


def said(url: str) -> str:
    """A URL as it may be printed and stored: without user, password, query and fragment.

    >>> said("https://me:secret@host/model.safetensors?signature=1"), said("hf://org/name@v1")
    ('https://host/model.safetensors', 'hf://org/name@v1')
    """
    match = _URL.fullmatch(url)
    if match is None:
        return url
    if match["chain"]:
        return match["chain"] + said(url.removeprefix(match["chain"]))
    try:
        parts = urlsplit(url)
    except ValueError:  # of what looks like an IPv6 address and is none
        return f"{match['protocol']}://…"
    host = parts.netloc if parts.scheme == "hf" else parts.netloc.rpartition("@")[2]
    if "@" in url and re.search(r":(?!\d*$)[^\]]*$", host):  # a password that holds what ends a host
        return f"{match['protocol']}://…"
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def without_secrets(value: Any) -> Any:
    """Plain data in which URLs are as they may be stored.

    >>> without_secrets({"base": "s3://me:hush@bucket/model", "layers": ["https://host/x?key=1"]})
    {'base': 's3://bucket/model', 'layers': ['https://host/x']}
    """
    if isinstance(value, Mapping):
        return {without_secrets(key): without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return said(value) + _task_in(value) if is_url(value) else value


def _task_in(url: str) -> str:
    """Which vector of a file of several is meant, after a ``#``."""
    match = re.search(r"#[\w.-]+$", url)
    return match[0] if match else ""


def protocol_of(url: str) -> str:
    """What stands before ``://``, in lower case.

    Raises: InputError for what is no URL, or chains several.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise InputError(f"{shown(url)}: no URL, expected PROTOCOL://PLACE")
    protocol = match["protocol"].lower()
    if match["chain"] or "::" in _IPV6.sub("", url.partition("?")[0]) or protocol in _WRAPPERS:
        raise InputError(f"{said(url)}: a place inside another one, expected the URL of the place itself")
    return protocol


def check_takes_files(url: str) -> None:
    """Refuse a place that can be read but not written to.

    Raises: InputError.
    """
    protocol = protocol_of(url)
    if protocol == "hf":
        raise InputError(
            f"{said(url)}: outputs go to the hub by taskvec push; write a folder here, and push that"
        )
    if protocol in ("http", "https"):
        raise InputError(
            f"{said(url)}: a web server, which takes no files; expected a path, or a bucket's URL"
        )


def local_place(url: str) -> str | None:
    """The path that a ``file://`` URL stands for; ``None`` for other URLs.

    >>> local_place("file:///models/a%20b"), local_place("s3://bucket/model")
    ('/models/a b', None)
    """
    if protocol_of(url) != "file":
        return None
    return unquote(urlsplit(url).path)


def open_filesystem(url: str) -> "tuple[AbstractFileSystem, str]":
    """The file system of a URL, and the place in it.

    What it needs to know besides, such as keys and endpoints, it takes from where its package looks for it:
    the environment, or a file in the home folder.

    Raises: InputError for a protocol that nobody knows, or a URL that makes no sense to its package;
        MissingExtra for one whose package is not installed.
    """
    protocol = protocol_of(url)
    import fsspec.core
    from fsspec.registry import known_implementations

    url = protocol + url[len(protocol) :]
    if protocol == "file":
        url = f"file://{unquote(urlsplit(url).path)}"
    try:
        fs, place = fsspec.core.url_to_fs(url)
    except ImportError:
        need: dict[str, Any] = known_implementations.get(protocol, {})
        raise MissingExtra(
            f"{said(url)}: {protocol}:// needs a package that is not installed; "
            f"{need.get('err', 'install it').rstrip('.')}"
        ) from None
    except ValueError as error:
        if protocol not in fsspec.available_protocols():
            raise InputError(
                f"{said(url)}: nobody knows the protocol {protocol}://, expected one such as s3://, gs://, "
                "abfs://, hf://, https:// or file://"
            ) from None
        raise InputError(f"{said(url)}: no place for {protocol}:// ({type(error).__name__})") from None
    return fs, str(place)
