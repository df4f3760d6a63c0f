"""mergekit's merge methods in terms of our rules."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from taskvec.edits.mergekit.values import Parameter
from taskvec.errors import InputError

if TYPE_CHECKING:
    from taskvec.vectors import TaskVector

Base = Literal["start", "optional", "first", "model"]
Parameters = dict[str, Any]
"""The parameters of a rule of ours."""


@dataclass(frozen=True)
class Values:
    """The parameters of one tensor: those for all models, and those of each, in the order of the vectors."""

    name: str
    shared: Mapping[str, Any]
    of_models: tuple[Mapping[str, Any], ...]

    def each(self, parameter: str) -> list[Any]:
        """The values of the models."""
        return [values[parameter] for values in self.of_models]

    def shares(self) -> list[float]:
        """lambda w_t, divided by the sum of the weights if ``normalize`` says so and they have one."""
        weights = self.each("weight")
        total = sum(weights) if self.shared["normalize"] else 1.0
        factor = self.shared.get("lambda", 1.0) / (total if abs(total) >= 1e-8 else 1.0)
        return [weight * factor for weight in weights]


@dataclass(frozen=True)
class Method:
    """One of mergekit's methods.

    Attributes:
        rule: ours, which may depend on the values of all tensors.
        parameters: what the method takes.
        translate: the rule, and the values of one tensor -> the parameters of the rule.
        scale: the values of one tensor -> what the result of the rule is multiplied by.
        base: what the base model is. ``start``: the other models are task vectors from it. ``optional``:
            likewise, but without one the weights themselves are merged. ``first``: the first of two models
            whose weights are merged. ``model``: one model like any other.
        vectors: the least and the largest number of vectors.
        notes: where mergekit's result is another.
    """

    rule: str | Callable[[Sequence[Values]], str]
    parameters: Mapping[str, Parameter]
    translate: Callable[[str, Values], Parameters]
    scale: Callable[[Values], float] | None = None
    base: Base = "start"
    vectors: tuple[int, int | None] = (1, None)
    notes: tuple[str, ...] = ()

    def combine(self, vectors: Sequence["TaskVector"], values: Sequence[Values]) -> "TaskVector":
        """The merged vector, of task vectors and the values of every tensor."""
        from taskvec.vectors import combine

        rule = self.rule if isinstance(self.rule, str) else self.rule(values)
        params = {tensor.name: self.translate(rule, tensor) for tensor in values}
        first = next(iter(params.values()), {})
        varying = {name: given for name, given in params.items() if given != first}
        merged = combine(rule, vectors, each=varying or None, **first)
        if self.scale is None:
            return merged
        factors = {tensor.name: self.scale(tensor) for tensor in values}
        constant = len(set(factors.values())) == 1
        return next(iter(factors.values())) * merged if constant else merged.scaled(factors)


def _linear(_: str, values: Values) -> Parameters:
    if values.shared["normalize"] and abs(sum(values.each("weight"))) < 1e-8:
        raise InputError(
            f"linear: the weights of {values.name!r} add up to 0, expected a sum that is not zero; "
            "set normalize to false to add models without dividing"
        )
    return {"weights": values.shares()}


def _nuslerp(_: str, values: Values) -> Parameters:
    apart = "column" if values.shared["nuslerp_row_wise"] else "row"
    return {
        "weights": values.each("weight"),
        "per": "tensor" if values.shared["nuslerp_flatten"] else apart,
    }


def _total(values: Values) -> float:
    """The sum of the weights, by which the rule divides; it changes the norm of the result only."""
    return 1.0 if values.shared["normalize_weights"] else abs(sum(values.each("weight")))


# Vectors made sparse, then added, or merged by sign


def _chain(step: str, merge: str, values: Sequence[Values]) -> str:
    """The rule of a method: no first step if everything is kept, or if ``ties`` can trim by itself."""
    rescale = {tensor.shared["rescale"] for tensor in values}
    if all(density in (0, 1) for tensor in values for density in tensor.each("density")):
        return merge
    if step == "ties":
        return f"breadcrumbs+{merge}" if True in rescale else merge
    return f"della+{merge}" if step == "dare" and False in rescale else f"{step}+{merge}"


def _of_chain(method: str, rule: str, values: Values) -> Parameters:
    step, _, merge = rule.rpartition("+")
    # What is kept of each model; all, where the weight of a model without anything left is set to 0.
    density = [kept or 1.0 for kept in values.each("density")]
    params = _of_step(method, step, values, density) if step else {}
    # A model of density 0 adds nothing to this tensor; its weight counts in the sum that divides.
    weights = values.shares() if merge == "sum" else values.each("weight")
    weights = [weight if kept else 0.0 for weight, kept in zip(weights, values.each("density"), strict=True)]
    if merge == "sum":
        return {**params, "weights": weights}
    mean = "mean" if values.shared["normalize"] else "sum"
    return {**params, "merge": mean, "weights": weights, "keep": 1.0 if step else density}


def _of_step(method: str, step: str, values: Values, density: list[float]) -> Parameters:
    rescale = values.shared["rescale"]
    if step == "dare":
        return {"density": density}
    if method == "dare":
        return {"density": density, "epsilon": 0.0, "rescale": "element" if rescale else None}
    l1 = "l1" if rescale else None
    if step == "della":
        return {"density": density, "epsilon": values.each("epsilon"), "rescale": l1}
    # The outliers left in are as many as mergekit leaves in to reach the density.
    outliers = [own.get("gamma", 0.0) for own in values.of_models]
    gamma = [min(most, 1 - kept) for most, kept in zip(outliers, density, strict=True)]
    return {"density": density, "gamma": gamma, "rescale": l1}


def _sparse(step: str, parameters: Mapping[str, Parameter], note: str, *, merge: str = "sum") -> Method:
    return Method(
        partial(_chain, step, merge),
        parameters,
        partial(_of_chain, step),
        scale=None if merge == "sum" else lambda values: values.shared["lambda"],
        notes=(note,),
    )


# The table

_WEIGHT = Parameter(float, of="model")
_DENSITY = Parameter(float, 1.0, "model", low=0, high=1, above=True, off=0.0)
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


_PLAIN = _arithmetic(normalize=False, rescale=False)
_DARE = _arithmetic(normalize=False, rescale=True)
_CRUMBS = _arithmetic(normalize=False, rescale=False, gamma=Parameter(float, 0.01, "model", low=0, high=1))
_EPSILON = Parameter(float, 0.15, "model", low=0, high=0.5)

_COUNTED = "of n entries max(1, round(density n)) are kept, where mergekit keeps int(density n)"
DARE = (
    "what is kept is divided by the density, where mergekit matches the L1 norm of each tensor; "
    "random numbers are other than mergekit's, and do not depend on the order of tensors"
)
DELLA = "random numbers are other than mergekit's, and do not depend on the order of tensors"
_STOCK = (
    "a negative mean cosine gives the base, where mergekit steps away from the models; "
    "cosines are of the vectors however short, where mergekit's are too small below norms of 1e-3"
)
SCE = (
    "models are weighted by energy however small it is, where mergekit weighs them equally if their mean "
    "squares add up to less than 1e-6"
)
_FUSION = "quartiles are exact, where mergekit takes those of a sample of large tensors"

LACKING = ("core_space", "ram", "ramplus_tl")
"""Methods of mergekit that are not here."""

METHODS: dict[str, Method] = {
    "linear": Method("sum", {"weight": _WEIGHT, "normalize": Parameter(bool, True)}, _linear, base="model"),
    "task_arithmetic": Method("sum", _PLAIN, lambda _, values: {"weights": values.shares()}),
    "ties": _sparse("ties", _arithmetic(normalize=True, rescale=False), _COUNTED, merge="ties"),
    "dare_linear": _sparse("dare", _DARE, DARE),
    "dare_ties": _sparse("dare", _DARE, DARE, merge="ties"),
    "breadcrumbs": _sparse("breadcrumbs", _CRUMBS, _COUNTED),
    "breadcrumbs_ties": _sparse("breadcrumbs", _CRUMBS, _COUNTED, merge="ties"),
    "della": _sparse(
        "della", _arithmetic(normalize=True, rescale=True, epsilon=_EPSILON), DELLA, merge="ties"
    ),
    "della_linear": _sparse("della", _arithmetic(normalize=False, rescale=True, epsilon=_EPSILON), DELLA),
    "slerp": Method(
        "slerp",
        {"t": Parameter(float, low=0, high=1)},
        lambda _, values: {"t": values.shared["t"], "of": "vectors"},
        base="first",
        vectors=(2, 2),
    ),
    "nuslerp": Method(
        "nuslerp",
        {
            "weight": _WEIGHT,
            "nuslerp_flatten": Parameter(bool, True),
            "nuslerp_row_wise": Parameter(bool, False),
        },
        _nuslerp,
        base="optional",
        vectors=(2, 2),
    ),
    "multislerp": Method(
        "multislerp",
        {"weight": _WEIGHT, "normalize_weights": Parameter(bool, True)},
        lambda _, values: {"weights": values.each("weight")},
        scale=_total,
        base="optional",
    ),
    "karcher": Method(
        "karcher",
        {"max_iter": Parameter(int, 10, low=0), "tol": Parameter(float, 1e-5, low=0, above=True)},
        lambda _, values: {**values.shared, "of": "vectors"},
        base="model",
    ),
    "model_stock": Method(
        "model_stock",
        {"filter_wise": Parameter(bool, False)},
        lambda _, values: {"per": "row" if values.shared["filter_wise"] else "tensor"},
        vectors=(2, None),
        notes=(_STOCK,),
    ),
    "sce": Method(
        "sce",
        {"select_topk": Parameter(float, 1.0, low=0, high=1, above=True), **_IDLE},
        lambda _, values: {"select_topk": values.shared["select_topk"]},
        notes=(SCE,),
    ),
    "nearswap": Method(
        "nearswap",
        {"t": Parameter(float, low=0, above=True)},
        lambda _, values: {"t": values.shared["t"]},
        vectors=(1, 1),
    ),
    "arcee_fusion": Method("arcee_fusion", {}, lambda *_: {}, vectors=(1, 1), notes=(_FUSION,)),
    "passthrough": Method(
        "sum",
        {"scale": Parameter(float, 1.0, "model")},
        lambda _, values: {"weights": values.each("scale")},
        base="model",
        vectors=(1, 1),
    ),
}
