"""ATM: alternate tuning and merging."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone, refuse_sharded
from taskvec.models.selection import selected
from taskvec.progress import Watch, unwatched
from taskvec.registry import nearest
from taskvec.rules import RULES, Rule
from taskvec.training.finetune import read
from taskvec.training.logs import Log, logged
from taskvec.training.loop import sums
from taskvec.training.parts import Part, others_of
from taskvec.training.penalties.factors import kept
from taskvec.training.penalties.settings import foreign
from taskvec.training.progress import Progress, RoundFile
from taskvec.training.regimes import Regime, regime_called
from taskvec.training.rounds import Aggregator, Course, Span, State, Validate
from taskvec.training.settings import TrainSettings
from taskvec.training.stream import total_steps
from taskvec.vectors import TaskVector


@checked
def atm(
    backbone: Backbone,
    parts: Sequence[Part],
    *,
    rounds: int,
    regime: str | Regime = "full",
    settings: TrainSettings | None = None,
    rule: Aggregator = "mean",
    scale: float = 1.0,
    start: TaskVector | None = None,
    state: State = "fresh",
    schedule: Span = "round",
    participation: int | float | None = None,
    references: Sequence[Part] = (),
    folder: Path | None = None,
    checkpoint: Path | None = None,
    validate: Validate | None = None,
    watch: Watch = unwatched,
    log: Log | None = None,
    **params: Any,
) -> TaskVector:
    """Fine-tune every task from the current model, merge the vectors into it, repeat.

        theta_{k+1} = theta_k + scale * rule(theta_t - theta_k  for t in tasks)

    In regimes of tangent space tau takes the place of theta, and the tangent point stays.

    Args:
        rounds: how often; 0 where there is a ``start``, which is the result then.
        settings: ``epochs`` or ``steps`` are a task's whole budget, spread evenly over the rounds, so that
            numbers of rounds compare at equal cost. ``lr: auto`` finds each task's rate once, as for its own
            fine-tuning.
        rule: any combination rule or function, see :func:`taskvec.combine`, with its parameters in
            ``params``; ``mean`` with ``scale=1`` is the method's default. The seed of one that draws counts
            up from round to round.
        start: a merge to go on from; it moves nothing that the regime does not train.
        state: of each task's optimizer: ``fresh`` in every round, or ``kept``.
        schedule: warm-up, decay and the order of the examples run anew in every ``round``, or once over the
            whole ``budget``. With state kept, that trains a single task without an interruption.
        participation: tasks a round, a number or a share below 1, drawn by the seed; all by default. A task
            that sits out makes up for nothing.
        references: other tasks, of which penalties may use the inputs beside those of ``parts``.
        folder: for what penalties measure once, see ``keep`` of :func:`taskvec.finetune`.
        checkpoint: kept between tasks and, one file a round and task beside this path, while one trains.
        validate: figures of the whole displacement, for the record of a round. These, and both sides of the
            bound, are taken ``settings.validations`` times.
        log: as for :func:`taskvec.finetune`; the steps of all rounds and tasks are one series, in which the
            last step of a round holds the figures of the round.

    Raises: InputError for no round, or more rounds than a task has steps; for a rule that needs statistics,
        and a start that the regime does not train.

    Returns: the whole displacement ``theta_K - theta_0`` as a task vector. ``info.training["history"]`` has a
        record a round: the ``tasks``, their ``cosines``, the displacement's ``norm``, the ``bytes`` sent,
        ``loss_of_mean`` and ``mean_of_losses`` (see :class:`taskvec.training.bound.Bound`).
    Source: Zhou et al. 2024 (arXiv:2411.03055). One round is mean merging of independent fine-tunings; one
        full-batch gradient step a round is multi-task gradient descent.
    """
    refuse_sharded(backbone, "atm")
    recipe, kind = settings or TrainSettings(), regime_called(regime)
    if rounds < (start is None):
        raise InputError(f"rounds: {rounds} is not a number of rounds; give 1 or more")
    if not math.isfinite(scale):
        raise InputError(f"scale: {scale}, expected a finite number")
    check_options(state, schedule, kind)
    _check_names(parts)
    chosen = participants(participation, len(parts))
    check_aggregator(rule, params, chosen)
    _check_budget(parts, recipe, rounds)
    theta0 = {name: value.cpu() for name, value in selected(backbone, kind.selection).items()}
    course = Course(
        backbone=backbone,
        parts=parts,
        recipe=recipe,
        kind=kind,
        rounds=rounds,
        theta0=theta0,
        rule=rule,
        params=params,
        scale=scale,
        state=state,
        schedule=schedule,
        chosen=chosen,
        references=references,
        keep=folder,
        checkpoint=checkpoint,
        validate=validate,
        watch=logged(watch, log),
    )
    usual = {"state": "fresh", "schedule": "round", "participation": None}
    given = {"state": state, "schedule": schedule, "participation": participation}
    name = rule if isinstance(rule, str) else getattr(rule, "name", getattr(rule, "__name__", "custom"))
    told: dict[str, object] = {"rounds": rounds, "rule": name, "scale": scale}
    told |= {key: value for key, value in given.items() if value != usual[key]}
    told |= read(others_of(parts, references) if foreign(recipe.penalty) else [], recipe.penalty)
    if start is not None:
        _check_start(start, theta0, kind)
        start = start.with_base(backbone.source) if start.base.unbound else start
    file = RoundFile(checkpoint, _signature(course, {**told, **params}, start))
    progress = file.restore(Progress(course.beginning(start)))
    merged: TaskVector | None = None
    with kept(folder, recipe.penalty) as keep:
        course = replace(course, keep=keep)
        while progress.turn < rounds:
            merged = course.advance(progress, file)
    deltas = course.displacement(progress.place)
    if rounds == 1 and start is None and merged is not None:
        # As it was merged, not rounded by adding it to the weights and taking these off.
        deltas = {name: merged[name] for name in deltas}
    vector = course.vector(deltas, **told, history=progress.history, **course.searches())
    file.remove()
    return vector


def participants(participation: float | None, tasks: int) -> int:
    """How many tasks take part in a round. Raises: InputError."""
    if participation is None:
        return tasks
    if not isinstance(participation, int):
        if not 0 < participation < 1:
            raise InputError(
                f"participation: {participation:g}, expected a share between 0 and 1, or a whole number of "
                "tasks; leave it out for all"
            )
        return max(1, round(participation * tasks))
    if not 0 < participation <= tasks:
        raise InputError(f"participation: {participation} tasks a round, expected 1 to {tasks}")
    return participation


def check_aggregator(rule: Aggregator, params: Mapping[str, Any], tasks: int | None = None) -> None:
    """Refuse a rule that cannot merge rounds, before the first of them. Raises: InputError, UnknownName."""
    known = RULES[rule] if isinstance(rule, str) else rule
    if not isinstance(known, Rule):
        return
    if "_stats" in known.keywords:
        raise InputError(
            f"rule {known.name!r} needs statistics of every task's model, which no round measures; take one "
            "that merges vectors alone, such as mean or ties"
        )
    known.settings(params, tasks=tasks)


def check_options(state: str, schedule: str, kind: Regime) -> None:
    """Refuse what does not go together. Raises: InputError."""
    for field, value, known in (("state", state, get_args(State)), ("schedule", schedule, get_args(Span))):
        if value not in known:
            raise InputError(f"{field}: {value!r}, expected {' or '.join(known)}; {nearest(value, known)}")
    anew = "factors" if kind.lora else "gates" if kind.gating else None
    if state == "kept" and anew:
        raise InputError(
            f"state: kept, and the {anew} of regime {kind.name!r} begin anew in every round; take fresh, or "
            "a regime of whole tensors"
        )


def _check_names(parts: Sequence[Part]) -> None:
    names = [part.name for part in parts]
    twice = [name for name in names if names.count(name) > 1]
    if twice or not names:
        found = f"two are called {twice[0]!r}" if twice else "none"
        raise InputError(f"parts: {found}, expected one or more tasks, each with a name of its own")


def _check_budget(parts: Sequence[Part], recipe: TrainSettings, rounds: int) -> None:
    for part in parts:
        steps = total_steps([len(part.split)], recipe)
        if steps < rounds:
            raise InputError(
                f"rounds: {rounds} is more than the {steps} training steps of {part.name!r} to share"
            )


def _check_start(start: TaskVector, theta0: Mapping[str, object], kind: Regime) -> None:
    beyond = [name for name in start if name not in theta0 and start.terms_at(name)]
    if beyond:
        raise InputError(
            f"start: moves {beyond[0]!r}, which regime {kind.name!r} does not train; take a regime that does"
        )


def _signature(course: Course, told: Mapping[str, object], start: TaskVector | None) -> str:
    """What the file of a training must agree with to be gone on from."""
    parts = [
        [part.name, part.fingerprint, len(part.split), part.objective.fingerprint()] for part in course.parts
    ]
    settings = course.recipe.told(but={"validations", "checkpoint_activations"})
    about = {"settings": settings, "parts": parts, "space": course.kind.space, "start": sums(course.theta0)}
    more: dict[str, object] = dict(course.kind.details()) if course.kind.lora or course.kind.gating else {}
    if start is not None:
        more["from"] = sums({name: start[name] for name in course.theta0})
    return json.dumps({**about, **more, **told}, sort_keys=True, default=repr)
