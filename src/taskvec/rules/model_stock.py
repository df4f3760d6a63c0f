"""Model Stock: how far from the base the angles say."""

from typing import Literal

import torch
from torch import Tensor

from taskvec.rules import sphere


def model_stock(
    deltas: Tensor, *, per: Literal["tensor", "row"] = "tensor", _factors: Tensor | None = None
) -> Tensor:
    """Average fine-tunings of the same task and go back towards the base as far as their angles say.

        merged = t mean_t tau_t,      t = T c / (1 + (T - 1) c),      c = mean cosine of pairs, 0 to 1

    Args:
        deltas: (task, *shape), two or more.
        per: one angle for each ``tensor`` or for each ``row`` (filter).

    For runs of the same task: vectors of different tasks are nearly orthogonal, and then this is nearly the
    base. Cosines of several pairs are averaged, and a negative mean counts as 0, where the formula has a
    pole. A zero vector has cosine 0 with any other.
    Source: Jang et al. 2024, arXiv:2403.19522.
    """
    return sphere.blend(deltas, _ratio, per=per, measured=_factors)


def _ratio(gram: Tensor) -> Tensor:
    tasks = gram.shape[1]
    pairs = torch.triu_indices(tasks, tasks, offset=1)
    cosine = sphere.cosines(gram)[:, pairs[0], pairs[1]].mean(1, keepdim=True).clamp(0, 1)
    return (cosine / (1 + (tasks - 1) * cosine)).expand(-1, tasks)


MODEL_STOCK = sphere.rule("model_stock", model_stock, lambda **_: _ratio, tasks=(2, None))
