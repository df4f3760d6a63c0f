"""Linear forms over files, evaluated as arrays: to take differences, and to edit bfloat16, needs no torch."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskvec.rules.pairs import Bits
from taskvec.vectors.delta import Term
from taskvec.vectors.linear import Addend, add_bits
from taskvec.weights import Weights
from taskvec.weights.dtypes import as_float32

_NARROW = ("F32", "F16", "BF16")


def can_add(terms: Sequence[Term], name: str) -> bool:
    """Whether all terms are differences of bfloat16 weights at ``name``, or all are deltas in 32 bits or less
    that lie somewhere."""
    models = [summand.ends for summand, _ in terms]
    if any(models):
        return all(ends and {end.spec(name).code for end in ends} == {"BF16"} for ends in models)
    return all(summand.held is not None and summand.held.spec(name).code in _NARROW for summand, _ in terms)


def add(terms: Sequence[Term], name: str, rows: slice | None, base: Weights, stored: Bits) -> Bits:
    """Rows of the weights ``base``, which were read as ``stored``, plus terms that ``can_add`` takes."""
    starts: dict[Hashable, Bits] = {base.identity: stored}
    addends = []
    for summand, factor in terms:
        if summand.ends is not None:
            start, end = summand.ends
            if start.identity not in starts:
                starts[start.identity] = start.read_array(name, rows)
            addends.append(Addend(factor, end.read_array(name, rows), starts[start.identity]))
        elif summand.held is not None:
            held = summand.held.read_array(name, rows)
            addends.append(Addend(factor, as_float32(held, summand.held.spec(name).code), None))
    made = add_bits(addends, stored)
    assert made is not None
    return made


def is_plain(terms: Sequence[Term], name: str) -> bool:
    """Whether a form is, at ``name``, one difference of weights in 32 bits or less, or stored deltas."""
    if len(terms) != 1 or terms[0][1] != 1.0:
        return False
    [(summand, _)] = terms
    models = (summand.held,) if summand.ends is None else summand.ends
    return all(model is not None and model.spec(name).code in _NARROW for model in models)


def plain(
    terms: Sequence[Term], name: str, rows: slice | None, known: tuple[Weights, NDArray[Any]] | None = None
) -> NDArray[np.float32]:
    """The delta of a form that ``is_plain``, as a new array.

    Args:
        known: weights of which these rows are read already, and what was read.
    """

    def read(model: Weights) -> NDArray[np.float32]:
        given = known is not None and known[0].identity == model.identity
        array = known[1] if known is not None and given else model.read_array(name, rows)
        return as_float32(array, model.spec(name).code)

    [(summand, _)] = terms
    if summand.ends is not None:
        start, end = summand.ends
        return np.asarray(read(end) - read(start))  # which of scalars is no array
    assert summand.held is not None
    return read(summand.held)
