"""The curvature of a model's outputs on a task: what a displacement would change there."""

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone, refuse_sharded
from taskvec.models.selection import select
from taskvec.progress import Watch, unwatched
from taskvec.statistics.blocks import blocks
from taskvec.statistics.kronecker import Diagonal, Moments, Rotated
from taskvec.statistics.probes import Probes, Probing, count_examples
from taskvec.tasks.loaders import Batches, batches, in_batches
from taskvec.tasks.source import SplitName
from taskvec.tasks.task import Task

Curvature = Literal["kfac", "ekfac", "ggn"]
"""Factors of Kronecker products; the same with exact values along their eigenvectors; the diagonal alone."""


@checked
def curvature(
    model: Backbone,
    task: Task,
    examples: int = 256,
    *,
    kind: Curvature = "kfac",
    params: str = "full",
    probes: int = 1,
    normalize: bool = True,
    split: SplitName = "train",
    limit: int | None = None,
    seed: int = 0,
    memory: float = 1e9,
    watch: Watch = unwatched,
) -> dict[str, Tensor]:
    """The Gauss-Newton matrix of a model's outputs on a task, in blocks. Labels are not used.

        G = E_x [J(x)^T J(x)],      so that tau^T G tau = E_x ||J(x) tau||^2

    with J the derivative of the outputs, divided by their norms, in the parameters. It is sampled by random
    directions of the outputs: E_v [(J^T v)(J^T v)^T] for v ~ N(0, 1).

    Args:
        model, task, examples, split, limit, seed, memory: as for :func:`taskvec.fisher`. The seed draws the
            directions too; those of an example do not depend on the batch.
        kind: ``kfac`` gives each weight with its bias two factors, ``NAME#A`` of the layer's inputs, a one
            behind them for the bias, and ``NAME#B`` of the gradients at its outputs: the block of
            ``[weight | bias]``, row by row, is about ``B ⊗ A``. ``ekfac`` gives their eigenvectors, the
            columns of ``NAME#UA`` and ``NAME#UB``, and in them the exact diagonal, ``NAME#D``. ``ggn`` gives
            the exact diagonal, ``NAME``, in the parameter's shape.
        params: a selection, see :func:`taskvec.names.select_names`.
        probes: random directions of each example.
        normalize: divide outputs by their norms, as heads do that compare directions.

    Returns: float32 or the parameters' dtype, on the CPU. With either factors, what is no matrix has its
        diagonal under its own name, and vectors (norms) have all of their moments as ``NAME#A``.
    Raises: InputError for a selection of nothing, or a model that treats samples together.
    Cost: a forward and ``probes`` backward passes an example, and again for ``ekfac``; memory of the sums in
        float64, which for a matrix (out, in) has out^2 + in^2 numbers.
    Source: Martens & Grosse 2015, arXiv:1503.05671; George et al. 2018, arXiv:1806.03884 (``ekfac``);
        2602.17385 (unit features, one direction an example). Positions of an example are summed up, as if
        independent of each other (as in ``expand`` of arXiv:2311.00636).
    """
    refuse_sharded(model, "curvature")
    names = select(model, params)
    drawn = task.split(split, limit=limit)
    if model.outputs == "tokens":
        asked = task.objective(model).training()
        windows = asked.examples(model, drawn)
        inputs = in_batches(asked.prepare(model, windows.draw(examples, seed)), 16)
    else:
        longest = getattr(task, "max_length", None)
        inputs = batches(model, drawn.draw(examples, seed), max_length=longest)
    how = Probing(probes, normalize, seed)
    return measure(
        model, inputs, names, kind, how, memory=memory, watch=watch, label=f"curvature of {task.name}"
    )


def measure(
    backbone: Backbone,
    inputs: Batches,
    names: Collection[str],
    kind: Curvature,
    how: Probing,
    *,
    memory: float = 1e9,
    watch: Watch = unwatched,
    label: str = "curvature",
) -> dict[str, Tensor]:
    """The same of inputs in batches and parameters by checkpoint name."""
    if not len(inputs):
        raise InputError(f"{label}: there are no inputs to measure it on; give one or more")
    if how.probes < 1:
        raise InputError(f"probes: {how.probes}, expected 1 or more")
    probes, parameters = Probes(backbone, list(names), how, memory), backbone.encoder_parameters()
    found = [] if kind == "ggn" else blocks(backbone, probes.names)
    draws = how.probes * count_examples(inputs)
    diagonal = Diagonal(parameters, set(probes.names) - {name for block in found for name in block.names})
    moments = [Moments(block, parameters[block.weight].detach()) for block in found]
    _fill([diagonal, *moments], probes, inputs, watch, label)
    results = diagonal.means(draws)
    pairs = [of_block.factors(draws) for of_block in moments]
    if kind == "ekfac":
        turned = [Rotated(block, *pair) for block, pair in zip(found, pairs, strict=True)]
        _fill(turned, probes, inputs, watch, f"{label}, in its eigenvectors")
        for block, of_block in zip(found, turned, strict=True):
            parts = {"UA": of_block.inner, "UB": of_block.outer, "D": of_block.squares(draws)}
            results |= {f"{block.weight}#{key}": value for key, value in parts.items()}
    else:
        for block, (inner, outer) in zip(found, pairs, strict=True):
            results |= {f"{block.weight}#A": inner, f"{block.weight}#B": outer}
    dtype = next(iter(parameters.values())).dtype
    return {
        name: value.to(torch.promote_types(dtype, torch.float32)).cpu() for name, value in results.items()
    }


def _fill(
    sums: Sequence[Diagonal | Moments | Rotated], probes: Probes, inputs: Batches, watch: Watch, label: str
) -> None:
    for piece in probes.passes(inputs, watch, label):
        for one in sums:
            one.add(piece)
