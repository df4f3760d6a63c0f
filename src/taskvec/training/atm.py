"""ATM: alternate tuning and merging."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone
from taskvec.models.selection import selected
from taskvec.progress import Watch, unwatched
from taskvec.rules import RULES
from taskvec.training.finetune import as_vector
from taskvec.training.logs import Log, logged
from taskvec.training.loop import train
from taskvec.training.parts import Part
from taskvec.training.regimes import Regime, regime_called
from taskvec.training.settings import TrainSettings
from taskvec.training.stream import total_steps
from taskvec.vectors import TaskVector, apply, combine


@checked
def atm(
    backbone: Backbone,
    parts: Sequence[Part],
    *,
    rounds: int,
    regime: str | Regime = "full",
    settings: TrainSettings | None = None,
    rule: str = "mean",
    scale: float = 1.0,
    checkpoint: Path | None = None,
    watch: Watch = unwatched,
    log: Log | None = None,
    **params: Any,
) -> TaskVector:
    """Fine-tune every task from the current model, merge the vectors into it, repeat.

        theta_{k+1} = theta_k + scale * rule(theta_t - theta_k  for t in tasks)

    Args:
        rounds: how often.
        settings: ``epochs`` or ``steps`` are a task's whole budget, spread evenly over the rounds, so that
            numbers of rounds compare at equal cost. Schedule and optimizer state start anew in each round.
        rule: any combination rule, with its parameters in ``params``; ``mean`` with ``scale=1`` is the
            method's default.
        checkpoint: kept while a task trains, one file a round and task beside this path.
        log: as for :func:`taskvec.finetune`; the steps of all rounds and tasks are one series.

    Raises: InputError for no round, or more rounds than a task has steps.

    Returns: the whole displacement ``theta_K - theta_0`` as a task vector.
    Source: Zhou et al. 2024 (arXiv:2411.03055). One round is mean merging of independent fine-tunings; one
        full-batch gradient step a round is multi-task gradient descent.
    """
    if rounds < 1:
        raise InputError(f"rounds: {rounds} is not a number of rounds; give 1 or more")
    RULES[rule].settings(params)  # a bad parameter is an error before the first round, not after it
    recipe = settings or TrainSettings()
    for part in parts:
        steps = total_steps([len(part.split)], recipe)
        if steps < rounds:
            raise InputError(
                f"rounds: {rounds} is more than the {steps} training steps of {part.name!r} to share"
            )
    kind = regime_called(regime)
    if kind.evaluated_in != "ordinary":
        raise InputError(
            f"regime {kind.name!r}: ATM moves the point that a tangent space is taken at; use one of "
            "ordinary space, such as full or attention"
        )
    watch = logged(watch, log)
    start = theta = {name: value.cpu() for name, value in selected(backbone, kind.selection).items()}
    for turn in range(rounds):
        moved = []
        for part in parts:
            deltas = train(
                backbone,
                theta,
                [part],
                _of_one_round(recipe, len(part.split), rounds, turn),
                lora=kind.lora,
                gates=kind.gating,
                checkpoint=_beside(checkpoint, turn, part.name),
                watch=watch,
                label=f"atm round {turn + 1}/{rounds} {part.name}",
            )
            moved.append(TaskVector.from_tensors(deltas, base=theta))
        theta = dict(apply(theta, scale * combine(rule, moved, **params)))
    return as_vector(
        backbone,
        {name: value - start[name] for name, value in theta.items()},
        regime=kind,
        variant="atm",
        settings=recipe,
        parts=parts,
        rounds=rounds,
        rule=rule,
        scale=scale,
    )


def _of_one_round(settings: TrainSettings, examples: int, rounds: int, turn: int) -> TrainSettings:
    """A round's share of a task's budget; rounds see the examples in orders of their own."""
    total = total_steps([examples], settings)
    steps = total * (turn + 1) // rounds - total * turn // rounds
    return settings.model_copy(update={"steps": steps, "seed": settings.seed + turn})


def _beside(checkpoint: Path | None, turn: int, task: str) -> Path | None:
    return checkpoint and checkpoint.with_name(f"{checkpoint.stem}-{turn + 1}-{task}{checkpoint.suffix}")
