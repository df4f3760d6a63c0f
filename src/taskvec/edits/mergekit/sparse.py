"""Task vectors that are made sparse first, then added or merged by sign."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskvec.edits.mergekit.values import Table, Values, added, per_tensor, scaled, shares
from taskvec.errors import InputError

if TYPE_CHECKING:
    from taskvec.vectors import TaskVector

Step = tuple[str, Callable[[Mapping[str, Any], bool], dict[str, Any]]]
"""A rule for each vector, and its parameters from those of a model and whether to rescale."""


def _trimmed(own: Mapping[str, Any], rescale: bool) -> dict[str, Any]:
    return {"density": own["density"], "gamma": 0.0}


def _masked(own: Mapping[str, Any], rescale: bool) -> dict[str, Any]:
    # The outliers left in are as many as mergekit leaves in to reach the density.
    return {"density": own["density"], "gamma": min(own["gamma"], 1 - own["density"])}


def _dropped(own: Mapping[str, Any], rescale: bool) -> dict[str, Any]:
    return {"density": own["density"]}


def _dropped_unscaled(own: Mapping[str, Any], rescale: bool) -> dict[str, Any]:
    return {"density": own["density"], "epsilon": 0.0, "rescale": "element" if rescale else None}


def _pruned(own: Mapping[str, Any], rescale: bool) -> dict[str, Any]:
    return {"density": own["density"], "epsilon": own["epsilon"], "rescale": "l1" if rescale else None}


def sparse_then(name: str, elect: bool, vectors: Sequence["TaskVector"], table: Table) -> "TaskVector":
    """Make each vector sparse, then add them or merge those that agree in sign."""
    step = _step(name, table)
    merge = {
        name: _election(values) if elect else {"weights": shares(values)} for name, values in table.items()
    }
    rule = "ties" if elect else "sum"
    if step is None:
        merged = per_tensor(rule, vectors, merge) if elect else added(vectors, table)
    elif _alike(table):
        merged = _in_one(step, rule, vectors, table, merge)
    else:
        thinned = [_made_sparse(step, place, vector, table) for place, vector in enumerate(vectors)]
        merged = per_tensor(rule, thinned, merge) if elect else added(thinned, table)
    if not elect:
        return merged
    return scaled(merged, {name: values.shared["lambda"] for name, values in table.items()})


def _step(name: str, table: Table) -> Step | None:
    """The first step of a method, unless it keeps everything."""
    rescale = {values.shared["rescale"] for values in table.values()}
    if True in rescale and name in ("ties", "breadcrumbs"):
        raise InputError(
            f"{name}: rescale: true is not supported, only methods that drop at random rescale; leave it out"
        )
    if all(own["density"] == 1 for values in table.values() for own in values.own):
        return None
    if name == "dare" and False in rescale:
        return "della", _dropped_unscaled
    return _STEPS[name]


_STEPS: dict[str, Step] = {
    "ties": ("breadcrumbs", _trimmed),
    "dare": ("dare", _dropped),
    "breadcrumbs": ("breadcrumbs", _masked),
    "della": ("della", _pruned),
}


def _election(values: Values) -> dict[str, Any]:
    return {
        "keep": 1.0,
        "merge": "mean" if values.shared["normalize"] else "sum",
        "weights": [own["weight"] for own in values.own],
    }


def _alike(table: Table) -> bool:
    """Whether all models have the same parameters beside their weights."""
    return all(
        _beside_weight(own) == _beside_weight(values.own[0])
        for values in table.values()
        for own in values.own
    )


def _beside_weight(own: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in own.items() if name != "weight"}


def _in_one(
    step: Step,
    rule: str,
    vectors: Sequence["TaskVector"],
    table: Table,
    merge: Mapping[str, Mapping[str, Any]],
) -> "TaskVector":
    """One chain of rules, where all vectors are made sparse alike."""
    first, parameters = step
    if parameters is _trimmed:
        kept = {name: {**merge[name], "keep": values.own[0]["density"]} for name, values in table.items()}
        return per_tensor("ties", vectors, kept)
    both = {
        name: {**merge[name], **parameters(values.own[0], values.shared["rescale"])}
        for name, values in table.items()
    }
    return per_tensor(f"{first}+{rule}", vectors, both)


def _made_sparse(step: Step, place: int, vector: "TaskVector", table: Table) -> "TaskVector":
    rule, parameters = step
    seed = {} if rule == "breadcrumbs" else {"seed": place}
    own = {
        name: {**parameters(values.own[place], values.shared["rescale"]), **seed}
        for name, values in table.items()
    }
    return per_tensor(rule, [vector], own)
