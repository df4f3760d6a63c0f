"""TAK and the diagonal: what is learned of a task should not move the outputs on other tasks' inputs."""

import warnings
from collections.abc import Mapping, Sequence

from torch import Tensor

from taskvec.errors import InputError, first_few
from taskvec.statistics.blocks import Block
from taskvec.training.penalties.factors import Source
from taskvec.training.penalties.penalty import Given, Penalty
from taskvec.training.penalties.quadratic import Energy, Form, Kronecker, Scaled, Turned, energy
from taskvec.training.penalties.settings import Diagonal, Tak


def bind(settings: Tak, given: Given) -> Penalty:
    """``sum over other tasks of tau^T G tau``, G the curvature of unit outputs on the task, in blocks.

    For a matrix that is ``tr(B W A W^T)``; merged over tasks, A is their mean by size, B their sum. Forms
    that are kept one a task are weighed so that those of equal sizes add up: our reading. So is the measure
    of B, a sum over the positions of an example where the source has the mean.

    Source: 2602.17385.
    """
    return _penalty(Source(settings.factors, settings, given), merged=settings.merge == "merged")


def bind_diagonal(settings: Diagonal, given: Given) -> Penalty:
    """``sum over other tasks of sum_i G_ii tau_i^2``, G the curvature of unit outputs on the task."""
    return _penalty(Source("ggn", settings, given), merged=True)


def _penalty(source: Source, merged: bool) -> Penalty:
    source.check()
    moved = source.given.moved
    tau = moved.tau()
    terms = _terms(source, tau, merged)
    covered = {name for term in terms for name in term.names}
    if not covered.intersection(tau):
        raise InputError(
            f"penalty {source.settings.kind}: there are no factors for what is trained; take another "
            "selection, or measure them again with taskvec stats"
        )
    if free := [name for name in tau if name not in covered]:
        warnings.warn(
            f"penalty {source.settings.kind}: no factors for {first_few(free, 2)}, which it leaves alone",
            stacklevel=2,
        )
    return lambda _: energy(terms, moved.tau())


def _terms(source: Source, tau: Mapping[str, Tensor], merged: bool) -> list[Energy]:
    """A form or several for every block and parameter that moves."""
    like = next(iter(tau.values()))
    moving = [block for block in source.blocks() if not tau.keys().isdisjoint(block.names)]
    held = {name for block in moving for name in block.names}
    layout: list[Block | str] = [*moving, *(name for name in tau if name not in held)]
    forms: list[list[Form]] = [[] for _ in layout]
    tasks = source.known()
    for task in tasks:
        tensors, share = task.read(), task.size / sum(each.size for each in tasks)
        for block, known in zip(layout, forms, strict=True):
            form = _form(block, tensors, share, len(tasks), merged, like)
            if form is not None:
                known[:] = _added(known, form) if merged else [*known, form]
    return [Energy(block, known) for block, known in zip(layout, forms, strict=True) if known]


def _form(
    block: Block | str, tensors: Mapping[str, Tensor], share: float, count: int, merged: bool, like: Tensor
) -> Form | None:
    """That of one task, with its share of all examples; so that ``count`` tasks of equal shares add up."""
    if isinstance(block, str):
        found = tensors.get(block)
        return None if found is None else Scaled(found.to(like) * (share * count))
    inner, outer, values, a, b = (
        None if (found := tensors.get(f"{block.weight}#{part}")) is None else found.to(like)
        for part in ("UA", "UB", "D", "A", "B")
    )
    if inner is not None and outer is not None and values is not None:
        return Turned(inner, outer, values * (share * count))
    if a is not None and b is not None:
        return Kronecker(a * (share if merged else share * count), b)
    return None


def _added(known: Sequence[Form], form: Form) -> list[Form]:
    """Forms of the same block as one where that is possible: factors add up, each on its side."""
    match known, form:
        case [Kronecker(inner, outer)], Kronecker(more_inner, more_outer):
            return [Kronecker(inner + more_inner, outer + more_outer)]
        case [Scaled(values)], Scaled(more):
            return [Scaled(values + more)]
    return [*known, form]
