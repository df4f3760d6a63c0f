"""Task vectors that are made sparse first, then added or merged by sign."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taskvec.edits.mergekit.values import Table, Values, added, per_tensor, scaled, shares

if TYPE_CHECKING:
    from taskvec.vectors import TaskVector


def sparse_then(name: str, elect: bool, vectors: Sequence["TaskVector"], table: Table) -> "TaskVector":
    """Make each vector sparse, then add them or merge those that agree in sign."""
    step = _step(name, table)
    if not elect:
        if step is None:
            return added(vectors, table)
        params = {
            key: {**_sparse(name, step, values), "weights": shares(values)} for key, values in table.items()
        }
        return per_tensor(f"{step}+sum", vectors, params)
    keep = {key: _each(values, "density") if step is None else 1.0 for key, values in table.items()}
    params = {
        key: {**_sparse(name, step, values), **_election(values), "keep": keep[key]}
        for key, values in table.items()
    }
    merged = per_tensor(f"{step}+ties" if step else "ties", vectors, params)
    return scaled(merged, {key: values.shared["lambda"] for key, values in table.items()})


def _step(name: str, table: Table) -> str | None:
    """The rule that makes vectors sparse, unless all is kept or ``ties`` trims by itself."""
    rescale = {values.shared["rescale"] for values in table.values()}
    if all(density == 1 for values in table.values() for density in _each(values, "density")):
        return None
    if name == "ties":
        return "breadcrumbs" if True in rescale else None
    if name == "dare" and False in rescale:
        return "della"
    return name


def _sparse(name: str, step: str | None, values: Values) -> dict[str, Any]:
    """The parameters of the rule that makes vectors sparse."""
    density, rescale = _each(values, "density"), values.shared["rescale"]
    if step is None:
        return {}
    if step == "dare":
        return {"density": density}
    if name == "dare":
        return {"density": density, "epsilon": 0.0, "rescale": "element" if rescale else None}
    l1 = "l1" if rescale else None
    if step == "della":
        return {"density": density, "epsilon": _each(values, "epsilon"), "rescale": l1}
    # The outliers left in are as many as mergekit leaves in to reach the density.
    gamma = [min(own.get("gamma", 0.0), 1 - own["density"]) for own in values.own]
    return {"density": density, "gamma": gamma, "rescale": l1}


def _election(values: Values) -> dict[str, Any]:
    return {
        "merge": "mean" if values.shared["normalize"] else "sum",
        "weights": _each(values, "weight"),
    }


def _each(values: Values, name: str) -> list[Any]:
    return [own[name] for own in values.own]
