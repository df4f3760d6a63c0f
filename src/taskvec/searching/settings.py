"""How a search is made: its method, its budget, its seed."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from taskvec.config import Config

EVALUATIONS = 100
"""The budget where none is given."""

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", value)
    if found is None or not float(found[1]):
        raise ValueError("expected a time such as 90s, 30m or 2h")
    return float(found[1]) * _UNITS[found[2] or "s"]


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Method = Literal["cmaes", "grid", "random"]


class SearchSettings(Config):
    """Settings of a search."""

    method: Method = "cmaes"
    """``cmaes`` learns from generation to generation where good candidates lie; ``grid`` tries evenly spaced
    values of every number, ``random`` any."""
    evaluations: PositiveInt | None = None
    """How many candidates are measured at most, with the recipe's own numbers; 100 unless there is a time."""
    time: Seconds | None = None
    """How long candidates are measured at most: ``90s``, ``30m``, ``2h``; in a search that goes on, counted
    from its first beginning."""
    points: Annotated[int, Field(ge=2)] | None = None
    """Values of each number on the grid; by default as many as the evaluations allow."""
    seed: NonNegativeInt = 0
    """Of what is drawn at random."""

    @property
    def most(self) -> float:
        """The number of evaluations that is not passed."""
        if self.evaluations is None:
            return EVALUATIONS if self.time is None else float("inf")
        return self.evaluations
