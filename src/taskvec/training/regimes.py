"""What fine-tuning trains and in which space; reading this list imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal

from taskvec.errors import InputError
from taskvec.names import SELECTIONS
from taskvec.patterns import Pattern
from taskvec.registry import nearest

Space = Literal["ordinary", "tangent"]
"""In which a task vector displaces an encoder."""


@dataclass(frozen=True)
class Regime:
    """Which parameters are trained, and in which space."""

    selection: str
    space: Space
    about: str


REGIMES = {
    "full": Regime("full", "ordinary", "every parameter of the encoder"),
    "attention": Regime("attention", "ordinary", "the weights of the attention projections q, k, v, o"),
    "tangent": Regime("full", "tangent", "every parameter, in the tangent space of the pre-trained model"),
    "tangent-attention": Regime("attention", "tangent", "the attention projections, in tangent space"),
}
"""Regimes are data: a selection of parameters and a space. Any other selection makes a regime as well."""

TANGENT = "tangent-"
"""What opens the name of a selection that is trained in tangent space."""


def regime_called(name: str, *others: str) -> Regime:
    """The regime of that name: one of ``REGIMES``, or of any other selection of parameters.

    Args:
        others: further names that the caller knows, for the hint.

    Raises: InputError with the nearest one.
    """
    if name in REGIMES:
        return REGIMES[name]
    selection = name.removeprefix(TANGENT)
    more = SELECTIONS.keys() - {"all", "full"}  # these have names of their own
    if selection.startswith("re:"):
        Pattern(selection.removeprefix("re:"), f"regime {name!r}")
    elif selection not in more:
        raise InputError(
            f"no regime called {name!r}; {nearest(name, {*REGIMES, *more, *others})}, or re:PATTERN"
        )
    space: Space = "tangent" if name.startswith(TANGENT) else "ordinary"
    return Regime(selection, space, f"the selection {selection}")


def linear_of(regime: str) -> str:
    """The regime that trains the same parameters in tangent space."""
    return "tangent" if regime == "full" else f"{TANGENT}{regime}"
