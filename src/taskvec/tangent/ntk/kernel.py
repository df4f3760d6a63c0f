"""The empirical neural tangent kernel, one parameter after another."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.tangent.ntk.contraction import Block, Chunk, Mode, mirror
from taskvec.tangent.ntk.gradients import SampleGradients
from taskvec.tangent.ntk.samples import Inputs, Samples, Selection, selected

COLUMNS = 1 << 12
"""Of a slice, on a CPU: what is written is multiplied before it has left the cache."""


Features = dict[str, list[Chunk]]
"""Of a block of samples, by parameter."""


@checked
def ntk(
    model: nn.Module,
    x1: Inputs,
    x2: Inputs | None = None,
    *,
    params: Selection = "all",
    mode: Mode = "full",
    memory: float = 2e9,
    batch: int | None = None,
) -> Tensor:
    """Inner products of the gradients of a model's outputs, at the parameters it has.

        K[i, c, j, d] = < d f_c(x1_i) / d theta, d f_d(x2_j) / d theta >

    Args:
        model: any module with outputs (N, C); neither it nor its gradients change. Dropout must be off and
            batch norms must use running statistics.
        x1, x2: a tensor, a mapping of keyword arguments or a tuple of positional ones, samples first.
            Without ``x2`` the samples are compared with themselves and half of the work is done.
        params: ``all``, ``attention`` or another selection of :mod:`taskvec.names`, ``re:PATTERN`` that
            whole names match, names, or a predicate on names.
        mode: ``full``; ``class``, only pairs of equal classes; ``trace``, their sum.
        memory: bytes to work with beside the kernel itself and the model. Less means that samples are
            differentiated again for every block of samples they are compared with. Two samples must fit.
        batch: samples a forward pass, at most; chosen by memory without it.

    Returns: (N1, C, N2, C), (N1, N2, C) or (N1, N2), of the model's dtype and device.
    Raises: InputError for a random model, outputs other than (N, C), nothing selected.
    Cost: a forward and C backward passes to the activations, without parameter gradients; N1 N2 C^2 P
        multiplications for P parameters (half of them without ``x2``, 1/C of them in the other modes). The
        gradients of a layer that no rule knows cost a second forward and C more backward passes through it.
    Source: Jacot et al. 2018, arXiv:1806.07572; contraction by tokens, Novak et al. 2022, arXiv:2206.08720.
    """
    if mode not in ("full", "class", "trace"):
        raise InputError(f"ntk: mode {mode!r}, expected 'full', 'class' or 'trace'")
    first = Samples.of(x1, "x1")
    second = None if x2 is None else Samples.of(x2, "x2")
    with torch.no_grad():
        examples = first if second is None or len(first) > 1 else second  # one sample would show too little
        gradients = SampleGradients(model, selected(model, params), examples)
        return _fill(gradients, first, second, mode, memory, batch)


def _fill(
    gradients: SampleGradients,
    first: Samples,
    second: Samples | None,
    mode: Mode,
    memory: float,
    batch: int | None,
) -> Tensor:
    n1, n2, classes = len(first), len(first if second is None else second), gradients.classes
    leaf = next(iter(gradients.leaves.values()))
    shape = {"full": (n1 * classes, n2 * classes), "class": (classes, n1, n2), "trace": (n1, n2)}[mode]
    kernel = torch.zeros(shape, dtype=leaf.dtype, device=leaf.device)
    held, passing, step, floats = _shares(gradients, n1 if second is None else n1 + n2, memory, batch)
    outer, inner, target = first, second or first, kernel
    if second is not None and _differentiated(n2, n1, held) < _differentiated(n1, n2, held):
        outer, inner, target = second, first, kernel.mT

    def fill(rows: slice, columns: slice, left: Features, right: Features | None) -> None:
        block = Block(target, rows, columns, classes, mode, symmetric=right is None, floats=floats)
        for name, leaf in gradients.leaves.items():
            block.add(leaf.shape, left.get(name, []), None if right is None else right.get(name, []))

    for rows in _pieces(0, len(outer), held):
        mine = _block(gradients, outer, rows, step)
        if second is None:
            fill(rows, rows, mine, None)
        for columns in _pieces(0 if second else rows.stop, len(inner), passing):
            fill(rows, columns, mine, _block(gradients, inner, columns, step))
    if second is None:
        mirror(kernel)
    if mode == "full":
        return kernel.view(n1, classes, n2, classes)
    return kernel.permute(1, 2, 0).contiguous() if mode == "class" else kernel


def _shares(
    gradients: SampleGradients, samples: int, memory: float, batch: int | None
) -> tuple[int, int, int, int]:
    """Samples of a block that is held, of one that passes by it, of a pass; numbers a slice.

    Half of the memory is for features. A pass needs its graph and about as much again for the gradients that
    run through it.
    """
    leaf = next(iter(gradients.leaves.values()))
    fit = memory / 2 / max(gradients.feature_bytes, 1)
    held, passing = (samples, samples) if samples <= fit else (max(1, int(f * fit)) for f in (0.75, 0.25))
    step = max(1, min(held, batch or held, int(memory / 4 / max(2 * gradients.graph_bytes, 1))))
    cached = COLUMNS * samples * gradients.classes if leaf.device.type == "cpu" else math.inf
    return held, passing, step, max(1, int(min(memory / 4 / leaf.itemsize, cached)))


def _differentiated(outer: int, inner: int, held: int) -> int:
    """How many samples are differentiated if blocks of the one side are held while the other passes by."""
    return outer + math.ceil(outer / held) * inner


def _pieces(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(at, min(at + size, stop)) for at in range(start, stop, size))


def _block(gradients: SampleGradients, samples: Samples, block: slice, step: int) -> Features:
    """Features of a block of samples, in chunks."""
    features: Features = {}
    for piece in _pieces(block.start, block.stop, step):
        at = slice(piece.start - block.start, piece.stop - block.start)
        for name, terms in gradients.features(samples[piece]).items():
            features.setdefault(name, []).append((at, terms))
    return features
