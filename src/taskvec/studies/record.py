"""Results as they are read."""

from collections.abc import Mapping
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict

Plain = Mapping[str, object]
"""Data that JSON can hold."""


class Record(BaseModel):
    """The result of a cell or an analysis: the fields that somebody needs, out of all that are stored."""

    model_config = ConfigDict(frozen=True)

    cell: ClassVar[str]
    """The kind of cell, as ``records.jsonl`` names it. It opens the cell's key: never change it."""


R = TypeVar("R", bound=Record)
