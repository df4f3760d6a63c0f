"""Second moments of what a model's linear layers are given on a task, for the rule ``regmean``."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone, evaluating, refuse_sharded
from taskvec.progress import Watch, unwatched
from taskvec.tasks.loaders import batches
from taskvec.tasks.source import SplitName
from taskvec.tasks.task import Task


@checked
def gram(
    model: Backbone,
    task: Task,
    examples: int = 256,
    *,
    split: SplitName = "train",
    limit: int | None = None,
    seed: int = 0,
    watch: Watch = unwatched,
) -> dict[str, Tensor]:
    """The second moments of what every linear layer of a model's encoder is given, on the inputs of a task.

        G = X^T X / rows,      rows of X: one a token, padding left out

    Args:
        model, task, examples, split, limit, seed: as for :func:`taskvec.fisher`.

    Returns: by checkpoint name of the layer's weight (out, in), tensors (in, in) of its dtype, on the CPU.
        Layers that share their inputs share the tensor.
    Raises: InputError for an encoder without such layers.
    Cost: a forward pass; memory of twice the result.
    Source: Jin et al. 2023, arXiv:2212.09849.
    """
    refuse_sharded(model, "gram")
    stored = {id(parameter): name for name, parameter in model.encoder_parameters().items()}
    moments = _Moments()
    inputs = batches(model, task.split(split, limit=limit).draw(examples, seed), max_length=task.max_length)
    total, done = len(inputs.labels), 0
    with ExitStack() as hooks, torch.no_grad(), evaluating(model):
        for place, layer in model.network.named_modules():
            if isinstance(layer, nn.Linear) and id(layer.weight) in stored:
                called = model.running.get_submodule(place)
                handle = called.register_forward_pre_hook(moments.hook(stored[id(layer.weight)]))
                hooks.callback(handle.remove)
        for batch in inputs:
            given = batch.on(model.device).inputs
            moments.mask = given.get("attention_mask")
            model(**given)
            done += len(batch.labels)
            watch("inputs of layers", done, total)
    means = moments.means(next(model.network.parameters()).dtype)
    if not means:
        raise InputError(f"{model.ref}: calls no torch.nn.Linear, whose inputs are measured")
    return means


class _Moments:
    """Sums of x x^T over the rows that pass through hooks, by name, in float64."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}
        self._given = torch.empty(0)
        self._product: tuple[Tensor, int] = self._given, 0

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """What adds up the inputs of the layer called ``name``."""

        def add(_: nn.Module, args: tuple[Any, ...]) -> None:
            product, rows = self._multiply(args[0])
            self._sums[name] = self._sums[name] + product if name in self._sums else product.double()
            self._rows[name] = self._rows.get(name, 0) + rows

        return add

    def _multiply(self, x: Tensor) -> tuple[Tensor, int]:
        if x is not self._given:  # query, key and value are given the same
            padded = self.mask is not None and x.shape[:-1] == self.mask.shape
            rows = x[self.mask.bool()] if self.mask is not None and padded else x.flatten(0, -2)
            self._given, self._product = x, (rows.T @ rows, len(rows))
        return self._product

    def means(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Divided by the number of rows; neighbours that are equal share memory."""
        means: dict[str, Tensor] = {}
        last = torch.empty(0)
        for name, total in self._sums.items():
            mean = (total / self._rows[name]).to(dtype).cpu()
            last = means[name] = last if torch.equal(mean, last) else mean
        return means
