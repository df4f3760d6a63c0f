"""mergekit's merge methods in terms of our rules."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from taskvec.edits.mergekit.settings import Parameter
from taskvec.edits.mergekit.sparse import sparse_then
from taskvec.edits.mergekit.values import Table, Values, added, per_tensor, scaled, shares, weighted
from taskvec.errors import InputError

if TYPE_CHECKING:
    from taskvec.vectors import TaskVector


Combine = Callable[[Sequence["TaskVector"], Table], "TaskVector"]
Base = Literal["start", "optional", "first", "model"]


@dataclass(frozen=True)
class Method:
    """One of mergekit's methods.

    Attributes:
        combine: task vectors and the parameters of every tensor -> the merged vector.
        base: what the base model is. ``start``: the other models are task vectors from it. ``optional``:
            likewise, but without one the weights themselves are merged. ``first``: the first of two models
            whose weights are merged. ``model``: one model like any other.
        vectors: the least and the largest number of vectors.
        notes: where mergekit's result is another; said to the user.
    """

    combine: Combine
    parameters: Mapping[str, Parameter]
    base: Base = "start"
    vectors: tuple[int, int | None] = (1, None)
    notes: tuple[str, ...] = ()


# Linear methods


def _linear(vectors: Sequence["TaskVector"], table: Table) -> "TaskVector":
    for name, values in table.items():
        if values.shared["normalize"] and abs(sum(own["weight"] for own in values.own)) < 1e-8:
            raise InputError(
                f"linear: the weights of {name!r} add up to 0, expected a sum that is not zero; "
                "set normalize to false to add models without dividing"
            )
    return weighted(vectors, {name: shares(values) for name, values in table.items()})


def _passthrough(vectors: Sequence["TaskVector"], table: Table) -> "TaskVector":
    return weighted(vectors, {name: [values.own[0]["scale"]] for name, values in table.items()})


# Methods on a sphere, and others with a rule of their own


def _slerp(vectors: Sequence["TaskVector"], table: Table) -> "TaskVector":
    params = {name: {"t": values.shared["t"], "of": "vectors"} for name, values in table.items()}
    return per_tensor("slerp", vectors, params)


def _nuslerp(vectors: Sequence["TaskVector"], table: Table) -> "TaskVector":
    def params(values: Values) -> dict[str, Any]:
        shared = values.shared
        apart = "column" if shared["nuslerp_row_wise"] else "row"
        per = "tensor" if shared["nuslerp_flatten"] else apart
        return {"weights": [own["weight"] for own in values.own], "per": per}

    return per_tensor("nuslerp", vectors, {name: params(values) for name, values in table.items()})


def _multislerp(vectors: Sequence["TaskVector"], table: Table) -> "TaskVector":
    weights = {name: [own["weight"] for own in values.own] for name, values in table.items()}
    merged = per_tensor("multislerp", vectors, {name: {"weights": own} for name, own in weights.items()})
    # The rule divides by the sum of the weights, which carries over to the norm alone.
    totals = {
        name: 1.0 if values.shared["normalize_weights"] else abs(sum(weights[name]))
        for name, values in table.items()
    }
    return scaled(merged, totals)


def _karcher(vectors: Sequence["TaskVector"], table: Table) -> "TaskVector":
    params = {name: {**values.shared, "of": "vectors"} for name, values in table.items()}
    return per_tensor("karcher", vectors, params)


def _model_stock(vectors: Sequence["TaskVector"], table: Table) -> "TaskVector":
    params = {
        name: {"per": "row" if values.shared["filter_wise"] else "tensor"} for name, values in table.items()
    }
    return per_tensor("model_stock", vectors, params)


def _named(rule: str, names: Sequence[str], vectors: Sequence["TaskVector"], table: Table) -> "TaskVector":
    """A rule whose parameters have the same names."""
    return per_tensor(rule, vectors, {key: {n: v.shared[n] for n in names} for key, v in table.items()})


# The table

_WEIGHT = Parameter(float, of="model")
_DENSITY = Parameter(float, 1.0, "model", low=0, high=1, above=True)
_IDLE = {"int8_mask": Parameter(bool, False)}


def _arithmetic(*, normalize: bool, rescale: bool, **more: Parameter) -> dict[str, Parameter]:
    return {
        "weight": _WEIGHT,
        "density": _DENSITY,
        **more,
        "lambda": Parameter(float, 1.0),
        "normalize": Parameter(bool, normalize),
        "rescale": Parameter(bool, rescale),
        **_IDLE,
    }


def _sparse(rule: str, parameters: Mapping[str, Parameter], note: str, *, elect: bool = False) -> Method:
    """Vectors made sparse by a rule, then added, or merged by sign."""
    return Method(partial(sparse_then, rule, elect), parameters, notes=(note,))


_CRUMBS = _arithmetic(normalize=False, rescale=False, gamma=Parameter(float, 0.01, "model", low=0, high=1))
_EPSILON = Parameter(float, 0.15, "model", low=0, high=0.5)

COUNTED = "of n entries max(1, round(density n)) are kept, where mergekit keeps int(density n)"
DARE = (
    "what is kept is divided by the density, where mergekit matches the L1 norm of each tensor; "
    "random numbers are other than mergekit's, and do not depend on the order of tensors"
)
DELLA = "random numbers are other than mergekit's, and do not depend on the order of tensors"
STOCK = (
    "a negative mean cosine gives the base, where mergekit steps away from the models; "
    "cosines are of the vectors however short, where mergekit's are too small below norms of 1e-3"
)
SCE = (
    "models are weighted by energy however small it is, where mergekit weighs them equally if their mean "
    "squares add up to less than 1e-6"
)
FUSION = "quartiles are exact, where mergekit takes those of a sample of large tensors"

METHODS: dict[str, Method] = {
    "linear": Method(_linear, {"weight": _WEIGHT, "normalize": Parameter(bool, True)}, "model"),
    "task_arithmetic": Method(added, _arithmetic(normalize=False, rescale=False)),
    "ties": _sparse("ties", _arithmetic(normalize=True, rescale=False), COUNTED, elect=True),
    "dare_linear": _sparse("dare", _arithmetic(normalize=False, rescale=True), DARE),
    "dare_ties": _sparse("dare", _arithmetic(normalize=False, rescale=True), DARE, elect=True),
    "breadcrumbs": _sparse("breadcrumbs", _CRUMBS, COUNTED),
    "breadcrumbs_ties": _sparse("breadcrumbs", _CRUMBS, COUNTED, elect=True),
    "della": _sparse("della", _arithmetic(normalize=True, rescale=True, epsilon=_EPSILON), DELLA, elect=True),
    "della_linear": _sparse("della", _arithmetic(normalize=False, rescale=True, epsilon=_EPSILON), DELLA),
    "slerp": Method(_slerp, {"t": Parameter(float, low=0, high=1)}, "first", (2, 2)),
    "nuslerp": Method(
        _nuslerp,
        {
            "weight": _WEIGHT,
            "nuslerp_flatten": Parameter(bool, True),
            "nuslerp_row_wise": Parameter(bool, False),
        },
        "optional",
        (2, 2),
    ),
    "multislerp": Method(
        _multislerp, {"weight": _WEIGHT, "normalize_weights": Parameter(bool, True)}, "optional"
    ),
    "karcher": Method(
        _karcher,
        {"max_iter": Parameter(int, 10, low=0), "tol": Parameter(float, 1e-5, low=0, above=True)},
        "model",
    ),
    "model_stock": Method(
        _model_stock, {"filter_wise": Parameter(bool, False)}, vectors=(2, None), notes=(STOCK,)
    ),
    "sce": Method(
        partial(_named, "sce", ("select_topk",)),
        {"select_topk": Parameter(float, 1.0, low=0, high=1, above=True), **_IDLE},
        notes=(SCE,),
    ),
    "nearswap": Method(
        partial(_named, "nearswap", ("t",)),
        {"t": Parameter(float, low=0, above=True)},
        vectors=(1, 1),
    ),
    "arcee_fusion": Method(partial(_named, "arcee_fusion", ()), {}, vectors=(1, 1), notes=(FUSION,)),
    "passthrough": Method(_passthrough, {"scale": Parameter(float, 1.0, "model")}, "model", (1, 1)),
}
