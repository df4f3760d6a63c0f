"""What each operation's use of a parameter contributes to the per-sample gradients.

A rule takes the arguments of an operation and says, for every parameter among them, what to keep of the
gradient at the operation's output. None says that the parameter is used in a way the rule does not cover: it
is then differentiated sample by sample instead.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from taskvec.tangent.ntk.terms import Dense, Outer, Scatter, Term, matrix_shape


@dataclass(frozen=True)
class Part:
    """What one use keeps for one parameter.

    Args:
        target: the parameter, or a value made of parameters alone.
        reduce: gradient at the output, for one class, to what is kept of it, (n, ...).
        build: what was kept of every class to the term.
    """

    target: Tensor
    reduce: Callable[[Tensor], Tensor]
    build: Callable[[list[Tensor]], Term]


class Call(Protocol):
    """What a rule may ask about the call that it looks at."""

    samples: int
    out: Tensor

    def selected(self, value: object) -> bool:
        """Whether a value is a parameter that the kernel is taken over, or made of such alone."""

    def sampled(self, value: object) -> bool:
        """Whether a value depends on the samples."""

    def keep(self, x: Tensor) -> Tensor:
        """An activation that will be needed unchanged after the forward pass."""


Rule = Callable[..., Sequence[Part] | None]


def _dense(shape: torch.Size) -> Callable[[list[Tensor]], Term]:
    """Of gradients kept as (n, *shape) each."""
    return lambda kept: Dense(torch.stack(kept, 1).reshape(len(kept[0]), len(kept), *matrix_shape(shape)))


def _foldable(call: Call, tensor: Tensor, fixed: int) -> bool:
    """Whether all dimensions but the last ``fixed`` can be split into samples and tokens."""
    rows = tensor.shape[: tensor.ndim - fixed].numel()
    return tensor.ndim > fixed and rows > 0 and rows % call.samples == 0


def _product(
    call: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, flipped: bool
) -> list[Part]:
    n, parts = call.samples, []
    width = call.out.shape[-1]
    if weight is not None:
        tokens = call.keep(x).reshape(n, -1, x.shape[-1])
        parts.append(
            Part(weight, lambda g: g.reshape(n, -1, width), lambda kept: _outer(tokens, kept, flipped))
        )
    if bias is not None:
        parts.append(Part(bias, lambda g: g.reshape(n, -1, width).sum(1), _dense(bias.shape)))
    return parts


def _outer(x: Tensor, slopes: list[Tensor], flipped: bool) -> Outer:
    """Without the tokens that no output depends on: all but the pooled one in many a last block."""
    if (slopes[0][0] == 0).all(-1).any():
        alive = torch.stack([(slope != 0).any(-1).any(0) for slope in slopes]).any(0)
        x, slopes = x[:, alive], [slope[:, alive] for slope in slopes]
    return Outer(x, slopes, flipped=flipped)


def _linear(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> list[Part] | None:
    if not call.sampled(input) or call.sampled(weight) or not _foldable(call, input, 1) or weight.ndim != 2:
        return None
    own = call.selected
    return _product(call, input, weight if own(weight) else None, bias if own(bias) else None, flipped=False)


def _addmm(
    call: Call, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> list[Part] | None:
    if beta != 1 or alpha != 1 or not call.sampled(mat1) or call.sampled(mat2) or call.sampled(input):
        return None
    if not _foldable(call, mat1, 1) or (call.selected(input) and input.ndim != 1):
        return None
    own = call.selected
    return _product(call, mat1, mat2 if own(mat2) else None, input if own(input) else None, flipped=True)


def _matmul(call: Call, input: Tensor, other: Tensor) -> list[Part] | None:
    if not call.sampled(input) or call.sampled(other) or other.ndim != 2 or not _foldable(call, input, 1):
        return None
    return _product(call, input, other, None, flipped=True)


def _conv(
    dimensions: int,
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> list[Part] | None:
    n, channels = call.samples, weight.shape[0]
    if call.sampled(weight) or not call.sampled(input) or input.ndim != 2 + dimensions or len(input) != n:
        return None
    if isinstance(padding, str):
        if padding == "same":
            return None
        padding = 0
    parts = []
    if call.selected(bias):
        assert bias is not None
        parts.append(Part(bias, lambda g: g.flatten(2).sum(2), _dense(bias.shape)))
    if call.selected(weight):
        x = call.keep(input)

        def pair(value: Any, missing: int) -> tuple[int, ...]:
            given = (value,) * dimensions if isinstance(value, int) else tuple(value)
            return (missing,) * (2 - dimensions) + given

        def patches(image: Tensor) -> Tensor:
            plane = image.unsqueeze(2) if dimensions == 1 else image
            size = (1,) * (2 - dimensions) + tuple(weight.shape[2:])
            return F.unfold(plane, size, pair(dilation, 1), pair(padding, 0), pair(stride, 1)).transpose(1, 2)

        def slopes(g: Tensor) -> Tensor:
            return g.flatten(2).transpose(1, 2)

        def grouped(kept: list[Tensor]) -> Term:
            places = kept[0].shape[1]
            left = torch.stack([one.reshape(n, places, groups, -1) for one in kept], 1)
            right = patches(x).reshape(n, places, groups, -1)
            found = torch.einsum("ncsgo,nsgk->ncgok", left, right)
            return Dense(found.reshape(n, len(kept), *matrix_shape(weight.shape)))

        def whole(kept: list[Tensor]) -> Term:
            return Outer(x, kept, unfold=patches)

        parts.append(Part(weight, slopes, whole if groups == 1 else grouped))
    return parts if call.out.shape[1] == channels else None


def _embedding(
    call: Call,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> list[Part] | None:
    n = call.samples
    if max_norm is not None or scale_grad_by_freq or input.ndim == 0 or input.numel() % n:
        return None
    index = input.reshape(n, -1)
    if padding_idx is not None:
        index = index.masked_fill(index == padding_idx % len(weight), -1)
    width = weight.shape[1]
    return [
        Part(weight, lambda g: g.reshape(n, -1, width), lambda kept: Scatter(index, torch.stack(kept, 1)))
    ]


def _affine(
    call: Call,
    normalised: Callable[[], Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    channel: int | None,
) -> list[Part]:
    """Weight and bias behind a normalisation; they follow dimension ``channel``, or are the last ones."""
    n, parts = call.samples, []

    def summed(product: Tensor, shape: torch.Size) -> Tensor:
        if channel is None:
            return product.reshape(n, -1, *shape).sum(1)
        return product.flatten(2).sum(2)

    if weight is not None and call.selected(weight):
        shape = weight.shape
        parts.append(Part(weight, lambda g: summed(g * normalised(), shape), _dense(shape)))
    if bias is not None and call.selected(bias):
        parts.append(Part(bias, lambda g: summed(g, bias.shape), _dense(bias.shape)))
    return parts


def _layer_norm(
    call: Call,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: object,
) -> list[Part] | None:
    if not call.sampled(input) or not _foldable(call, input, len(normalized_shape)):
        return None
    x = call.keep(input)
    plain = partial(F.layer_norm, x, list(normalized_shape), None, None, eps)
    return _affine(call, plain, weight, bias, channel=None)


def _rms_norm(
    call: Call,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> list[Part] | None:
    if not call.sampled(input) or not _foldable(call, input, len(normalized_shape)):
        return None
    x = call.keep(input)
    return _affine(
        call, partial(F.rms_norm, x, list(normalized_shape), None, eps), weight, None, channel=None
    )


def _group_norm(
    call: Call,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: object,
) -> list[Part] | None:
    if not call.sampled(input) or len(input) != call.samples:
        return None
    x = call.keep(input)
    return _affine(call, partial(F.group_norm, x, num_groups, None, None, eps), weight, bias, channel=1)


def _batch_norm(
    call: Call,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> list[Part] | None:
    if training or not call.sampled(input) or len(input) != call.samples:
        return None
    x = call.keep(input)
    plain = partial(F.batch_norm, x, running_mean, running_var, None, None, False, momentum, eps)
    return _affine(call, plain, weight, bias, channel=1)


def _unbroadcast(g: Tensor, n: int, shape: torch.Size) -> Tensor:
    """Per-sample gradient (n, *shape) of what was broadcast to the shape of ``g``."""
    tokens = g.reshape(n, -1, *g.shape[1:]) if g.ndim > len(shape) else g
    rest = tokens.ndim - len(shape)
    spread = [d for d, size in enumerate(shape) if size == 1 and tokens.shape[rest + d] > 1 and rest + d > 0]
    summed = [*range(1, rest), *(rest + d for d in spread)]
    return (tokens.sum(summed) if summed else tokens).reshape(n, *shape)


def _broadcast(call: Call, p: Tensor) -> bool:
    """Whether ``p`` is the same for all samples of an elementwise operation's output."""
    out = call.out
    if p.ndim < out.ndim:
        return len(out) > 0 and len(out) % call.samples == 0
    return p.ndim == out.ndim > 0 and p.shape[0] == 1 and len(out) == call.samples


def _sum(call: Call, input: Any, other: Any, *, alpha: float = 1, minus: bool = False) -> list[Part] | None:
    return _added(call, input, other, (1.0, -alpha if minus else alpha))


def _reversed_difference(call: Call, input: Any, other: Any) -> list[Part] | None:
    return _added(call, input, other, (-1.0, 1.0))


def _added(call: Call, input: Any, other: Any, factors: tuple[float, float]) -> list[Part] | None:
    p, x, factor = (input, other, factors[0]) if call.selected(input) else (other, input, factors[1])
    if not call.sampled(x) or not call.selected(p) or not _broadcast(call, p):
        return None
    n, shape = call.samples, p.shape
    return [Part(p, lambda g: factor * _unbroadcast(g, n, shape), _dense(shape))]


def _times(call: Call, input: Any, other: Any) -> list[Part] | None:
    p, x = (input, other) if call.selected(input) else (other, input)
    if not call.sampled(x) or not call.selected(p) or not _broadcast(call, p):
        return None
    n, shape, factor = call.samples, p.shape, call.keep(x)
    return [Part(p, lambda g: _unbroadcast(g * factor, n, shape), _dense(shape))]


def _expand(call: Call, input: Tensor, *_: object, **__: object) -> list[Part] | None:
    """A token that is copied for every sample (the class token of image transformers)."""
    if not _broadcast(call, input) or len(call.out) != call.samples:
        return None
    n, shape = call.samples, input.shape
    return [Part(input, lambda g: _unbroadcast(g, n, shape), _dense(shape))]


RULES: Mapping[Any, Rule] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.__matmul__: _matmul,
    torch.Tensor.mm: _matmul,
    F.conv1d: partial(_conv, 1),
    F.conv2d: partial(_conv, 2),
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    torch.add: _sum,
    torch.Tensor.add: _sum,
    torch.Tensor.__add__: _sum,
    torch.Tensor.__radd__: _sum,
    torch.sub: partial(_sum, minus=True),
    torch.Tensor.sub: partial(_sum, minus=True),
    torch.Tensor.__sub__: partial(_sum, minus=True),
    torch.Tensor.__rsub__: _reversed_difference,
    torch.mul: _times,
    torch.Tensor.mul: _times,
    torch.Tensor.__mul__: _times,
    torch.Tensor.__rmul__: _times,
    torch.Tensor.expand: _expand,
    torch.Tensor.expand_as: _expand,
}
