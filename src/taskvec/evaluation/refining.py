"""ATM after the fact: a few rounds on validation labels, from a model that is merged already."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.metrics import absolute, normalized
from taskvec.models.selection import selected
from taskvec.progress import Watch, unwatched
from taskvec.tasks.kinds.classification import Classifying
from taskvec.tasks.split import Split
from taskvec.training.atm import atm
from taskvec.training.finetune import as_vector
from taskvec.training.loop import train
from taskvec.training.parts import Part
from taskvec.training.penalties.settings import foreign
from taskvec.training.rate import with_rate
from taskvec.training.regimes import Regime, regime_called
from taskvec.training.settings import TrainSettings
from taskvec.training.stream import total_steps
from taskvec.vectors import TaskVector

Params = Mapping[str, Tensor]
Values = Mapping[str, float]


@dataclass(frozen=True)
class Refined:
    """A merge after the rounds that were best on the validation examples kept apart.

    Attributes:
        vector: the whole displacement.
        rounds: that were taken; 0 where no round was better than none.
        scale: of each round.
        value: of the kept examples, the mean over tasks that was chosen by.
        labels: validation examples that were used, and how many of them were ``kept`` apart to choose by.
        trace: (scale, round, value) of all that was tried.
        bytes: that were sent in the rounds taken.
    """

    vector: TaskVector
    rounds: int
    scale: float
    value: float
    labels: int
    kept: int
    trace: list[tuple[float, int, float]]
    bytes: int = 0


@checked
def refine(
    evaluator: Evaluator,
    start: TaskVector,
    tasks: Sequence[str],
    *,
    rounds: int,
    regime: str | Regime = "full",
    settings: TrainSettings | None = None,
    rule: str = "mean",
    scales: Sequence[float] = (1.0,),
    apart: float = 0.2,
    single: Values | None = None,
    jointly: bool = False,
    watch: Watch = unwatched,
    **params: Any,
) -> Refined:
    """Go on from a merge by rounds of ATM on the tasks' validation splits, and stop where that is best.

    Args:
        start: any merge, ready scaled, that moves nothing which the regime does not train.
        rounds: at most; none gives back the start.
        settings: ``epochs`` or ``steps`` are those of each task in all rounds.
        rule, params: see :func:`taskvec.atm`.
        scales: of each round, each tried from the start; the training is done as often.
        apart: the share of every validation split that no round sees, drawn by the seed and, of
            classifications, of each class. The number of rounds and the scale are chosen on it; ties go to
            fewer rounds.
        single: validation values of the tasks' own models, to choose by the normalized mean in place of the
            absolute one.
        jointly: tune one model on the labels of all tasks at once, as many steps in all, in place of rounds:
            what rounds are to be compared with.

    Raises: InputError, also for a validation split too small to be parted.
    Source: our reading of the post-hoc use in Zhou et al. 2024 (arXiv:2411.03055).
    """
    recipe, kind = settings or TrainSettings(), regime_called(regime)
    _check(tasks, rounds, scales, apart)
    if jointly and foreign(recipe.penalty):
        raise InputError(
            "penalty: reads the inputs of other tasks, and tuning on all together leaves none; leave out the "
            "penalty or jointly"
        )
    parted = {task: _parted(evaluator, task, apart, recipe.seed) for task in tasks}
    judge = evaluator.on_examples("validation", {task: kept for task, (_, kept) in parted.items()})
    best = _Best(judge, tasks, kind, single)
    best.offer(start, scales[0], 0)
    sent: dict[float, list[int]] = {}
    if rounds:
        parts = [_part(evaluator, task, *of) for task, of in parted.items()]
        recipe = recipe.model_copy(update={"validations": rounds})
        if jointly:
            _tune(evaluator, start, parts, kind, recipe, best, watch)
        for scale in () if jointly else scales:
            best.turn = 0
            gone = atm(
                evaluator.backbone,
                parts,
                rounds=rounds,
                regime=kind,
                settings=recipe,
                rule=rule,
                scale=scale,
                start=start,
                validate=lambda vector, scale=scale: best.next(vector, scale),  # type: ignore[misc]
                watch=watch,
                **params,
            )
            sent[scale] = [record["bytes"] for record in (gone.info.training or {})["history"]]
    kept = sum(len(kept) for _, kept in parted.values())
    labels = sum(len(tuned) for tuned, _ in parted.values()) + kept
    vector, scale, taken, value = best.chosen()
    exchanged = sum(sent.get(scale, [])[:taken])
    return Refined(vector, taken, scale, value, labels if rounds else 0, kept, best.trace, exchanged)


def _check(tasks: Sequence[str], rounds: int, scales: Sequence[float], apart: float) -> None:
    for name, given in (("tasks", tasks), ("scales", scales)):
        if not given:
            raise InputError(f"{name}: none given, expected one or more")
    if rounds < 0:
        raise InputError(f"rounds: {rounds} is not a number of rounds; give 0 or more")
    if not 0 < apart < 1:
        raise InputError(f"apart: {apart:g}, expected a share between 0 and 1")


@dataclass
class _Best:
    """The best of the models that were tried, by their value on the examples kept apart."""

    judge: Evaluator
    tasks: Sequence[str]
    kind: Regime
    single: Values | None
    turn: int = 0
    trace: list[tuple[float, int, float]] = field(default_factory=list)
    _best: tuple[TaskVector, float, int, float] | None = None

    def next(self, vector: TaskVector, scale: float) -> dict[str, float]:
        """Try the model after one more round."""
        self.turn += 1
        return {"kept_apart": self.offer(vector, scale, self.turn)}

    def offer(self, vector: TaskVector, scale: float, turn: int) -> float:
        """Try a model; its value."""
        point = self.judge.points({"": vector}, space=self.kind.evaluated_in).at({"": 1.0})
        values = self.judge.values(point, self.tasks, "validation")
        value = absolute(values) if self.single is None else normalized(values, self.single)
        self.trace.append((scale, turn, value))
        if self._best is None or value > self._best[3]:
            self._best = (vector, scale, turn, value)
        return value

    def chosen(self) -> tuple[TaskVector, float, int, float]:
        """Vector, scale, rounds, value."""
        assert self._best is not None
        return self._best


def _parted(evaluator: Evaluator, task: str, apart: float, seed: int) -> tuple[Split, Split]:
    """A validation split without a share of it, and that share."""
    split = evaluator.split(task, "validation")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    groups = [order]
    if isinstance(evaluator.objective(task), Classifying):
        labels = split.labels[order]
        groups = [order[labels == label] for label in torch.unique(labels)]
    # The last of each class, so that the whole share is exact where classes are small.
    place = torch.cat([(torch.arange(len(group)) + 0.5) / len(group) for group in groups])
    ranked = torch.cat(groups)[place.argsort(stable=True)]
    count = max(1, round(apart * len(split)))
    if count == len(split):
        raise InputError(
            f"{task}: {len(split)} validation examples, expected enough to keep {apart:g} of them apart and "
            "to tune on the others; raise limits.validation"
        )
    return split.at(ranked[count:]), split.at(ranked[:count])


def _part(evaluator: Evaluator, task: str, tuned: Split, kept: Split) -> Part:
    """What the task brings to training on some examples; what finds a learning rate are those kept apart."""
    examples = evaluator.objective(task).examples
    seen, unseen = (examples(evaluator.backbone, split) for split in (tuned, kept))
    return replace(evaluator.part(task), split=seen, validation=unseen)


def _tune(
    evaluator: Evaluator,
    start: TaskVector,
    parts: Sequence[Part],
    kind: Regime,
    recipe: TrainSettings,
    best: _Best,
    watch: Watch,
) -> None:
    """Offer what training on all parts together gives, as often as rounds would."""
    theta0 = {name: value.cpu() for name, value in selected(evaluator.backbone, kind.selection).items()}
    before = {name: start[name] for name in theta0}
    steps = sum(total_steps([len(part.split)], recipe) for part in parts)

    def offer(deltas: Params) -> dict[str, float]:
        whole = {name: value + deltas[name] if name in deltas else value for name, value in before.items()}
        vector = as_vector(
            evaluator.backbone, whole, regime=kind, settings=recipe, parts=parts, variant="post hoc"
        )
        return best.next(vector, 1.0)

    recipe = recipe.model_copy(update={"steps": steps})
    recipe, _ = with_rate(evaluator.backbone, theta0, parts, recipe, kind, watch=watch)
    train(
        evaluator.backbone,
        theta0,
        parts,
        recipe,
        space=kind.evaluated_in,
        lora=kind.lora,
        gates=kind.gating,
        displaced=before,
        validate=offer,
        watch=watch,
        label="tuning together",
    )
