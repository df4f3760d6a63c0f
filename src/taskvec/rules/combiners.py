"""Combiners as rules: task vectors weighed by their inner products, over a model, a layer or a tensor.

Each combiner of ``taskvec.combiners`` but ``sum`` and ``mean``, which are rules already, is a rule of its
name, with its parameters, with ``per`` and, if it draws, with ``seed``.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
import xxhash
from torch import Tensor

from taskvec.combiners import COMBINERS, Combiner
from taskvec.errors import NonFinite
from taskvec.names import layer_label
from taskvec.rules import sum as addition
from taskvec.rules.draws import uniform
from taskvec.rules.rule import ANYWHERE, Place, Rule, Seed, Stacks

Per = Literal["model", "layer", "tensor"]
_OF_SUMS = 0.3  # as of the rule ``sum``, which these are where no vectors conflict
_PER = "per: whether inner products are those of the whole ``model``, of each ``layer``, of each ``tensor``."
_SEED = "seed: of the random numbers."


def weighing(combiner: Combiner) -> Rule:
    """The rule that weighs task vectors as the combiner weighs gradients."""
    seed = [_keyword("seed", Seed, 0)] if combiner.draws else []
    own = [*combiner.keywords.values(), _keyword("per", Per, "model"), *seed]
    function = _taking([*own, _keyword("_weights", Sequence[float])], _weigh)
    function.__doc__ = _described(combiner, [_PER, *([_SEED] if seed else [])])
    return Rule(
        combiner.name,
        function,
        "model",
        measure_model=_taking(own, partial(_measure_model, combiner)),
        measure_tensor=partial(_measure_tensor, combiner),
        check=partial(_check, combiner),
        copies=(4, 9),  # inner products are taken in float64
        coefficient=_OF_SUMS if combiner.sums else 1.0,
        breaks=combiner.breaks,
    )


def of_entries(combiner: Combiner) -> Rule:
    """The rule that combines single entries as the combiner does."""
    own = [_keyword("seed", Seed, 0), _keyword("_place", Place, ANYWHERE)]
    function = _taking(own, partial(_by_entries, combiner))
    function.__doc__ = _described(combiner, [_SEED])
    return Rule(combiner.name, function, "element", copies=(4, 14), coefficient=_OF_SUMS)


def _weigh(deltas: Tensor, *, _weights: Sequence[float], **_: Any) -> Tensor:
    return addition.weighted(deltas, _weights)


def _by_entries(combiner: Combiner, deltas: Tensor, *, seed: int = 0, _place: Place = ANYWHERE) -> Tensor:
    return combiner.merge(deltas, uniform(seed, _place, deltas.shape[1:]))


def _measure_model(
    combiner: Combiner, stacks: Stacks, *, per: Per, seed: int = 0, **settings: Any
) -> Mapping[str, Mapping[str, Any]] | None:
    """The weights at each tensor, unless they are those of the tensor alone."""
    if per == "tensor":
        return None
    groups = {name: layer_label(name) if per == "layer" else "" for name in stacks.changed}
    grams: dict[str, Tensor] = {}
    for name, group in groups.items():
        gram = _gram(combiner, stacks, name)
        grams[group] = grams[group] + gram if group in grams else gram
    weights = {group: _weights(combiner, gram, group, seed, settings) for group, gram in grams.items()}
    return {name: {"_weights": weights[group]} for name, group in groups.items()}


def _measure_tensor(
    combiner: Combiner, stacks: Stacks, name: str, *, per: Per, seed: int = 0, **settings: Any
) -> Mapping[str, Any] | None:
    if per != "tensor":
        return None
    return {"_weights": _weights(combiner, _gram(combiner, stacks, name), name, seed, settings)}


def _gram(combiner: Combiner, stacks: Stacks, name: str) -> Tensor:
    """Inner products of the task vectors at one tensor, (task, task) float64."""
    gram = torch.stack([_products(deltas) for deltas, _ in stacks.pieces_of(name)]).sum(0)
    if not gram.isfinite().all():
        task = int((~gram.diagonal().isfinite()).nonzero()[0])
        raise NonFinite(
            f"rule {combiner.name!r}: entries of task vector {task + 1} are NaN, infinite or too large in "
            f"{name!r}, expected finite ones"
        )
    return gram


def _products(deltas: Tensor) -> Tensor:
    rows = deltas.reshape(len(deltas), -1).double()
    return rows @ rows.T


def _weights(
    combiner: Combiner, gram: Tensor, group: str, seed: int, settings: Mapping[str, Any]
) -> list[float]:
    """The weights of a group of tensors; what is drawn belongs to it."""
    drawn = xxhash.xxh3_64_intdigest(f"{seed}/{group}".encode())
    return combiner.with_params(_own(combiner, settings)).chosen(gram, drawn).tolist()


def _check(combiner: Combiner, tasks: int | None, **settings: Any) -> str | None:
    return combiner.check(tasks, **_own(combiner, settings)) if combiner.check else None


def _own(combiner: Combiner, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key in combiner.keywords}


def _keyword(name: str, kind: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _taking(keywords: Iterable[inspect.Parameter], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with these keyword parameters in its signature, which is where a rule's are read."""

    def call(deltas: Any, **values: Any) -> Any:
        return function(deltas, **values)

    first = inspect.Parameter("deltas", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    call.__signature__ = inspect.Signature([first, *keywords])  # type: ignore[attr-defined]
    return call


def _described(combiner: Combiner, parameters: Sequence[str]) -> str:
    """What the combiner says of itself, with more parameters."""
    lines = "".join(f"    {line}\n" for line in parameters)
    text = inspect.getdoc(combiner.function) or ""
    if "\nArgs:\n" in text:
        return text.replace("\nArgs:\n", f"\nArgs:\n{lines}")
    before, source, after = text.rpartition("\nSource:")
    return f"{before}\n\nArgs:\n{lines}{source}{after}"


PCGRAD = weighing(COMBINERS["pcgrad"])
WPCGRAD = weighing(COMBINERS["wpcgrad"])
MGDA = weighing(COMBINERS["mgda"])
UPGRAD = weighing(COMBINERS["upgrad"])
DUALPROJ = weighing(COMBINERS["dualproj"])
CAGRAD = weighing(COMBINERS["cagrad"])
NASH_MTL = weighing(COMBINERS["nash_mtl"])
ALIGNED_MTL = weighing(COMBINERS["aligned_mtl"])
IMTL_G = weighing(COMBINERS["imtl_g"])
CONFIG = weighing(COMBINERS["config"])
COSINE = weighing(COMBINERS["cosine"])
GRADDROP = of_entries(COMBINERS["graddrop"])
