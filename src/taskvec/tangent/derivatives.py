"""Derivatives of the operations that transformers are made of.

A rule takes a torch function and its arguments, some of them dual, runs the function on the primals and
forms the tangents without a graph. The Jacobians of GELU, softmax and the plain part of layer norm are
symmetric, so their tangent is the fused backward kernel. What has no rule here goes through forward mode.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from taskvec.tangent.dual import Dual, Tangent, by_forward_mode, each, joined, primal, primals
from taskvec.tangent.forward import NoRoute

Rule = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
aten = torch.ops.aten


def _linear_map(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``func`` is linear in its first argument: its tangent is ``func`` of the tangent."""
    if any(isinstance(value, Dual) for value in args[1:]) and func.__name__ not in (
        "expand_as",
        "view_as",
        "type_as",
    ):
        return by_forward_mode(func, args, kwargs)
    rest, more = primals(args[1:]), primals(kwargs)
    if not isinstance(args[0], Dual):
        return func(args[0], *rest, **more)
    return joined(func(args[0].primal, *rest, **more), each(lambda step: func(step, *rest, **more), args[0]))


def _dropout(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    values = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
    if values.get("p", 0.5) and values.get("training", True):
        raise NoRoute("dropout is on, so the function is random; call .eval() on the model")
    return values["input"]


def _add(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    a, b = args
    out = func(primal(a), primal(b), **kwargs)
    sign = -1 if func.__name__ in ("sub", "subtract", "__sub__") else 1
    factor = sign * kwargs.get("alpha", 1)
    if func.__name__ in ("__rsub__", "rsub"):
        a, b, factor = b, a, -1

    def slope(da: Tangent, db: Tangent) -> Tensor:
        if db is None:
            assert da is not None
            return da.expand(out.shape)
        if da is None:
            return (db if factor == 1 else factor * db).expand(out.shape)
        return da + db if factor == 1 else da.add(db, alpha=factor)

    return joined(out, each(slope, a, b))


def _product(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Products of two factors: element-wise and of matrices."""
    a, b = args
    a0, b0 = primal(a), primal(b)
    elementwise = func.__name__ in _ELEMENTWISE and isinstance(a0, Tensor)
    batched = func.__name__ not in _ELEMENTWISE and a0.ndim == b0.ndim == 3 and len(a0) == len(b0)

    def slope(da: Tangent, db: Tangent) -> Tangent:
        first = None if da is None else func(da, b0, **kwargs)
        if db is None:
            return first
        if first is None:
            return func(a0, db, **kwargs)  # type: ignore[no-any-return]
        if first.dtype == a0.dtype == db.dtype and (batched or elementwise):
            return (first.baddbmm_ if batched else first.addcmul_)(a0.detach(), db)  # type: ignore[no-any-return]
        return _total(first, func(a0, db, **kwargs))

    return joined(func(a0, b0, **kwargs), each(slope, a, b))


def _quotient(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(args[1], Dual) or kwargs:
        return by_forward_mode(func, args, kwargs)
    return _linear_map(func, args, kwargs)


def _linear(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def read(input: Any, weight: Any, bias: Any = None) -> tuple[Any, Any, Any]:
        return input, weight, bias

    x, w, b = map(_autocast, read(*args, **kwargs))
    x0, w0, b0 = primal(x), primal(w), primal(b)

    def slope(dx: Tangent, dw: Tangent, db: Tangent) -> Tensor:
        if dw is not None:
            total = F.linear(x0, dw, db)
            return total if dx is None else _plus_product(total, dx, w0)
        if dx is not None:
            return F.linear(dx, w0, db)
        assert db is not None
        return db.expand(*x0.shape[:-1], len(db))

    return joined(F.linear(x0, w0, b0), each(slope, x, w, b))


def _plus_product(total: Tensor, dx: Tensor, weight: Tensor) -> Tensor:
    """``total + dx W^T`` in the memory of ``total``."""
    rows = total.view(-1, total.shape[-1])
    rows.addmm_(dx.reshape(-1, dx.shape[-1]), weight.detach().t())
    return total


def _addmm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``bias + x @ weight``, the linear layer of GPT-2."""
    if kwargs or len(args) != 3:
        return by_forward_mode(func, args, kwargs)
    bias, x, weight = args
    transposed = weight.t()
    return (
        _linear(F.linear, (x, transposed, bias), {})
        if primal(bias).ndim == 1
        else by_forward_mode(func, args, kwargs)
    )


def _convolution(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def read(input: Any, weight: Any, bias: Any = None, *rest: Any, **more: Any) -> Any:
        return (input, weight, bias), rest, more

    (x, w, b), rest, more = read(*args, **kwargs)
    x0, w0, b0 = primal(x), primal(w), primal(b)
    if func.__name__ == "conv2d" and _tiles(x, w, *rest, **more):
        return _patches(x, w, b)

    def slope(dx: Tangent, dw: Tangent, db: Tangent) -> Tangent:
        moved = None if dx is None else func(dx, w0, None, *rest, **more)
        turned = None if dw is None else func(x0, dw, db, *rest, **more)
        if dw is None and db is not None:
            turned = db.view(-1, *[1] * (out.ndim - 2)).expand(out.shape)
        return _total(moved, turned)

    out = func(x0, w0, b0, *rest, **more)
    return joined(out, each(slope, x, w, b))


def _tiles(x: Any, w: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> bool:
    """Whether the kernel's places tile the image, as in the first layer of a vision transformer."""
    kernel = tuple(w.shape[2:])
    return bool(
        x.ndim == 4
        and groups == 1
        and tuple(_pair(stride)) == kernel
        and padding in (0, (0, 0), [0, 0], "valid")
        and tuple(_pair(dilation)) == (1, 1)
    )


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


def _patches(x: Any, w: Any, b: Any) -> Any:
    """A convolution over tiles as one linear layer, whose backward pass needs no workspace."""
    (n, channels), (high, wide) = x.shape[:2], w.shape[2:]
    tall, broad = x.shape[2] // high, x.shape[3] // wide
    tiles = x[:, :, : tall * high, : broad * wide].reshape(n, channels, tall, high, broad, wide)
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).reshape(n, tall * broad, channels * high * wide)
    return F.linear(tiles, w.flatten(1), b).transpose(1, 2).reshape(n, len(w), tall, broad)


def _embedding(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def read(input: Tensor, weight: Any, *rest: Any, **more: Any) -> Any:
        return input, weight, rest, more

    ids, weight, rest, more = read(*args, **kwargs)
    if more.get("max_norm") is not None or rest[1:2] not in ((), (None,)):
        raise NoRoute("an embedding with max_norm rescales its weights in place")
    return joined(func(ids, weight.primal, *rest, **more), each(lambda step: F.embedding(ids, step), weight))


def _layer_norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def read(
        input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
    ) -> Any:
        return input, list(normalized_shape), weight, bias, eps

    x, shape, w, b, eps = read(*args, **kwargs)
    x0, w0, b0 = primal(x), primal(w), primal(b)
    out, mean, rstd = torch.native_layer_norm(x0, shape, w0, b0, eps)

    def slope(dx: Tangent, dw: Tangent, db: Tangent) -> Tangent:
        total: Tangent = None
        if dx is not None:
            total = aten.native_layer_norm_backward(
                dx, x0, shape, mean, rstd, None, None, [True, False, False]
            )[0]
            total = total if w0 is None else total * w0
        if dw is not None:
            total = _total(total, (x0 - mean) * rstd * dw)
        if db is not None:
            total = db.expand(out.shape) if total is None else total + db
        return total

    return joined(out, each(slope, x, w, b))


def _softmax(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def read(input: Any, dim: Any = None, *rest: Any, dtype: torch.dtype | None = None, **more: Any) -> Any:
        typed = [value for value in rest if isinstance(value, torch.dtype)]
        return input, dim, dtype or (typed[0] if typed else None)

    x, dim, dtype = read(*args, **kwargs)
    if dim is None:
        return by_forward_mode(func, args, kwargs)
    out = torch.softmax(x.primal, dim, dtype=dtype)

    def slope(step: Tensor) -> Tensor:
        moved: Tensor = aten._softmax_backward_data(step.to(out.dtype), out, dim, out.dtype)
        return moved

    return joined(out, each(slope, x))


def _attention(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Scaled dot-product attention written out: the tangent needs the probabilities anyway."""

    def read(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        if dropout_p:
            raise NoRoute("dropout is on in attention, so the function is random; call .eval() on the model")
        if enable_gqa:
            times = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
        return query, key, value, attn_mask, is_causal, scale

    query, key, value, mask, causal, scale = read(*args, **kwargs)
    outer, (rows, size), columns = query.shape[:-2], query.shape[-2:], key.shape[-2]
    scores = _matrices(query) @ (_matrices(key) * (scale or size**-0.5)).transpose(1, 2)
    if causal:
        mask = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.view(*outer, rows, columns)
        scores = scores + mask if mask.dtype != torch.bool else _where(mask, scores)
        scores = scores.view(-1, rows, columns)
    weights = scores.softmax(-1)
    if mask is not None and mask.dtype == torch.bool and not bool((seen := mask.any(-1, keepdim=True)).all()):
        weights = (weights.view(*outer, rows, columns) * seen).view(-1, rows, columns)
    return (weights @ _matrices(value)).view(*outer, rows, value.shape[-1])


def _matrices(value: Any) -> Any:
    """All leading dimensions as one: batched products need them so, and would copy again at each use."""
    return value.reshape(-1, *value.shape[-2:])


def _where(mask: Tensor, scores: Any) -> Any:
    return scores.masked_fill(mask.logical_not(), torch.finfo(scores.dtype).min)


def _masked_fill(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if len(args) != 3 or isinstance(args[2], Tensor) or not isinstance(args[0], Dual):
        return by_forward_mode(func, args, kwargs)
    x, mask, value = args
    return joined(func(x.primal, mask, value), each(lambda step: func(step, mask, 0.0), x))


def _concatenation(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    values, *rest = args
    out = func([primal(value) for value in values], *rest, **kwargs)

    def slope(*steps: Tangent) -> Tensor:
        filled = [
            torch.zeros_like(primal(value)) if step is None else step
            for value, step in zip(values, steps, strict=True)
        ]
        joint: Tensor = func(filled, *rest, **kwargs)
        return joint

    return joined(out, each(slope, *values))


def _gelu(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x0 = args[0].primal
    return joined(func(x0, **kwargs), each(lambda step: aten.gelu_backward(step, x0, **kwargs), args[0]))


def _elementwise(backward: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Rule:
    """Rule of a function whose Jacobian is diagonal: the tangent is ``backward(step, input, output)``."""

    def rule(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x0 = args[0].primal
        out = func(x0, *args[1:], **kwargs)
        return joined(out, each(lambda step: backward(step, x0, out), args[0]))

    return _placed(rule)


def _placed(rule: Rule, operands: int = 1) -> Rule:
    """``rule``, which reads so many operands by place; where they come by name, forward mode."""

    def placed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        named = len(args) < operands or any(isinstance(leaf, Dual) for leaf in tree_leaves(kwargs))
        return by_forward_mode(func, args, kwargs) if named else rule(func, args, kwargs)

    return placed


def _total(a: Tangent, b: Tangent) -> Tangent:
    return b if a is None else a if b is None else a + b


def _autocast(value: Any) -> Any:
    """What autocast would make of an operand of a linear layer; once, for all the layers that use it."""
    if value is None:
        return None
    device = value.device.type
    dtype = torch.get_autocast_dtype(device)
    if not torch.is_autocast_enabled(device) or value.dtype in (dtype, torch.float64):
        return value
    if not isinstance(value, Dual):
        return value.to(dtype)
    if value.cast is None:
        value.cast = value.shortcut(dtype) if value.shortcut else value.to(dtype)  # type: ignore[assignment]
    return value.cast


_ELEMENTWISE = ("mul", "multiply", "__mul__", "__rmul__")

# fmt: off
_LINEAR_MAPS = (
    "view", "reshape", "transpose", "permute", "flatten", "unflatten", "squeeze", "unsqueeze", "expand",
    "expand_as", "view_as", "contiguous", "clone", "to", "float", "double", "half", "bfloat16", "type",
    "type_as", "__getitem__", "split", "chunk", "unbind", "select", "narrow", "index_select", "gather",
    "mean", "sum", "neg", "__neg__", "repeat", "repeat_interleave", "roll", "flip", "swapaxes",
    "swapdims", "movedim", "tile", "diagonal", "triu", "tril", "broadcast_to", "t", "cumsum", "unfold",
)
# fmt: on

RULES: dict[str, Rule] = {
    **dict.fromkeys(_LINEAR_MAPS, _placed(_linear_map)),
    **dict.fromkeys(("dropout", "alpha_dropout", "feature_alpha_dropout"), _dropout),
    **dict.fromkeys(
        ("add", "sub", "subtract", "__add__", "__radd__", "__sub__", "__rsub__", "rsub"), _placed(_add, 2)
    ),
    **dict.fromkeys(
        ("mul", "multiply", "__mul__", "__rmul__", "matmul", "__matmul__", "bmm", "mm"),
        _placed(_product, 2),
    ),
    **dict.fromkeys(("div", "divide", "true_divide", "__truediv__"), _placed(_quotient, 2)),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), _placed(_concatenation)),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("scaled_dot_product_attention",), _attention),
    "linear": _linear,
    "addmm": _addmm,
    "embedding": _embedding,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "masked_fill": _placed(_masked_fill),
    "gelu": _placed(_gelu),
    "silu": _elementwise(lambda step, x, out: aten.silu_backward(step, x)),
    "tanh": _elementwise(lambda step, x, out: aten.tanh_backward(step, out)),
    "sigmoid": _elementwise(lambda step, x, out: aten.sigmoid_backward(step, out)),
    "relu": _elementwise(lambda step, x, out: aten.threshold_backward(step, x, 0)),
}
"""By the name of the torch function."""
