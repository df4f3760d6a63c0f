"""What a page is made of."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol


class Block(Protocol):
    """A piece of a page: plain data, and the template that shows it.

    ``templates/blocks/TEMPLATE.html`` gets it as ``block``: a table, text or SVG that needs no script. Where
    ``scripts/TEMPLATE.js`` is there, the page holds it, and it finds the element that the template makes and
    ``data`` beside it.
    """

    template: ClassVar[str]

    def data(self) -> Mapping[str, Any] | None:
        """Plain data for the script; none where it needs none."""


@dataclass(frozen=True)
class Figure:
    """A PNG file, which becomes part of the page."""

    template: ClassVar[str] = "figure"

    path: Path
    caption: str

    def data(self) -> None:
        """It needs none."""

    @property
    def encoded(self) -> str:
        """The file in base64."""
        return base64.b64encode(self.path.read_bytes()).decode()
