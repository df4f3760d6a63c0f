"""Keys of a library: what the inputs of each task look like to the pre-trained model."""

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.tasks.source import SplitName
from taskvec.vectors import TaskVector
from taskvec.vectors.combining import bind_all
from taskvec.vectors.library import Library

HowKeyed = Literal["mean", "learned"]


@checked
def make_library(
    evaluator: Evaluator,
    vectors: Mapping[str, TaskVector],
    *,
    keys: HowKeyed = "mean",
    split: SplitName = "validation",
    seed: int = 0,
) -> Library:
    """The tasks' vectors, each keyed by the features that the pre-trained model gives to inputs of its task.

    Args:
        vectors: by task.
        keys: the ``mean`` feature, or ``learned``, see :func:`learn_keys`.
        split: whose inputs are read; labels are not.
        seed: of learned keys.

    Raises: InputError for a model that gives no features, such as a language model.
    """
    check_features(evaluator)
    bound = bound_to(evaluator, vectors)
    features = {task: evaluator.features(evaluator.pretrained, task, split)[0] for task in vectors}
    if keys == "learned":
        return Library(bound, learn_keys(features, seed=seed))
    return Library(bound, {task: of.mean(0) for task, of in features.items()})


def bound_to(evaluator: Evaluator, vectors: Mapping[str, TaskVector]) -> dict[str, TaskVector]:
    """The vectors as those of the evaluator's model; adapters record no base themselves."""
    return dict(zip(vectors, bind_all(list(vectors.values()), evaluator.backbone.source), strict=True))


def check_features(evaluator: Evaluator) -> None:
    """Refuse a model without features. Raises: InputError."""
    if evaluator.backbone.outputs == "tokens":
        raise InputError(
            f"library: {evaluator.backbone.ref} gives logits of tokens, expected features, which keys are; "
            "take an encoder"
        )


@checked
def learn_keys(
    features: Mapping[str, Tensor],
    *,
    slots: int | None = None,
    steps: int = 100,
    batch_size: int = 32,
    rate: float = 0.2,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Keys (K, d) of each task, learned as L2M's pool is: task after task, with usage balancing.

        loss = -0.5 cos(chosen key, feature),     chosen = argmax (1 + cos) / 2 * usage^-1

    A pool of keys starts uniform in (-1, 1). Every feature of a batch chooses one, and pulls it. While the
    first task is learned similarity alone chooses; later, slots that earlier tasks used count for less, so
    that unused ones are taken. A task's keys are the slots that it chose more often than any other task.

    Our reading where the source is silent: keys have length 1 and move along the sphere, ``usage^-1`` is
    ``1 / (1 + choices by earlier tasks)``, normalised to sum to one.

    Args:
        features: (N, d) by task, in the order of learning.
        slots: of the pool; 30, or two a task if that is more.
        rate: step length of the gradient.

    Raises: InputError for a pool so small that a task is left without a key, or features that do not fit.
    Source: Schmied et al. 2023, arXiv:2306.14884, and its code.
    """
    pool = _start(features, max(30, 2 * len(features)) if slots is None else slots, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    chosen = torch.zeros(len(features), len(pool), dtype=torch.int64)
    for place, of in enumerate(features.values()):
        used = chosen.sum(0)
        for queries in _batches(normalize(of.double(), dim=-1), steps, batch_size, generator):
            choice = balanced(queries @ pool.mT, used).argmax(-1)
            chosen[place] += choice.bincount(minlength=len(pool))
            pool = _pull(pool, queries, choice, rate)
    owner = torch.where(chosen.sum(0) > 0, chosen.argmax(0), -1)
    keys = {task: pool[owner == place].float() for place, task in enumerate(features)}
    for task, key in keys.items():
        if not len(key):
            raise InputError(f"slots: {len(pool)}, and {task!r} is left without a key; take more")
    return keys


def balanced(cosines: Tensor, used: Tensor) -> Tensor:
    """How near keys are, (N, S) in [0, 1], times their normalised inverse usage (S,).

    Where all were used alike the order is that of the cosines; of equal cosines the least used comes first.
    """
    inverse = 1 / (1 + used.double())
    return (1 + cosines) / 2 * (inverse / inverse.sum())


def _start(features: Mapping[str, Tensor], slots: int, seed: int) -> Tensor:
    shapes = {tuple(of.shape[1:]) for of in features.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or any(not len(of) for of in features.values()):
        found = ", ".join(str(tuple(of.shape)) for of in features.values()) or "nothing"
        raise InputError(f"features: {found}, expected (N, d) for each task, of one d")
    if slots < 1:
        raise InputError(f"slots: {slots}, expected one for each task at least")
    generator = torch.Generator().manual_seed(seed)
    [[dim]] = shapes
    return normalize(2 * torch.rand(slots, dim, generator=generator, dtype=torch.float64) - 1, dim=-1)


def _batches(queries: Tensor, steps: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(steps):
        yield queries[torch.randint(len(queries), (size,), generator=generator)]


def _pull(pool: Tensor, queries: Tensor, choice: Tensor, rate: float) -> Tensor:
    """A step of every key that was chosen, along the mean gradient of its queries' cosines."""
    sums = torch.zeros_like(pool).index_add(0, choice, queries)
    mean = sums / choice.bincount(minlength=len(pool)).clamp_min(1)[:, None]
    along = mean - (mean * pool).sum(-1, keepdim=True) * pool
    return normalize(pool + rate * 0.5 * along, dim=-1)
