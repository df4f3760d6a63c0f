"""Dual numbers whose primal is recorded by autograd while their tangents are not.

``torch.func.jvp`` records both or neither. Here one run of a model yields the value with its graph, for the
ordinary backward pass, and any number of tangents beside it, at the price of the tangents alone. Every torch
function that meets a :class:`Dual` is run on the primal, and its derivative on the tangents: by a registered
rule, or by forward mode for that one operation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from taskvec.tangent.forward import (
    NoRoute,
    NoTangent,
    differentiable,
    forward_mode,
    missing,
    on_plain_kernels,
)

Tangent = Tensor | None
Rule = Callable[..., Any]
"""``rule(func, *args, **kwargs)``: what ``func`` returns for arguments some of which are dual."""

RULES: dict[str, Rule] = {}
"""By the name of the torch function; filled by :func:`derivative_of`."""

_LEAVES = frozenset({"item", "tolist", "numpy", "__float__", "__int__", "__complex__", "__array__"})
_CONSTANT = frozenset(
    {"detach", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"}
    | {"new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"}
)
_SHAPE = frozenset(
    {"size", "dim", "numel", "ndimension", "stride", "__len__", "is_floating_point", "is_complex"}
)
_IN_PLACE = frozenset(
    {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__", "__iand__", "__ior__"}
)
_TRANSPOSED = frozenset({"T", "mT", "H", "mH", "real"})


class Dual(Tensor):
    """A value and its derivatives along several directions.

    Args:
        primal: any shape, floating point; may carry a graph.
        tangents: one a direction, of the primal's shape; None where the value does not change.
    """

    primal: Tensor
    tangents: tuple[Tangent, ...]
    shortcut: "Callable[[torch.dtype], Dual] | None"
    """How to have it in autocast's dtype, where there is a shorter way than a conversion."""
    cast: "Dual | None"
    """It in autocast's dtype, once some layer has asked for that."""

    @staticmethod
    def __new__(cls, primal: Tensor, tangents: Sequence[Tangent]) -> "Dual":  # noqa: D102
        made: Dual = Tensor._make_wrapper_subclass(
            cls, primal.shape, dtype=primal.dtype, device=primal.device, requires_grad=False
        )
        made.primal, made.tangents = primal, tuple(tangents)
        made.shortcut = made.cast = None
        return made

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        return f"Dual({tuple(self.primal.shape)}, {len(self.tangents)} directions)"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        if name == "__get__":
            return _attribute(func, args[0])
        if name in _CONSTANT or name in _SHAPE:
            return func(*primals(args), **primals(kwargs))
        _refuse(name, kwargs, args)
        if name == "__iter__":
            return iter(args[0].unbind(0))
        rule = RULES.get(name)
        return rule(func, *args, **kwargs) if rule else by_forward_mode(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, *rest: Any, **more: Any) -> Any:  # type: ignore[override]
        raise NoTangent(f"{func} was reached without its derivative")


def derivative_of(*names: str, operands: int = 0) -> Callable[[Rule], Rule]:
    """Register a rule for the torch functions of these names.

    Args:
        operands: how many the rule reads by place; where one of them comes by name, forward mode takes over.
    """

    def register(rule: Rule) -> Rule:
        def by_place(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            named = len(args) < operands or any(isinstance(leaf, Dual) for leaf in tree_leaves(kwargs))
            return by_forward_mode(func, args, kwargs) if named else rule(func, *args, **kwargs)

        RULES.update(dict.fromkeys(names, by_place if operands else rule))
        return rule

    return register


def primals(tree: Any) -> Any:
    """The same nest of arguments with the primal of every dual."""
    return tree_map_only(Dual, lambda dual: dual.primal, tree)


def primal(value: Any) -> Any:
    """The primal of a dual, and everything else as it is."""
    return value.primal if isinstance(value, Dual) else value


def map_tangents(derivative: Callable[..., Tangent], *values: Any) -> list[Tangent]:
    """``derivative`` of the values' tangents, once a direction; None stays None if all are."""
    directions = max(len(value.tangents) for value in values if isinstance(value, Dual))
    slopes = []
    with torch.no_grad():
        for place in range(directions):
            steps = [value.tangents[place] if isinstance(value, Dual) else None for value in values]
            slopes.append(derivative(*steps) if any(step is not None for step in steps) else None)
    return slopes


def sum_tangents(a: Tangent, b: Tangent) -> Tangent:
    """The sum; None is zero."""
    return b if a is None else a if b is None else a + b


def join(out: Any, tangents: Sequence[Any]) -> Any:
    """A dual of ``out``, a tensor or a sequence of them; a plain value where there is no tangent."""
    if isinstance(out, Tensor):
        if all(tangent is None for tangent in tangents):
            return out
        # Under autocast a branch that moves may be narrower than one that does not.
        return Dual(out, [None if tangent is None else tangent.to(out.dtype) for tangent in tangents])
    return type(out)(
        join(value, [None if of is None else of[place] for of in tangents]) for place, value in enumerate(out)
    )


def by_forward_mode(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Any operation: recorded once on the primals, then run once a direction in forward mode."""
    out = func(*primals(args), **primals(kwargs))
    values, spec = tree_flatten(out)
    if any(isinstance(value, Tensor) and value.is_complex() for value in values):
        raise NoTangent(f"{func.__name__!r} gives complex numbers")
    if not any(map(differentiable, values)):
        return out
    leaves, form = tree_flatten((args, kwargs))
    directions = max(len(leaf.tangents) for leaf in leaves if isinstance(leaf, Dual))

    def run(moved: Sequence[Any]) -> list[Any]:
        again, more = tree_unflatten(moved, form)
        return tree_flatten(func(*again, **more))[0]

    pushed = [_push(run, leaves, place, func.__name__) or [None] * len(values) for place in range(directions)]
    slopes = zip(*pushed, strict=True)
    return tree_unflatten(
        [
            join(value, of) if differentiable(value) else value
            for value, of in zip(values, slopes, strict=True)
        ],
        spec,
    )


def _push(
    run: Callable[[Sequence[Any]], list[Any]], leaves: Sequence[Any], place: int, name: str
) -> list[Tangent] | None:
    """The tangents of an operation's outputs along one direction; None if no input moves along it."""
    steps = [leaf.tangents[place] if isinstance(leaf, Dual) else None for leaf in leaves]
    if all(step is None for step in steps):
        return None
    with torch.no_grad(), forward_ad.dual_level(), forward_mode():
        moved = [primal(leaf).detach() if isinstance(leaf, Dual) else leaf for leaf in leaves]
        for at, step in enumerate(steps):
            if step is not None:
                moved[at] = forward_ad.make_dual(moved[at], step.to(moved[at].dtype))  # type: ignore[no-untyped-call]
        try:
            outs = on_plain_kernels(lambda: run(moved))
        except (NotImplementedError, RuntimeError) as error:
            raise missing(error, repr(name)) from None
        slopes = [_tangent(out) for out in outs]
        if any(differentiable(out) and slope is None for out, slope in zip(outs, slopes, strict=True)):
            raise NoTangent(f"{name!r} returned no tangent")
        return slopes


def _tangent(out: Any) -> Tangent:
    if not differentiable(out):
        return None
    tangent: Tangent = forward_ad.unpack_dual(out).tangent  # type: ignore[no-untyped-call]
    return tangent


def _attribute(getter: Any, dual: Dual) -> Any:
    name = getter.__self__.__name__
    if name in _TRANSPOSED:
        return join(getattr(dual.primal, name), map_tangents(lambda step: getattr(step, name), dual))
    return getattr(dual.primal, name)


def _refuse(name: str, kwargs: dict[str, Any], values: Sequence[Any]) -> None:
    """What would lose a derivative, or overwrite a value that a derivative needs."""
    in_place = name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
    if in_place or kwargs.get("inplace") or kwargs.get("out") is not None:
        raise NoTangent(f"{name!r} works in place; write it without")
    if name in _LEAVES:
        raise NoRoute(f"{name!r} takes a value out of the tensors, and its derivative with it")
    if not torch.is_grad_enabled() and any(v.primal.requires_grad for v in values if isinstance(v, Dual)):
        raise NoRoute(f"{name!r} runs under no_grad inside the model, which cuts its gradient")
