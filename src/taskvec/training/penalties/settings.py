"""What may be said of penalties; reading this imports nothing heavy."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, NonNegativeFloat

from taskvec.config import Config


class Strength(Config, use_attribute_docstrings=True):
    """What every penalty has."""

    strength: NonNegativeFloat = 1.0
    """What it is multiplied by before it is added to the loss."""


class Decay(Strength):
    """Half the squared norm of the displacement: weights are drawn towards the pre-trained ones."""

    kind: Literal["decay"] = "decay"


PenaltySettings = Decay
"""A penalty of any kind."""


def _listed(value: object) -> object:
    """A list of penalties from what may stand for it: a kind by name, one penalty, or a list of them."""
    if isinstance(value, str | dict | Strength):
        value = [value]
    if isinstance(value, Sequence):
        return tuple({"kind": one} if isinstance(one, str) else one for one in value)
    return () if value is None else value


Penalties = Annotated[tuple[PenaltySettings, ...], BeforeValidator(_listed)]
"""Penalties that add up."""
