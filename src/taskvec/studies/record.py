"""Results as they are read."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict

Plain = Mapping[str, object]
"""Data that JSON can hold."""


def plain(value: object) -> Any:
    """Data as JSON holds it: None for a number that is none or has no bound.

    Of these are the cosine of a vector without length, and the perplexity of a model that was ruined.

    >>> plain({"a": (0.5, float("nan")), "b": float("inf")})
    {'a': [0.5, None], 'b': None}
    """
    match value:
        case Mapping():
            return {key: plain(each) for key, each in value.items()}
        case list() | tuple():
            return [plain(each) for each in value]
        case float() if not math.isfinite(value):
            return None
    return value


class Record(BaseModel):
    """The result of a cell or an analysis: the fields that somebody needs, out of all that are stored."""

    model_config = ConfigDict(frozen=True)

    cell: ClassVar[str]
    """The kind of cell, as ``records.jsonl`` names it. It opens the cell's key: never change it."""


R = TypeVar("R", bound=Record)
