"""The rounds of ATM: train every task from where the model stands, merge, move there."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor

from taskvec.models.backbone import Backbone
from taskvec.progress import Watch
from taskvec.rules import RULES, Rule
from taskvec.training.bound import Bound
from taskvec.training.finetune import as_vector
from taskvec.training.logs import Logged, unlogged
from taskvec.training.loop import train
from taskvec.training.moments import Moments
from taskvec.training.parts import Part, others_of
from taskvec.training.penalties.settings import foreign
from taskvec.training.progress import Params, Progress, RoundFile
from taskvec.training.rate import Found, forget, with_rate
from taskvec.training.regimes import Regime
from taskvec.training.settings import TrainSettings
from taskvec.training.stream import portion, total_steps
from taskvec.vectors import TaskVector, apply, combine, similarity
from taskvec.vectors.stored.compact.decoding import Decoded

Aggregator = str | Rule | Callable[..., Tensor]
State = Literal["fresh", "kept"]
Span = Literal["round", "budget"]
Validate = Callable[[TaskVector], Mapping[str, float]]


@dataclass(frozen=True)
class Course:
    """All that stays as it is from round to round; see :func:`taskvec.training.atm.atm`.

    Args:
        theta0: the parameters that are trained, as they were before, on the CPU.
        chosen: tasks a round.
    """

    backbone: Backbone
    parts: Sequence[Part]
    recipe: TrainSettings
    kind: Regime
    rounds: int
    theta0: Params
    rule: Aggregator
    params: Mapping[str, Any]
    scale: float
    state: State
    schedule: Span
    chosen: int
    references: Sequence[Part]
    keep: Path | None
    checkpoint: Path | None
    validate: Validate | None
    watch: Watch

    @property
    def tangent(self) -> bool:
        """Whether a place is tau, at a tangent point that stays."""
        return self.kind.evaluated_in == "tangent"

    def beginning(self, start: TaskVector | None) -> dict[str, Tensor]:
        """The place before the first round: parameters in ordinary space, tau in tangent space."""
        place = dict(self.theta0)
        if self.tangent:
            place = {name: torch.zeros_like(value) for name, value in place.items()}
        return place if start is None else {name: value + start[name] for name, value in place.items()}

    def displacement(self, place: Params) -> dict[str, Tensor]:
        """How far a place lies from the pre-trained model."""
        return dict(place) if self.tangent else {name: t - self.theta0[name] for name, t in place.items()}

    def vector(self, deltas: Params, **more: object) -> TaskVector:
        """A displacement of the pre-trained model, with the settings that made it."""
        settings, parts = self.recipe, self.parts
        return as_vector(
            self.backbone, deltas, regime=self.kind, variant="atm", settings=settings, parts=parts, **more
        )

    def advance(self, progress: Progress, file: RoundFile) -> TaskVector:
        """Train the tasks that are drawn and merge them; what was merged, and ``progress`` is a round on."""
        turn, last = progress.turn, _Last(self.watch)
        drawn = self._drawn(turn)
        for part in drawn:
            if part.name not in progress.deltas:
                self._begin(progress.steps)
                told = last if part is drawn[-1] else self.watch
                progress.deltas[part.name] = self._tuned(part, progress, told)
                progress.steps += len(self._portion(part, turn))
                file.save_if_due(progress)
        base = self.theta0 if self.tangent else progress.place
        vectors = [TaskVector.from_tensors(progress.deltas[part.name], base=base) for part in drawn]
        merged = self.scale * combine(self.rule, vectors, **self._seeded(turn))
        reached = self._moved(progress.place, merged)
        record = dict(self._record(progress, vectors, reached))
        self._tell(last, drawn[-1], progress, record)
        progress.history.append(record)
        progress.place, progress.turn, progress.deltas = reached, turn + 1, {}
        file.save_if_due(progress)
        return merged

    def _tell(self, last: "_Last", part: Part, progress: Progress, record: Mapping[str, Any]) -> None:
        """Tell of a round's last step, with the figures of the round."""
        if not last.holds:  # a process that is gone took it, and did not live to tell
            steps = len(self._portion(part, progress.turn))
            self._begin(progress.steps - steps)
            last(self._label(part, progress.turn), steps, steps)
        last.release(record)

    def _tuned(self, part: Part, progress: Progress, watch: Watch) -> Params:
        """How far a task moves the model in a round."""
        turn, portion = progress.turn, self._portion(part, progress.turn)
        at: Params = progress.place
        displaced: Params | None = None
        penalized = bool(self.recipe.penalty) and self.kind.gating is None
        if self.tangent or penalized:  # a penalty is of the whole displacement
            at, displaced = self.theta0, self.displacement(progress.place)
        whole = self.schedule == "budget"
        changed = {} if whole else {"steps": len(portion), "seed": self.recipe.seed + turn}
        return train(
            self.backbone,
            at,
            [part],
            self._rates[part.name][0].model_copy(
                update=changed
            ),  # rounds see the examples in orders of their own
            space=self.kind.evaluated_in,
            lora=self.kind.lora,
            gates=self.kind.gating,
            checkpoint=self._beside(turn, part.name),
            references=[*self.parts, *self.references],
            keep=self.keep,
            seed=self.recipe.seed,  # the rounds share what is measured
            displaced=displaced,
            portion=portion if whole else None,
            moments=progress.moments.setdefault(part.name, Moments()) if self.state == "kept" else None,
            watch=watch,
            label=self._label(part, turn),
        )

    def _label(self, part: Part, turn: int) -> str:
        return f"atm round {turn + 1}/{self.rounds} {part.name}"

    def _begin(self, steps: int) -> None:
        """Have the log count on from what all tasks took so far."""
        if isinstance(self.watch, Logged):
            self.watch.begin(steps)

    @cached_property
    def _rates(self) -> dict[str, tuple[TrainSettings, Found | None]]:
        """Each task's settings with a learning rate that is a number; one that is searched for is that of the
        task by itself."""
        others = [*self.parts, *self.references] if foreign(self.recipe.penalty) else []
        return {
            part.name: with_rate(
                *(self.backbone, self.theta0, [part], self.recipe, self.kind),
                references=others_of([part], others),
                keep=self.keep,
                checkpoint=self._beside(0, part.name),
                watch=unlogged(self.watch),
                label=f"{self.kind.name} {part.name}",
            )
            for part in self.parts
        }

    def searches(self) -> dict[str, object]:
        """For provenance, the searches for learning rates by task, if there were any; what they kept on disk
        is removed."""
        for part in self.parts:
            forget(self._beside(0, part.name))
        found = {name: search.record() for name, (_, search) in self._rates.items() if search}
        return {"lr_search": found} if found else {}

    def _portion(self, part: Part, turn: int) -> range:
        """A round's steps of a task's budget."""
        return portion(total_steps([len(part.split)], self.recipe), self.rounds, turn)

    def _beside(self, turn: int, task: str) -> Path | None:
        path = self.checkpoint
        if not re.fullmatch(r"[\w. -]{1,100}", task):  # no name of a file: its place stands for it
            task = f"task{[part.name for part in self.parts].index(task)}"
        return path and path.with_name(f"{path.stem}-{turn + 1}-{task}{path.suffix}")

    def _drawn(self, turn: int) -> list[Part]:
        """The tasks that take part in a round, in their order."""
        draw = torch.Generator().manual_seed((self.recipe.seed << 20) + turn)
        places = torch.randperm(len(self.parts), generator=draw)[: self.chosen]
        return [self.parts[place] for place in sorted(places.tolist())]

    def _seeded(self, turn: int) -> dict[str, Any]:
        """The rule's parameters in a round: what it drops at random in one may stay in the next."""
        known = RULES[self.rule] if isinstance(self.rule, str) else self.rule
        usual = known.parameters() if isinstance(known, Rule) else {}
        if turn == 0 or "seed" not in usual:
            return dict(self.params)
        return {**self.params, "seed": int(self.params.get("seed", usual["seed"])) + turn}

    def _moved(self, place: Params, vector: TaskVector) -> dict[str, Tensor]:
        if not self.tangent:
            return dict(apply(place, vector))
        return {name: value + vector[name] if name in vector else value for name, value in place.items()}

    def _record(
        self, progress: Progress, vectors: Sequence[TaskVector], reached: Params
    ) -> Iterator[tuple[str, Any]]:
        """What is to be said of a round, as plain data."""
        deltas = self.displacement(reached)
        yield "round", progress.turn + 1
        yield "tasks", list(progress.deltas)
        yield "norm", math.sqrt(sum(float(value.double().square().sum()) for value in deltas.values()))
        yield "bytes", self._exchanged(progress)
        cosines = [[value if math.isfinite(value) else 0.0 for value in row] for row in _cosines(vectors)]
        yield "cosines", cosines
        if len(vectors) > 1:
            yield "cosine", fmean(cosines[i][j] for i in range(len(cosines)) for j in range(i))
        times, turn = self.recipe.validations, progress.turn
        if (turn + 1) * times // self.rounds > turn * times // self.rounds:
            models = (self._moved(progress.place, vector) for vector in vectors)
            yield "mean_of_losses", fmean(self._bound.loss(model) for model in models)
            yield "loss_of_mean", self._bound.loss(reached)
            if self.validate is not None:
                yield from self.validate(self.vector(deltas)).items()

    @cached_property
    def _bound(self) -> Bound:
        return Bound(self.backbone, self.parts, self.theta0, self.kind.evaluated_in)

    def _exchanged(self, progress: Progress) -> int:
        """Bytes that a round sends: to each task at work a displacement, from each what it learned."""
        model = sum(value.nbytes for value in progress.place.values())
        return model * len(progress.deltas) + sum(map(_held, progress.deltas.values()))


class _Last:
    """A watcher that holds back the last step of a round until its figures are there."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._held: tuple[str, int, int, dict[str, float]] | None = None

    def __call__(self, label: str, done: int, total: int, **facts: float) -> None:
        if done < total or not label.startswith("atm round"):
            self._watch(label, done, total, **facts)
        else:
            self._held = (label, done, total, facts)

    @property
    def holds(self) -> bool:
        """Whether there was a last step."""
        return self._held is not None

    def release(self, record: Mapping[str, Any]) -> None:
        """Tell of the last step, with the figures of the round."""
        if self._held is not None:
            label, done, total, facts = self._held
            figures = {name: value for name, value in record.items() if isinstance(value, float)}
            self._watch(label, done, total, **facts, **figures)


def _cosines(vectors: Sequence[TaskVector]) -> list[list[float]]:
    rows: list[list[float]] = similarity(vectors).tolist()
    return rows


def _held(deltas: Params) -> int:
    """Bytes of what a task learned: tensors, or their factors."""
    values = deltas.stored if isinstance(deltas, Decoded) else deltas
    return sum(values[name].nbytes for name in values)
