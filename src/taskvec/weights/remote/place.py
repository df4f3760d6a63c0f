"""A folder elsewhere: what lies in it, found once."""

from collections.abc import Mapping
from typing import NamedTuple

from taskvec.weights.remote.file import RemoteFile

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".distcp")
"""Endings of files that are not fetched."""


class Place(NamedTuple):
    """A folder elsewhere, as it was when it was found.

    Attributes:
        said: its URL, as it may be printed and stored.
        files: place in the folder -> the file.
        chosen: the file that the user named, if it was not the folder.
    """

    said: str
    files: Mapping[str, RemoteFile]
    chosen: str | None = None


def find_place(url: str) -> Place:
    """What a URL names: a folder, or a file and what lies beside it.

    Raises: InputError if there is nothing; MissingExtra for a package that is not installed.
    """
    from taskvec.urls import protocol_of

    protocol = protocol_of(url)
    if protocol in ("http", "https"):
        from taskvec.weights.remote.guessing import find_on_server

        return find_on_server(url)
    if protocol == "hf":
        from taskvec.weights.remote.hub import find_on_hub

        return find_on_hub(url)
    from taskvec.weights.remote.store import find_in_store

    return find_in_store(url)
