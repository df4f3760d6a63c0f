"""Derivatives of the operations that convolutional networks are made of."""

from collections.abc import Callable
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
    sum_tangents,
)

Operation = Callable[..., Any]
aten = torch.ops.aten


@derivative_of("conv1d", "conv2d", "conv3d")
def _convolve(func: Operation, input: Any, weight: Any, bias: Any = None, *rest: Any, **options: Any) -> Any:
    x0, w0, b0 = primal(input), primal(weight), primal(bias)
    if func.__name__ == "conv2d" and _tiles(input, weight, *rest, **options):
        return _multiply_patches(input, weight, bias)

    def slope(dx: Tangent, dw: Tangent, db: Tangent) -> Tangent:
        moved = None if dx is None else func(dx, w0, None, *rest, **options)
        turned = None if dw is None else func(x0, dw, db, *rest, **options)
        if dw is None and db is not None:
            turned = db.view(-1, *[1] * (out.ndim - 2)).expand(out.shape)
        return sum_tangents(moved, turned)

    out = func(x0, w0, b0, *rest, **options)
    return join(out, map_tangents(slope, input, weight, bias))


def _tiles(x: Any, w: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> bool:
    """Whether the kernel's places tile the image, as in the first layer of a vision transformer."""

    def pair(value: Any) -> tuple[int, ...]:
        return (value, value) if isinstance(value, int) else tuple(value)

    return (
        x.ndim == 4
        and groups == 1
        and pair(stride) == tuple(w.shape[2:])
        and padding in (0, (0, 0), [0, 0], "valid")
        and pair(dilation) == (1, 1)
        and w.shape[2:] != (1, 1)
    )


def _multiply_patches(x: Any, w: Any, b: Any) -> Any:
    """A convolution over tiles as one linear layer, whose backward pass needs no workspace.

    Contiguous: a batch norm of torch 2.13 gives a wrong gradient for one image that is laid out otherwise.
    """
    (n, channels), (high, wide) = x.shape[:2], w.shape[2:]
    tall, broad = x.shape[2] // high, x.shape[3] // wide
    tiles = x[:, :, : tall * high, : broad * wide].reshape(n, channels, tall, high, broad, wide)
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).reshape(n, tall * broad, channels * high * wide)
    return F.linear(tiles, w.flatten(1), b).transpose(1, 2).contiguous().view(n, len(w), tall, broad)


@derivative_of("batch_norm")
def _batch_norm(
    func: Operation,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """With its running statistics a batch norm is affine in each channel."""
    mean, variance = running_mean, running_var
    if training or mean is None or isinstance(mean, Dual) or isinstance(variance, Dual):
        return by_forward_mode(func, (input, mean, variance, weight, bias, training, momentum, eps), {})
    x0, w0, b0 = primal(input), primal(weight), primal(bias)
    rstd = (variance + eps).rsqrt()

    def of_channels(values: Tensor) -> Tensor:
        return values.to(x0.dtype).view(1, -1, *[1] * (x0.ndim - 2))

    def slope(dx: Tangent, dw: Tangent, db: Tangent) -> Tangent:
        total: Tangent = None if db is None else of_channels(db).expand(x0.shape)
        if dw is not None:
            shift = -mean * rstd * dw if db is None else db - mean * rstd * dw
            total = torch.addcmul(of_channels(shift), x0, of_channels(rstd * dw))
        if dx is None:
            return total
        factor = of_channels(rstd if w0 is None else rstd * w0)
        return dx * factor if total is None else torch.addcmul(total, dx, factor)

    out = func(x0, mean, variance, w0, b0, training, momentum, eps)
    return join(out, map_tangents(slope, input, weight, bias))


@derivative_of("pad")
def _pad(func: Operation, input: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    out = func(input.primal, pad, mode, value)
    return join(out, map_tangents(lambda step: func(step, pad, mode), input))


@derivative_of("hardtanh")
def _hardtanh(
    func: Operation, input: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Any:
    x0 = input.primal
    backward = aten.hardtanh_backward
    return join(
        func(x0, min_val, max_val), map_tangents(lambda step: backward(step, x0, min_val, max_val), input)
    )


@derivative_of("relu6")
def _relu6(func: Operation, input: Any, inplace: bool = False) -> Any:
    return _hardtanh(F.hardtanh, input, 0.0, 6.0)
