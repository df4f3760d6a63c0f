"""Figures: what is drawn, and when it need not be drawn again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure that is drawn on demand: ``name`` is its file's, without the ending."""

    name: str
    caption: str
    draw: "Callable[[], Figure]"
