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
