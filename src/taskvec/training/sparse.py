"""Tune and prune in turns: a task vector that changes a share of the units of each tensor."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone
from taskvec.models.selection import selected
from taskvec.progress import Watch, unwatched
from taskvec.training.finetune import as_vector, read
from taskvec.training.logs import Log, logged
from taskvec.training.loop import train
from taskvec.training.masks import Masks, Unit, check_share, digest_of, entries_of, fitted, largest
from taskvec.training.parts import Part, others_of
from taskvec.training.penalties.settings import foreign
from taskvec.training.rate import recorded, telling, with_rate
from taskvec.training.regimes import Regime, Space, regime_called
from taskvec.training.settings import TrainSettings
from taskvec.training.stream import total_steps
from taskvec.vectors import TaskVector


@checked
def tune_sparse(
    backbone: Backbone,
    part: Part,
    keep: float,
    *,
    mask: Masks | None = None,
    rounds: int = 2,
    unit: Unit = "row",
    regime: str | Regime = "full",
    settings: TrainSettings | None = None,
    references: Sequence[Part] = (),
    watch: Watch = unwatched,
    log: Log | None = None,
) -> TaskVector:
    """Fine-tune so that only a share of the units of each tensor moves, by tuning and pruning in turns.

    A round tunes what the mask keeps; then the mask keeps of it the units that have moved most, fewer from
    round to round, and the others go back to where they were. The last round tunes the share ``keep``.

    Args:
        keep: share of the units of each tensor, at least one.
        mask: what may move at first, as :func:`mask_vote` gives it; by default everything, which is magnitude
            pruning from scratch.
        rounds: of tuning, among which the steps of one schedule are spread. With one, a mask wider than
            ``keep`` is cut after it.
        unit: rows of matrices (filters, units of a layer), or single entries.
        regime: of whole tensors, in ordinary or tangent space.
        settings: ``lr: auto`` finds the rate once, as for tuning what may move at first.
        references, watch, log: as for :func:`taskvec.finetune`.

    Raises: InputError for a regime of factors or gates, no round, or more rounds than steps.
    Source: our reading of Meta-Vote Pruning (arXiv:2301.11560) for task vectors.
    """
    recipe, kind = settings or TrainSettings(), regime_called(regime)
    start = {name: value.cpu() for name, value in selected(backbone, kind.selection).items()}
    steps = total_steps([len(part.split)], recipe)
    check_share(keep)
    _check(kind, rounds, steps)
    whole = {name: torch.ones(value.shape, dtype=torch.bool) for name, value in start.items()}
    inside = whole if mask is None else fitted({name: of.cpu() for name, of in mask.items()}, start)
    first, told = _share(inside, start), logged(watch, log)
    others = others_of([part], references) if foreign(recipe.penalty) else []
    given, label = (backbone, start, [part]), f"{kind.name} {part.name}"
    recipe, search = with_rate(*given, recipe, kind, references=others, mask=inside, watch=watch, label=label)
    tuned = partial(
        train, *given, recipe, space=kind.evaluated_in, references=others, watch=telling(told, search)
    )
    tau = {name: torch.zeros_like(value) for name, value in start.items()}
    for number in range(rounds):
        portion = range(steps * number // rounds, steps * (number + 1) // rounds)
        turn = f"{label}, round {number + 1} of {rounds}"
        moved = tuned(displaced=tau, portion=portion, mask=inside, label=turn)
        tau |= {name: tau[name] + step for name, step in moved.items()}
        done = (number + 1) / max(1, rounds - 1)
        inside = _pruned(tau, inside, max(keep, first * (keep / first) ** min(1.0, done)), unit)
        tau = _within(tau, inside)
    more: dict[str, object] = {"keep": keep, "rounds": rounds, "unit": unit, "mask": digest_of(inside)}
    more |= {**read(others), **recorded(search)}
    return as_vector(backbone, tau, regime=kind, settings=recipe, parts=[part], variant="sparse", **more)


def _check(kind: Regime, rounds: int, steps: int) -> None:
    if kind.space not in get_args(Space):
        raise InputError(f"regime: {kind.name!r} is of space {kind.space}, expected ordinary or tangent")
    if not 1 <= rounds <= steps:
        raise InputError(f"rounds: {rounds}, expected 1 to {steps}, the number of steps")


def _share(mask: Masks, start: Mapping[str, Tensor]) -> float:
    """Of all entries that are trained, how many a mask keeps."""
    kept = sum(int(of.sum()) for of in mask.values())
    return kept / sum(value.numel() for value in start.values())


def _pruned(tau: Mapping[str, Tensor], mask: Masks, keep: float, unit: Unit) -> dict[str, Tensor]:
    """Of what a mask keeps, the units of each tensor that moved most: of all units a share ``keep``."""
    most = largest(tau, keep, unit)
    return {name: entries_of(most[name], tau[name]) & of for name, of in mask.items() if name in most}


def _within(tau: Mapping[str, Tensor], mask: Masks) -> dict[str, Tensor]:
    nothing = torch.zeros((), dtype=torch.bool)
    return {name: torch.where(mask.get(name, nothing), step, 0) for name, step in tau.items()}
