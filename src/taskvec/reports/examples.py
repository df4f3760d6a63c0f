"""Inputs that models got wrong, and what each said of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Example:
    """One input.

    Args:
        group: a part of the run, such as a regime.
        what: the sort of mistake, in words.
        picture: a PNG in base64; without one the input is the ``text``.
        said: what each model says, by its place among the block's models.
        confusion: what it was taken for, in words that tell one from another.
    """

    group: str
    task: str
    what: str
    label: str
    said: Sequence[str]
    confusion: str
    text: str = ""
    picture: str = ""


@dataclass(frozen=True)
class Examples:
    """A table of inputs that a reader can filter.

    Args:
        models: heads of what they say.
    """

    template: ClassVar[str] = "examples"

    title: str
    models: Sequence[str]
    examples: Sequence[Example]
    note: str = ""

    def data(self) -> None:
        """The table holds all that the script needs."""

    @property
    def grouped(self) -> bool:
        """Whether they are of several groups."""
        return len({example.group for example in self.examples}) > 1
