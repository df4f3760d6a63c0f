"""How linear fine-tuning was: a model against its own linearization, along its task vector."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.progress import Watch, unwatched
from taskvec.reports.drawing import grid_of_axes, hide_spines, label_axes
from taskvec.reports.numbers import percent
from taskvec.reports.tables import Table
from taskvec.studies.analysis import AnalysisOfVectors, AnalysisRecord, Say, describe, sizes
from taskvec.studies.record import Record
from taskvec.tasks.source import SplitName

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from taskvec.evaluation.evaluator import Evaluator
    from taskvec.evaluation.points import Points
    from taskvec.training.regimes import Regime, Space

_TENTHS = tuple(i / 10 for i in range(1, 11))


class LinearityAnalysis(AnalysisOfVectors):
    """Compare a fine-tuned model with its own linearization along the task vector.

    Example: `taskvec analyze linearity runs/text4/vectors/seed0/*/*.safetensors -m minilm -s text8 -o kernel`
    """

    vectors: tuple[str, ...]
    """Task-vector files, each of one task; vectors of one regime are averaged over tasks."""
    coefficients: tuple[float, ...] | None = None
    """Where to compare; a tenth to one by default. 1 is always among them."""

    def measure(self, watch: Watch, say: Say) -> "LinearityRecord":
        """Every vector in both spaces."""
        from taskvec.evaluation.points import own_space
        from taskvec.training.regimes import regime_of

        evaluator, by_regime, given = self.open(say)
        regimes = (
            RegimePoints(
                name,
                own_space(vectors),
                evaluator.points(vectors, space="ordinary"),
                evaluator.points(vectors, space="tangent"),
                regime_of(name, next(iter(vectors.values())).info.training),
            )
            for name, vectors in by_regime.items()
        )
        tasks, at = list(evaluator.tasks), self.coefficients or _TENTHS
        plain = linearity_gap(evaluator, regimes, tasks, coefficients=at, split=self.split, watch=watch)
        return LinearityRecord(**plain, given=given)


class Course(Record):
    """A model and its linearization at coefficients of one task vector, on that vector's own task."""

    gap: list[float | None]
    accuracy: list[float]
    accuracy_linear: list[float]


class RegimeCourses(Record):
    """The vectors of a regime, and the space that they were trained in."""

    space: str
    tasks: dict[str, Course]


class Advantage(Record):
    """What tasks gain from non-linearity."""

    tasks: dict[str, float]
    mean: float


class LinearityRecord(AnalysisRecord):
    """Gap and accuracies along every vector, and the non-linear advantage by what is compared."""

    analysis: Literal["linearity"] = "linearity"
    model: str
    split: str
    examples: dict[str, int]
    data: dict[str, str]
    precision: str
    tasks: list[str]
    classes: dict[str, int]
    coefficients: list[float]
    pretrained: dict[str, float]
    """Accuracy by task."""
    regimes: dict[str, RegimeCourses]
    advantage: dict[str, Advantage]

    def tables(self) -> Iterator[Table]:
        """One row a regime and task; then the non-linear advantage."""
        first, at_one = f"gap at {self.coefficients[0]:g}", self.coefficients.index(1.0)
        rows = []
        for name, regime in self.regimes.items():
            for task, course in regime.tasks.items():
                f, linear = course.accuracy[at_one], course.accuracy_linear[at_one]
                values = (self.pretrained[task], course.gap[0], course.gap[at_one], f, linear, f - linear)
                rows.append((f"{task}, {name}", *(percent([value]) for value in values)))
        yield Table(
            "Linearity",
            ("task, regime", "pre-trained", first, "gap at 1", "f", "linearized", "difference"),
            rows,
            "Per cent. Gap: distance of a model's features from those of its linearization, over their "
            "distance from the pre-trained ones. f and linearized: accuracy of the same vector at "
            f"coefficient 1 in both spaces, {sizes(self.examples.values())} {self.split} examples a task.",
        )
        if self.advantage:
            gains = [
                (label, *(percent([gain.tasks[task]]) for task in self.tasks), percent([gain.mean]))
                for label, gain in self.advantage.items()
            ]
            note = "Accuracy of f less that of the linear model, in per cent of the range above chance."
            yield Table("Non-linear advantage", ("", *self.tasks, "mean"), gains, note)

    def figures(self) -> "dict[str, Figure]":
        """The gap of every regime, then the accuracies in both spaces, a panel a regime."""
        figure, [(left, *others)] = grid_of_axes(1, 1 + len(self.regimes), 3.6, 3.4)
        for index, (ax, (name, regime)) in enumerate(zip(others, self.regimes.items(), strict=True)):
            gaps, linear, f = [], [], []
            for task, course in regime.tasks.items():
                gaps.append([0.0, *(gap or 0 for gap in course.gap)])
                f.append([self.pretrained[task], *course.accuracy])
                linear.append([self.pretrained[task], *course.accuracy_linear])
            self._draw(left, gaps, f"C{index}", name)
            self._draw(ax, f, f"C{index}", "f")
            self._draw(ax, linear, f"C{index}", "linearized", "--")
            label_axes(ax, "coefficient α", title=f"{name}: mean of tasks", legend="best")
            ax.sharey(others[0])
        others[0].set_ylabel("accuracy, %")
        gap = "distance from the linearization, %\nof the distance moved"
        label_axes(left, "coefficient α", gap, title="features", legend="best")
        left.set_ylim(bottom=0)
        return {"figure": figure}

    def _draw(
        self, ax: "Axes", lines: Sequence[Sequence[float]], color: str, label: str, style: str = "-"
    ) -> None:
        """Shares as per cent: every line thin, their mean thick."""
        at, lines = [0.0, *self.coefficients], [[100 * value for value in line] for line in lines]
        for line in lines if len(lines) > 1 else ():
            ax.plot(at, line, style, color=color, lw=0.6, alpha=0.5)
        mean = [fmean(column) for column in zip(*lines, strict=True)]
        ax.plot(at, mean, style, color=color, lw=2, label=label)
        hide_spines(ax)


def kernel_gap(f: "Tensor", f_lin: "Tensor", f0: "Tensor") -> float | None:
    """How far a model is from its linearization, in units of how far it moved.

        gap(a) = E_x || f_a - f_lin,a || / E_x || f_a - f_0 ||,   f_a = f(x; theta_0 + a tau)

    Args:
        f, f_lin, f0: features (N, d) of the same examples at the three points.

    Returns: 0 in the kernel regime, and of order a for small a in any smooth model; none where the model did
        not move.
    Source: the test of kernel behaviour in Jin et al. 2025 (arXiv:2407.07089).
    """
    moved = (f.double() - f0.double()).norm(dim=-1).mean()
    missed = (f.double() - f_lin.double()).norm(dim=-1).mean()
    return float(missed / moved) if moved > 0 else None


def nonlinear_advantage(nonlinear: float, linear: float, classes: int) -> float:
    """What a task gains from leaving the tangent space, as a share of the range above chance; -1 to 1.

        NLA = (Acc_nl - Acc_lin) / (1 - 1/C)

    Source: Ortiz-Jimenez et al. 2023 (arXiv:2305.12827).
    """
    if classes < 2:
        raise InputError(f"non-linear advantage: {classes} classes, expected 2 or more")
    return (nonlinear - linear) / (1 - 1 / classes)


def follow(
    evaluator: "Evaluator",
    ordinary: "Points",
    tangent: "Points",
    task: str,
    coefficients: Sequence[float],
    *,
    split: SplitName = "test",
    watch: Watch = unwatched,
    label: str = "linearity",
) -> Course:
    """Follow the vector called ``task`` in both spaces, on the data of ``task``.

    Cost: a forward pass a coefficient, and one linearized pass for all of them.
    """

    def at(points: "Points", coefficient: float) -> "tuple[Tensor, float]":
        features, labels = evaluator.features(points.at({task: coefficient}), task, split)
        return features, float((evaluator.head(task)(features).argmax(-1) == labels).double().mean())

    start, _ = at(ordinary, 0.0)
    course = Course(gap=[], accuracy=[], accuracy_linear=[])
    for done, coefficient in enumerate(coefficients, start=1):
        f, accuracy = at(ordinary, coefficient)
        f_lin, accuracy_linear = at(tangent, coefficient)
        course.gap.append(kernel_gap(f, f_lin, start))
        course.accuracy.append(accuracy)
        course.accuracy_linear.append(accuracy_linear)
        watch(label, done, len(coefficients))
    return course


@dataclass(frozen=True)
class RegimePoints:
    """Vectors of one regime under the names of their tasks, in both spaces.

    Args:
        space: the one they were trained in.
        trains: what it trains, where its name does not tell.
    """

    name: str
    space: "Space"
    ordinary: "Points"
    tangent: "Points"
    trains: "Regime | None" = None


@checked
def linearity_gap(
    evaluator: "Evaluator",
    regimes: Iterable[RegimePoints],
    tasks: Sequence[str],
    *,
    coefficients: Sequence[float] = _TENTHS,
    split: SplitName = "test",
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Gap and accuracies along every vector, and what a task gains from non-linearity at coefficient 1.

    The advantage compares a vector trained in ordinary space with its own linearization (*post hoc*) and,
    where there is one, with the vector trained in tangent space on the same parameters.

    Args:
        regimes: taken one after another, so that a generator holds the vectors of one at a time.
        coefficients: 1 is added if it is not among them.

    Returns: a record of plain data.
    Raises: InputError for a coefficient that is not positive and finite, or no task.
    """
    if not tasks or not coefficients or not all(0 < value < math.inf for value in coefficients):
        raise InputError(
            f"linearity: tasks {list(tasks)}, coefficients {list(coefficients)}; expected one task or more, "
            "and finite, positive coefficients"
        )
    from taskvec.training.regimes import regime_of

    values = sorted({*map(float, coefficients), 1.0})

    def courses(regime: RegimePoints) -> dict[str, Course]:
        points, name = (regime.ordinary, regime.tangent), regime.name
        return {
            task: follow(evaluator, *points, task, values, split=split, watch=watch, label=f"{task}, {name}")
            for task in tasks
        }

    measured, trains = {}, {}
    for regime in regimes:
        measured[regime.name] = RegimeCourses(space=regime.space, tasks=courses(regime))
        trains[regime.name] = regime.trains or regime_of(regime.name)
    classes = {task: len(evaluator.head(task).classes) for task in tasks}
    start = {task: evaluator.score(evaluator.pretrained, task, split).accuracy for task in tasks}
    return LinearityRecord(
        **describe(evaluator, tasks, split),
        precision=evaluator.precision,
        classes=classes,
        coefficients=values,
        pretrained=start,
        regimes=measured,
        advantage=dict(_advantages(measured, trains, classes, values.index(1.0))),
    ).model_dump()


def _advantages(
    regimes: Mapping[str, RegimeCourses],
    trains: "Mapping[str, Regime | None]",
    classes: Mapping[str, int],
    at_one: int,
) -> Iterator[tuple[str, Advantage]]:
    """Of every regime in ordinary space, over what there is to compare it with."""
    for name, regime in regimes.items():
        others = {"its linearization": name, **{other: other for other in _linear(name, trains)}}
        for label, other in others.items():
            if regime.space == "ordinary":
                gains = {}
                for task, course in regime.tasks.items():
                    pair = course.accuracy[at_one], regimes[other].tasks[task].accuracy_linear[at_one]
                    gains[task] = nonlinear_advantage(*pair, classes[task])
                yield f"{name} over {label}", Advantage(tasks=gains, mean=fmean(gains.values()))


def _linear(name: str, trains: "Mapping[str, Regime | None]") -> list[str]:
    """The regimes that train the same parameters in tangent space."""
    own = trains[name]
    return [other for other, its in trains.items() if own and its and its.is_tangent_of(own)]
