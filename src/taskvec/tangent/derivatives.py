"""Derivatives of the operations that transformers are made of.

A rule takes a torch function and its arguments, some of them dual, runs the function on the primals and
forms the tangents without a graph. The Jacobians of GELU, softmax and the plain part of layer norm are
symmetric, so their tangent is the fused backward kernel. What has no rule here goes through forward mode.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from taskvec.tangent.dual import (
    Dual,
    Tangent,
    by_forward_mode,
    derivative_of,
    join,
    map_tangents,
    primal,
    primals,
    sum_tangents,
)
from taskvec.tangent.forward import NoRoute

Operation = Callable[..., Any]
aten = torch.ops.aten

# fmt: off
_LINEAR_MAPS = (
    "view", "reshape", "transpose", "permute", "flatten", "unflatten", "squeeze", "unsqueeze", "expand",
    "expand_as", "view_as", "contiguous", "clone", "to", "float", "double", "half", "bfloat16", "type",
    "type_as", "__getitem__", "split", "chunk", "unbind", "select", "narrow", "index_select", "gather",
    "mean", "sum", "neg", "__neg__", "repeat", "repeat_interleave", "roll", "flip", "swapaxes",
    "swapdims", "movedim", "tile", "diagonal", "triu", "tril", "broadcast_to", "t", "cumsum", "unfold",
    "avg_pool2d", "adaptive_avg_pool2d",
)
_QUOTIENTS = ("div", "divide", "true_divide", "__truediv__")
_ELEMENTWISE = ("mul", "multiply", "__mul__", "__rmul__")
_SUMS = ("add", "sub", "subtract", "__add__", "__radd__", "__sub__", "__rsub__", "rsub")
# fmt: on


@derivative_of(*_LINEAR_MAPS, operands=1)
def _map_linearly(func: Operation, x: Any, *rest: Any, **options: Any) -> Any:
    """``func`` is linear in ``x``: its tangent is ``func`` of the tangent."""
    if func.__name__ not in ("expand_as", "view_as", "type_as") and any(isinstance(v, Dual) for v in rest):
        return by_forward_mode(func, (x, *rest), options)
    rest = primals(rest)
    if not isinstance(x, Dual):
        return func(x, *rest, **options)
    return join(func(x.primal, *rest, **options), map_tangents(lambda step: func(step, *rest, **options), x))


@derivative_of(*_QUOTIENTS, operands=2)
def _divide(func: Operation, a: Any, b: Any, **options: Any) -> Any:
    if isinstance(b, Dual) or options:
        return by_forward_mode(func, (a, b), options)
    return _map_linearly(func, a, b)


@derivative_of("dropout", "alpha_dropout", "feature_alpha_dropout")
def _skip_dropout(
    func: Operation, input: Any, p: float = 0.5, training: bool = True, *_: Any, **__: Any
) -> Any:
    if p and training:
        raise NoRoute("dropout is on, so the function is random; call .eval() on the model")
    return input


@derivative_of(*_SUMS, operands=2)
def _add(func: Operation, a: Any, b: Any, **options: Any) -> Any:
    out = func(primal(a), primal(b), **options)
    sign = -1 if func.__name__ in ("sub", "subtract", "__sub__") else 1
    factor = sign * options.get("alpha", 1)
    if func.__name__ in ("__rsub__", "rsub"):
        a, b, factor = b, a, -1

    def slope(da: Tangent, db: Tangent) -> Tensor:
        if db is None:
            assert da is not None
            return da.expand(out.shape)
        if da is None:
            return (db if factor == 1 else factor * db).expand(out.shape)
        return da + db if factor == 1 else da.add(db, alpha=factor)

    return join(out, map_tangents(slope, a, b))


@derivative_of(*_ELEMENTWISE, "matmul", "__matmul__", "bmm", "mm", operands=2)
def _multiply(func: Operation, a: Any, b: Any, **options: Any) -> Any:
    """Products of two factors: element-wise and of matrices."""
    a0, b0 = primal(a), primal(b)
    elementwise = func.__name__ in _ELEMENTWISE and isinstance(a0, Tensor)
    batched = func.__name__ not in _ELEMENTWISE and a0.ndim == b0.ndim == 3 and len(a0) == len(b0)

    def slope(da: Tangent, db: Tangent) -> Tangent:
        first = None if da is None else func(da, b0, **options)
        if db is None:
            return first
        if first is None:
            return func(a0, db, **options)  # type: ignore[no-any-return]
        if first.dtype == a0.dtype == db.dtype and (batched or elementwise):
            return (first.baddbmm_ if batched else first.addcmul_)(a0.detach(), db)  # type: ignore[no-any-return]
        return sum_tangents(first, func(a0, db, **options))

    return join(func(a0, b0, **options), map_tangents(slope, a, b))


@derivative_of("linear")
def _linear(func: Operation, input: Any, weight: Any, bias: Any = None) -> Any:
    x, w, b = map(_autocast, (input, weight, bias))
    x0, w0, b0 = primal(x), primal(w), primal(b)

    def slope(dx: Tangent, dw: Tangent, db: Tangent) -> Tensor:
        if dw is not None:
            total = F.linear(x0, dw, db)
            return total if dx is None else _add_product(total, dx, w0)
        if dx is not None:
            return F.linear(dx, w0, db)
        assert db is not None
        return db.expand(*x0.shape[:-1], len(db))

    return join(F.linear(x0, w0, b0), map_tangents(slope, x, w, b))


def _add_product(total: Tensor, dx: Tensor, weight: Tensor) -> Tensor:
    """``total + dx W^T`` in the memory of ``total``."""
    rows = total.view(-1, total.shape[-1])
    rows.addmm_(dx.reshape(-1, dx.shape[-1]), weight.detach().t())
    return total


@derivative_of("addmm")
def _addmm(func: Operation, bias: Any, *factors: Any, **options: Any) -> Any:
    """``bias + x @ weight``, the linear layer of GPT-2."""
    if options or len(factors) != 2 or primal(bias).ndim != 1:
        return by_forward_mode(func, (bias, *factors), options)
    x, weight = factors
    return _linear(F.linear, x, weight.t(), bias)


@derivative_of("embedding")
def _look_up(func: Operation, input: Tensor, weight: Any, *rest: Any, **options: Any) -> Any:
    if options.get("max_norm") is not None or rest[1:2] not in ((), (None,)):
        raise NoRoute("an embedding with max_norm rescales its weights in place")
    out = func(input, weight.primal, *rest, **options)
    return join(out, map_tangents(lambda step: F.embedding(input, step), weight))


@derivative_of("layer_norm")
def _layer_norm(
    func: Operation,
    input: Any,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    x0, w0, b0, shape = primal(input), primal(weight), primal(bias), list(normalized_shape)
    out, mean, rstd = torch.native_layer_norm(x0, shape, w0, b0, eps)

    def slope(dx: Tangent, dw: Tangent, db: Tangent) -> Tangent:
        total: Tangent = None
        if dx is not None:
            total = aten.native_layer_norm_backward(
                dx, x0, shape, mean, rstd, None, None, [True, False, False]
            )[0]
            total = total if w0 is None else total * w0
        if dw is not None:
            total = sum_tangents(total, (x0 - mean) * rstd * dw)
        if db is not None:
            total = db.expand(out.shape) if total is None else total + db
        return total

    return join(out, map_tangents(slope, input, weight, bias))


@derivative_of("softmax")
def _softmax(
    func: Operation,
    input: Any,
    dim: Any = None,
    *rest: Any,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Any:
    if dim is None:
        return by_forward_mode(func, (input, dim, *rest), {**options, "dtype": dtype})
    dtype = dtype or next((value for value in rest if isinstance(value, torch.dtype)), None)
    out = torch.softmax(input.primal, dim, dtype=dtype)

    def slope(step: Tensor) -> Tensor:
        moved: Tensor = aten._softmax_backward_data(step.to(out.dtype), out, dim, out.dtype)
        return moved

    return join(out, map_tangents(slope, input))


@derivative_of("scaled_dot_product_attention")
def _attend(
    func: Operation,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Scaled dot-product attention written out: the tangent needs the probabilities anyway."""
    if dropout_p:
        raise NoRoute("dropout is on in attention, so the function is random; call .eval() on the model")
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    mask = attn_mask
    outer, (rows, size), columns = query.shape[:-2], query.shape[-2:], key.shape[-2]
    scores = _matrices(query) @ (_matrices(key) * (scale or size**-0.5)).transpose(1, 2)
    if is_causal:
        mask = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.view(*outer, rows, columns)
        lowest = torch.finfo(scores.dtype).min
        scores = scores + mask if mask.dtype != torch.bool else scores.masked_fill(~mask, lowest)
        scores = scores.view(-1, rows, columns)
    weights = scores.softmax(-1)
    if mask is not None and mask.dtype == torch.bool and not bool((seen := mask.any(-1, keepdim=True)).all()):
        weights = (weights.view(*outer, rows, columns) * seen).view(-1, rows, columns)
    return (weights @ _matrices(value)).view(*outer, rows, value.shape[-1])


def _matrices(value: Any) -> Any:
    """All leading dimensions as one: batched products need them so, and would copy again at each use."""
    return value.reshape(-1, *value.shape[-2:])


@derivative_of("masked_fill", operands=1)
def _fill_masked(func: Operation, x: Any, *rest: Any, **options: Any) -> Any:
    if options or not isinstance(x, Dual) or isinstance(rest[1], Tensor):
        return by_forward_mode(func, (x, *rest), options)
    mask, value = rest
    return join(func(x.primal, mask, value), map_tangents(lambda step: func(step, mask, 0.0), x))


@derivative_of("cat", "concat", "concatenate", "stack", operands=1)
def _concatenate(func: Operation, values: Sequence[Any], *rest: Any, **options: Any) -> Any:
    out = func([primal(value) for value in values], *rest, **options)

    def slope(*steps: Tangent) -> Tensor:
        filled = [
            torch.zeros_like(primal(value)) if step is None else step
            for value, step in zip(values, steps, strict=True)
        ]
        joint: Tensor = func(filled, *rest, **options)
        return joint

    return join(out, map_tangents(slope, *values))


@derivative_of("gelu", operands=1)
def _gelu(func: Operation, x: Any, **options: Any) -> Any:
    out = func(x.primal, **options)
    return join(out, map_tangents(lambda step: aten.gelu_backward(step, x.primal, **options), x))


def _elementwise(name: str, backward: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """A function whose Jacobian is diagonal: its tangent is ``backward(step, input, output)``."""

    @derivative_of(name, operands=1)
    def apply(func: Operation, x: Any, *rest: Any, **options: Any) -> Any:
        out = func(x.primal, *rest, **options)
        return join(out, map_tangents(lambda step: backward(step, x.primal, out), x))


_elementwise("silu", lambda step, x, out: aten.silu_backward(step, x))
_elementwise("tanh", lambda step, x, out: aten.tanh_backward(step, out))
_elementwise("sigmoid", lambda step, x, out: aten.sigmoid_backward(step, out))
_elementwise("relu", lambda step, x, out: aten.threshold_backward(step, x, 0))


def _autocast(value: Any) -> Any:
    """What autocast would make of an operand of a linear layer; once, for all the layers that use it."""
    if value is None:
        return None
    device = value.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return value
    dtype = torch.get_autocast_dtype(device)
    if value.dtype in (dtype, torch.float64):
        return value
    if not isinstance(value, Dual):
        return value.to(dtype)
    if value.cast is None:
        value.cast = value.shortcut(dtype) if value.shortcut else value.to(dtype)  # type: ignore[assignment]
    return value.cast
