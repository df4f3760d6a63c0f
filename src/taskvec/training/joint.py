"""Joint training by a combiner: a batch of every task a step, and one gradient of theirs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any

import torch
import xxhash
from torch import Tensor

from taskvec.code import names_code
from taskvec.combiners import COMBINERS, Combiner, combiner_called
from taskvec.combiners.conflicts import conflicts
from taskvec.errors import InputError, UnknownName
from taskvec.group import current
from taskvec.memory import device_memory
from taskvec.registry import nearest
from taskvec.training.meta import Meta
from taskvec.training.parts import Part
from taskvec.training.settings import TrainSettings
from taskvec.training.slopes import Slopes, gram_of, groups_of, taken, weighted

Params = Mapping[str, Tensor]

Add = Callable[[int, float, Sequence[Tensor]], list[Tensor]]
"""Adds a factor times the gradient of one task's loss to some leaves; the terms of that loss."""

Asked = str | Callable[[Tensor], Tensor] | Combiner | Mapping[str, Any]
"""A combiner by name, as ``module:function`` or as it is; or one with its parameters, ``{combiner: cagrad,
c: 0.4}``."""


_PLAIN = (str, int, float, list, tuple, dict, type(None))


def combiner_for(asked: Asked, tasks: Sequence[str]) -> Combiner | Meta:
    """What combines the gradients of these tasks.

    Args:
        asked: parameters may say tasks by name: ``target: sst2``, or one with a value for each task as a
            mapping, ``priorities: {sst2: 2, rte: 1}``.

    Raises: InputError for an unknown combiner or parameter, or one that does not fit the tasks.
    """
    params = dict(asked) if isinstance(asked, Mapping) else {"combiner": asked}
    if "combiner" not in params:
        raise InputError(f"combiner: {params} found, expected a mapping with the key 'combiner'")
    kind = params.pop("combiner")
    numbered = {name: _numbered(name, value, tasks) for name, value in params.items()}
    if kind == "meta":
        return _meta(numbered, tasks)
    if isinstance(kind, str) and kind not in COMBINERS and not names_code(kind):
        raise UnknownName(f"no combiner called {kind!r}; {nearest(kind, [*COMBINERS, 'meta'])}")
    combiner = combiner_called(kind, **numbered)
    if combiner.name in COMBINERS and not combiner.entries:
        combiner.chosen(torch.eye(len(tasks), dtype=torch.float64))  # what does not fit fails before training
    return combiner


def _numbered(name: str, value: object, tasks: Sequence[str]) -> object:
    """The value of a parameter with tasks by number."""
    if name == "target" and isinstance(value, str):
        if value not in tasks:
            raise InputError(f"target: {value!r} is not trained; {nearest(value, tasks)}")
        return list(tasks).index(value)
    if isinstance(value, Mapping):
        if set(value) != set(tasks):
            raise InputError(f"{name}: of {', '.join(map(str, value))}; expected {', '.join(tasks)}")
        return [value[task] for task in tasks]
    return value


def _meta(params: Mapping[str, Any], tasks: Sequence[str]) -> Meta:
    unknown = next((name for name in params if name not in ("target", "rate")), None)
    if unknown:
        raise InputError(
            f"combiner 'meta': unknown parameter {unknown!r}; {nearest(unknown, ('target', 'rate'))}"
        )
    target, rate = params.get("target"), params.get("rate")
    if not isinstance(target, int) or not 0 <= target < len(tasks):
        raise InputError(f"combiner 'meta': target is {target!r}, expected one of {', '.join(tasks)}")
    if rate is not None and not (isinstance(rate, int | float) and 0 < rate < float("inf")):
        raise InputError(f"combiner 'meta': rate is {rate!r}, expected a positive number")
    return Meta(target, rate)


def joint_by(asked: Asked, parts: Sequence[Part], settings: TrainSettings, device: torch.device) -> "Joint":
    """How a training on these parts makes one gradient of theirs.

    Raises: InputError, see :func:`combiner_for`.
    """
    tasks = [part.name for part in parts]
    combiner = combiner_for(asked, tasks)
    given = settings.combiner_memory
    here = device_memory(device) / 2 if given is None else 1e9 * given
    room = min(current().gather(here))  # which decides what is computed together, in all processes
    return Joint(combiner, tasks, settings.seed, room, _said(combiner, asked))


def _said(combiner: Combiner | Meta, asked: Asked) -> dict[str, Any]:
    """A combiner as plain data: its name, and its parameters in the user's words."""
    held = combiner.params if isinstance(combiner, Combiner) else {}
    said = {**held, **(asked if isinstance(asked, Mapping) else {}), "combiner": combiner.name}
    return {name: value if isinstance(value, _PLAIN) else repr(value) for name, value in said.items()}


@dataclass(frozen=True)
class Joint:
    """How a training makes one gradient of its tasks'.

    Args:
        tasks: their names.
        seed: of the training; what is drawn depends on it and on the number of the step alone.
        room: bytes that gradients may take, see :class:`Gradients`.
        said: the combiner as plain data, by which checkpoints know it.
    """

    combiner: Combiner | Meta
    tasks: Sequence[str]
    seed: int
    room: float = math.inf
    said: Mapping[str, Any] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """What provenance says of it."""
        params = {name: value for name, value in self.said.items() if name != "combiner"}
        return {"combiner": self.combiner.name, **({"combiner_params": params} if params else {})}

    @property
    def ahead(self) -> int | None:
        """The task whose gradient is asked for once more, a step ahead; none if there is none."""
        return self.combiner.target if isinstance(self.combiner, Meta) else None

    def add(
        self, leaves: Params, add: Add, number: int, *, lr: float, scale: float = 1.0
    ) -> tuple[list[Tensor], dict[str, float]]:
        """Add the combined gradient to leaves that have none.

        Args:
            add: knows the tasks by number, and behind them the examples for the step ahead.
            number: of the step, from 0.
            scale: that losses are multiplied by.

        Returns: the terms of the mean loss, and what is worth logging.
        """
        gradients = Gradients(leaves, add, len(self.tasks), self.room)
        ahead = self._step_ahead(gradients, lr, scale)
        merged: list[tuple[list[int], Slopes]] = []
        gram = torch.zeros((), dtype=torch.float64)
        for group in gradients.groups:
            rows = gradients.rows(group)
            gram = gram + gram_of([*rows, *([[ahead[place] for place in group]] if ahead else [])])
            if self._merges:
                merged.append((group, self._merge(rows, [list(leaves)[place] for place in group], number)))
        gram = gram / scale**2
        weights = self._weights(gram, number)
        if not self._merges:
            gradients.put_sum(weights.tolist())
        for group, slopes in merged:
            gradients.put(group, slopes)
        own = gram[: len(self.tasks), : len(self.tasks)]
        terms = gradients.losses
        facts = {f"loss/{task}": float(sum(terms[place])) for place, task in enumerate(self.tasks)}
        facts |= facts_of(own, weights, self.tasks)
        return [loss / len(self.tasks) for task in terms.values() for loss in task], facts

    @property
    def _merges(self) -> bool:
        """Whether entries are combined, which no weights express."""
        return isinstance(self.combiner, Combiner) and self.combiner.entries

    def _weights(self, gram: Tensor, number: int) -> Tensor:
        """The weight of each task; all 1 where products are not finite, which the sum then shows."""
        if self._merges or not gram.isfinite().all():
            return torch.ones(len(self.tasks), dtype=torch.float64)
        return self.combiner.chosen(gram, _drawn(self.seed, number))

    def _merge(self, rows: Sequence[Slopes], names: Sequence[str], number: int) -> Slopes:
        """The combination of gradients entry by entry."""
        return [
            self._merge_entries(slopes, _drawn(self.seed, number, name))
            for slopes, name in zip(zip(*rows, strict=True), names, strict=True)
        ]

    def _merge_entries(self, slopes: Sequence[Tensor | None], seed: int) -> Tensor | None:
        known = next((slope for slope in slopes if slope is not None), None)
        if known is None or not isinstance(self.combiner, Combiner):
            return None
        stack = torch.stack([torch.zeros_like(known) if slope is None else slope for slope in slopes])
        uniform = torch.rand(known.shape, generator=torch.Generator().manual_seed(seed)).to(known)
        return self.combiner.merge(stack, uniform)

    def _step_ahead(self, gradients: "Gradients", lr: float, scale: float) -> Slopes | None:
        """The gradient of the target's further examples, after a step of equal weights."""
        if not isinstance(self.combiner, Meta):
            return None
        gradients.put_sum([1 / len(self.tasks)] * len(self.tasks))
        there = taken(gradients.leaves)
        before = [leaf.detach().clone() for leaf in gradients.leaves]
        rate = (lr if self.combiner.rate is None else self.combiner.rate) / scale
        with torch.no_grad():
            for leaf, slope in zip(gradients.leaves, there, strict=True):
                if slope is not None:
                    leaf.sub_(slope, alpha=rate)
        slopes = gradients.of(len(self.tasks), range(len(before)))
        with torch.no_grad():
            torch._foreach_copy_(gradients.leaves, before)
        return slopes


class Gradients:
    """Those of the tasks of a step, at leaves that have none themselves.

    They are kept where all fit into ``room`` bytes. Where they do not, they are computed when they are asked
    for, for a group of leaves at a time, and once more for their sum.
    """

    def __init__(self, leaves: Params, add: Add, tasks: int, room: float) -> None:
        self.leaves = list(leaves.values())
        self.groups = list(groups_of(self.leaves, tasks, room))
        self.losses: dict[int, list[Tensor]] = {}
        self._add, self._tasks = add, tasks

    def of(self, task: int, group: Sequence[int]) -> Slopes:
        """Of one task at some leaves, computed now."""
        leaves = [self.leaves[place] for place in group]
        losses = self._add(task, 1.0, leaves)
        if task < self._tasks:
            self.losses[task] = losses
        return taken(leaves)

    def rows(self, group: Sequence[int]) -> list[Slopes]:
        """Of all tasks at the leaves of a group."""
        if len(self.groups) == 1:
            return self._all
        return [self.of(task, group) for task in range(self._tasks)]

    @cached_property
    def _all(self) -> list[Slopes]:
        return [self.of(task, self.groups[0]) for task in range(self._tasks)]

    def put(self, group: Sequence[int], slopes: Slopes) -> None:
        """Into the leaves of a group."""
        for place, slope in zip(group, slopes, strict=True):
            self.leaves[place].grad = slope

    def put_sum(self, weights: Sequence[float]) -> None:
        """The weighted sum, into all leaves."""
        if len(self.groups) == 1:
            self.put(self.groups[0], weighted(self._all, weights))
            return
        for task, weight in enumerate(weights):
            self._add(task, weight, self.leaves)


def facts_of(gram: Tensor, weights: Tensor, tasks: Sequence[str]) -> dict[str, float]:
    """What is worth logging of a step: weights by task, cosines of pairs, the share of those that conflict.

    A gradient of zero is taken as orthogonal to all. Nothing is told of products that are not finite.
    """
    if not gram.isfinite().all():
        return {}
    facts = {f"weight/{task}": weight for task, weight in zip(tasks, weights.tolist(), strict=True)}
    if len(tasks) < 2:
        return facts
    told = conflicts(gram)
    facts |= {"conflict_rate": told.rate, "cosine_mean": told.mean, "cosine_min": told.least}
    cosines = told.cosines.tolist()
    pairs = combinations(range(len(tasks)), 2)
    return facts | {f"cosine/{tasks[i]}/{tasks[j]}": cosines[i][j] for i, j in pairs}


def _drawn(*what: object) -> int:
    """A seed that depends on these alone."""
    return xxhash.xxh3_64_intdigest("/".join(map(str, what)).encode()) >> 1
