"""Directions brought to a base that has their tensors under other names, or has not all of them."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from taskvec.vectors.delta import Delta
from taskvec.vectors.directions import Stored
from taskvec.vectors.info import VectorInfo
from taskvec.weights import Weights
from taskvec.weights.matched import Seen, see_as
from taskvec.weights.picked import Picked
from taskvec.weights.selecting import Choice, Renames

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)


class Deltas(Weights):
    """The deltas of a direction as tensors by name, for what looks at names and shapes alone."""

    def __init__(self, delta: Delta) -> None:
        super().__init__(delta.ref, delta.specs, ("deltas", delta), parts=[delta])
        self._delta = delta

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        return self._delta.read(name, rows)

    def own_bytes(self, name: str) -> int:
        """None: what was read is passed on."""
        return 0


def see_delta_as(
    base: Weights, delta: Delta, renames: Renames | None = None
) -> tuple[Delta, tuple[str, ...]]:
    """A direction under the names of a base, as ``see_as`` does it for models; and notes on that.

    Raises: KeyMismatch where two changes of names fit equally well; InputError for a map that does not fit.
    """
    deltas = Deltas(delta)
    seen = see_as(base, deltas, renames)
    return (delta if seen.weights is deltas else _stored(delta, deltas, seen)), seen.notes


def under_names_of(base: Weights, delta: Delta) -> Delta:
    """As ``see_delta_as``; what was done is logged."""
    seen, notes = see_delta_as(base, delta)
    for note in notes:
        _log.warning("%s", note)
    return seen


def chosen(delta: Delta, choice: Choice) -> Delta:
    """The tensors of a direction that take part."""
    taken = {name: name for name in delta if choice.takes(name)}
    if len(taken) == len(delta):
        return delta
    deltas = Deltas(delta)
    return _stored(delta, deltas, Seen(Picked(deltas, taken)))


def _stored(delta: Delta, deltas: Deltas, seen: Seen) -> Delta:
    """What is seen, as a direction that knows which of its tensors are zero."""
    zero = {name for name in delta if not delta.terms_at(name)}
    view = seen.weights
    made_of = {name: list(_made_of(view, deltas, name)) for name in view}
    unchanged = {name: view.spec(name) for name in view if zero.issuperset(made_of[name])}
    changed = {name: name for name in view if name not in unchanged}
    names = {name: there for name, [there, *others] in made_of.items() if not others}
    kept = (view.spec(name).shape == deltas.spec(there).shape for name, there in names.items())
    plain = len({*names.values()}) == len(made_of) and all(kept)
    base = replace(delta.base, names=names if plain else {}, layout=None if plain else deltas)
    return Stored(Picked(view, changed), base, delta.recorded or VectorInfo(tuned=delta.ref), unchanged)


def _made_of(view: Weights, deltas: Deltas, name: str) -> Iterator[str]:
    """The tensors of the direction that one in the view is made of."""
    if view is deltas:
        yield name
        return
    for part, there in view.made_of(name):
        assert isinstance(part, Weights)
        yield from _made_of(part, deltas, there)
