"""What a page is made of."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from struct import unpack
from typing import Any, ClassVar, Protocol


class Block(Protocol):
    """A piece of a page: plain data, and the template that shows it.

    ``templates/blocks/TEMPLATE.html`` gets it as ``block``: a table, text or SVG that needs no script. What
    makes it live, and its style, are files of the same name (see ``page.py``).
    """

    template: ClassVar[str]

    def data(self) -> Mapping[str, Any] | None:
        """Plain data for the script; none where it needs none."""


_ZOOM = 1.5
"""Dots of a figure to one of the page: sharp on fine screens."""


@dataclass(frozen=True)
class Figure:
    """A PNG file, which becomes part of the page."""

    template: ClassVar[str] = "figure"

    path: Path
    caption: str

    def data(self) -> None:
        """It needs none."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as it is shown."""
        width, height = unpack(">II", self.path.read_bytes()[16:24])
        return round(width / _ZOOM), round(height / _ZOOM)

    @property
    def encoded(self) -> str:
        """The file in base64."""
        return base64.b64encode(self.path.read_bytes()).decode()


@dataclass(frozen=True)
class Paragraph:
    """A sentence or two."""

    template: ClassVar[str] = "paragraph"

    text: str

    def data(self) -> None:
        """It needs none."""
