"""Weight disentanglement: how far one task's vector disturbs the model on another task's data."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from taskvec.arguments import checked
from taskvec.config import Config
from taskvec.errors import InputError, TaskvecError
from taskvec.progress import Watch, unwatched
from taskvec.reports.charts.heat import Heat
from taskvec.reports.drawing import draw_heat_map, grid_of_axes, name_ticks, number_cells
from taskvec.reports.numbers import Mean, percent
from taskvec.reports.tables import Table
from taskvec.studies.analysis import (
    AnalysisOfVectors,
    AnalysisRecord,
    Say,
    check_classes,
    describe,
    sizes,
)
from taskvec.studies.heat import heat_maps
from taskvec.studies.record import Plain, Record
from taskvec.studies.study import Results, Study
from taskvec.tasks.source import SplitName

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from taskvec.evaluation.evaluator import Evaluator
    from taskvec.evaluation.points import Points
    from taskvec.studies.experiment import Experiment
    from taskvec.studies.numerics.disentanglement import Maps
    from taskvec.studies.trial import Cell, Trial
    from taskvec.tasks.suite import Suite
    from taskvec.training.regimes import Space
    from taskvec.vectors import TaskVector

DISTANCES = {
    "prediction": "share of predictions that differ",
    "output_kl": "symmetric KL of softmaxed logits",
    "feature_kl": "symmetric KL of softmaxed features",
    "feature_cosine": "1 - cosine of features",
}
"""The first two are behind the head, the last two before it."""


class Plane(Config):
    """Equally spaced coefficients of two tasks, both ends included; an odd number around 0 holds 0."""

    start: float = -3.0
    stop: float = 3.0
    points: int = Field(default=21, ge=2, le=1001)

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.start < self.stop:
            raise ValueError("start < stop must hold")
        return self


class DisentanglementSettings(Config):
    """Heat maps of how far the vectors of two tasks disturb each other."""

    pairs: tuple[tuple[str, str], ...] = Field(min_length=1)
    grid: Plane = Plane()
    samples: PositiveInt = 200
    """Test examples of each task, the first ones; their labels are not read."""
    regimes: tuple[str, ...] | None = None
    """Default: all of the experiment."""


class DisentanglementAnalysis(AnalysisOfVectors):
    """Map how far two tasks disturb each other's predictions, over a plane of coefficients.

    Example: `taskvec analyze disentanglement runs/text4/vectors/seed0/*/*.safetensors -m minilm -s text8
    --pair sst2 ag_news -o heat`
    """

    vectors: tuple[str, ...]
    """Task-vector files, each of one task; vectors of one regime make a panel, in the space they were
    trained in."""
    pair: tuple[tuple[str, str], ...] = ()
    """Two tasks; may be given several times, each pair once. All pairs by default."""
    grid: tuple[float, float, float] = (-3.0, 3.0, 21)
    """First and last coefficient and how many, a whole number, for both tasks."""
    post_hoc: bool = False
    """Also show the ordinary vectors in the tangent space of the pre-trained model."""

    def measure(self, watch: Watch, say: Say) -> "DisentanglementRecord":
        """Maps of every pair in every panel."""
        from taskvec.studies.numerics.disentanglement import square_grid

        grid = square_grid(*self.grid)
        evaluator, regimes, given = self.open(say, only=[name for pair in self.pair for name in pair])
        panels, tasks, pairs = self._panels(evaluator, regimes), list(evaluator.tasks), self.pair or None
        plain = disentanglement(
            evaluator, panels, tasks, pairs=pairs, split=self.split, grid=grid, watch=watch
        )
        return DisentanglementRecord(**plain, given=given)

    def _panels(
        self, evaluator: "Evaluator", regimes: "Mapping[str, Mapping[str, TaskVector]]"
    ) -> "Iterator[Panel]":
        """Every regime in its own space; ordinary ones in tangent space too if ``post_hoc``."""
        from taskvec.evaluation.points import own_space

        for regime, vectors in regimes.items():
            panels = {regime: own_space(vectors)}
            if self.post_hoc and panels[regime] == "ordinary":
                panels[f"{regime}, post hoc"] = "tangent"
            for label, space in panels.items():
                yield Panel(label, regime, space, evaluator.points(vectors, space=space))


class Summary(Record):
    """What a pair's maps come to, one number each; none where no point of the grid is in the region.

        share = mean over (0, 1]^2 of error / mean over (0, 1]^2 of movement

    The share has no unit, so that shares before the head (of features) and behind it (of logits) compare,
    both with the KL divergence.
    """

    box: float | None
    """Mean of xi over [-1, 1]^2."""
    quadrant: float | None
    """Over (0, 1]^2, as all that follow."""
    features: float | None
    outputs: float | None
    share_before_head: float | None
    share_behind_head: float | None
    head_effect: float | None
    """The share behind the head less the one before it: positive where the head adds interference that the
    representation does not have."""


class PairMaps(Record):
    """A pair of tasks in one panel."""

    summary: Summary
    maps: dict[str, list[list[float]]]
    """Errors by distance; rows are values of the first task's coefficient."""


class Disentangled(PairMaps):
    """The same of a regime of an experiment."""

    cell = "disentanglement"
    tasks: list[str]
    grid: list[float]
    examples: list[int]


class Pair(Record):
    """A pair of tasks in all panels."""

    tasks: list[str]
    panels: dict[str, PairMaps]


class DisentanglementRecord(AnalysisRecord):
    """Maps and their summaries for pairs of tasks, in every panel."""

    analysis: Literal["disentanglement"] = "disentanglement"
    model: str
    split: str
    examples: dict[str, int]
    heads: dict[str, str]
    data: dict[str, str]
    precision: str
    tasks: list[str]
    grid: list[float]
    distances: dict[str, str] = DISTANCES
    reduction: str = "sum over the two tasks of means over examples; 0 to 2 for predictions"
    panels: dict[str, dict[str, str]]
    pairs: list[Pair]

    def tables(self) -> list[Table]:
        """One row a pair and panel."""
        regions = ("ξ [−1, 1]²", "ξ (0, 1]²")
        divergences = ("KL features", "KL outputs", "share features", "share outputs", "head effect")
        rows = [
            (f"{' + '.join(pair.tasks)}, {label}", *_cells(panel.summary))
            for pair in self.pairs
            for label, panel in pair.panels.items()
        ]
        note = (
            "ξ: mean over a region of the share of predictions that the other task's vector changes, per "
            f"cent, summed over both tasks (0 to 200); {sizes(self.examples.values())} {self.split} examples "
            "a task. KL: the same with a divergence over (0, 1]², of features (before the head) and outputs "
            "(behind it). Share: that divergence in per cent of the one from the pre-trained model; head "
            "effect: outputs less features."
        )
        return [Table("Weight disentanglement", ("pair, panel", *regions, *divergences), rows, note)]

    def figures(self) -> "dict[str, Figure]":
        """One pair: its maps. Several: a matrix of pairs, and the maps of each in a figure of its own."""
        maps = {"-".join(pair.tasks): _draw_maps(self.grid, pair.tasks, pair.panels) for pair in self.pairs}
        first, *others = maps.values()
        return {"figure": self._matrices(), **maps} if others else {"figure": first}

    def _matrices(self) -> "Figure":
        """Mean prediction error of every pair of tasks: in (0, 1]² above the diagonal, in [-1, 1]² below."""
        values = {name: self._by_pair(name) for name in self.panels}
        known = [value for rows in values.values() for row in rows for value in row if not math.isnan(value)]
        top = max([1e-9, *known])
        side = 0.55 * len(self.tasks)
        figure, [axes] = grid_of_axes(1, len(values), 1.6 + side, 1.3 + side)
        for ax, (name, rows) in zip(axes, values.items(), strict=True):
            image = ax.imshow(rows, vmin=0, vmax=top, cmap="viridis")
            number_cells(ax, rows, "{:.2f}", lambda value: value < 0.6 * top)
            name_ticks(ax, self.tasks, "small")
            ax.set_title(name, fontsize="medium")
        figure.colorbar(image, ax=axes, label="mean ξ (0 to 2)", shrink=0.8)
        figure.supxlabel("above the diagonal: over (0, 1]²; below: over [−1, 1]²", fontsize="small")
        return figure

    def _by_pair(self, panel: str) -> list[list[float]]:
        values = [[math.nan] * len(self.tasks) for _ in self.tasks]
        for pair in self.pairs:
            i, j = sorted(map(self.tasks.index, pair.tasks))
            summary = pair.panels[panel].summary
            values[i][j] = math.nan if summary.quadrant is None else summary.quadrant
            values[j][i] = math.nan if summary.box is None else summary.box
        return values


def _cells(summary: Summary) -> Iterator[Mean]:
    for name, value in summary:
        yield Mean([value], ".4f") if name in ("features", "outputs") else percent([value])


class Disentanglement(Study[DisentanglementSettings]):
    """Every pair by itself, in every regime."""

    title = "Weight disentanglement"
    settings = DisentanglementSettings

    def check(self, experiment: "Experiment", suite: "Suite") -> None:
        experiment.check_regimes("disentanglement", self.block.regimes)
        names = experiment.task_names(suite)
        for pair in self.block.pairs:
            if pair[0] == pair[1] or not {*pair} <= {*names}:
                raise InputError(
                    f"disentanglement.pairs: {' '.join(pair)}, expected two of the tasks {', '.join(names)}"
                )
            check_classes(map(suite.task, pair))

    def cells(self, trial: "Trial") -> "Iterator[Cell[Record]]":
        block = self.block
        if trial.regime in (block.regimes or trial.experiment.regimes):
            inputs = {"grid": block.grid.model_dump(), "samples": block.samples, "split": "test"}
            for pair in block.pairs:
                yield trial.cell(Disentangled, partial(_map, pair=pair, settings=block), pair, **inputs)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        pairs = results.stored(Disentangled, regime, seed)
        return {"disentanglement": pairs} if pairs else {}

    def tables(self, results: Results) -> Iterator[Table]:
        by_regime = results.by_regime(Disentangled)
        if not by_regime:
            return
        pairs = [seeds[0] for seeds in next(iter(by_regime.values()))]
        names = [" + ".join(pair.tasks) for pair in pairs]
        rows = []
        for regime, of_regime in by_regime.items():
            cells = (
                percent([getattr(maps.summary, region) for maps in seeds])
                for seeds in of_regime
                for region in ("box", "quadrant")
            )
            rows.append((regime, *cells))
        note = (
            "Mean of ξ over the square of coefficients and over its positive quadrant, per cent: the share "
            "of predictions that the other task's vector changes, summed over both tasks (0 to 200), lower "
            f"is better; {sizes(size for pair in pairs for size in pair.examples)} test examples a task."
        )
        columns = ["", *(column for name in names for column in (f"{name}: [−1, 1]²", "(0, 1]²"))]
        yield Table("Weight disentanglement error", columns, rows, note)

    def charts(self, results: Results) -> Iterator[Heat]:
        """Of the first seed: predictions and representations of every pair."""
        first = {
            regime: [seeds[0] for seeds in of_regime]
            for regime, of_regime in results.by_regime(Disentangled).items()
        }
        for panels in zip(*first.values(), strict=True):
            maps = {regime: panel.maps for regime, panel in zip(first, panels, strict=True)}
            several = len(results.plan.experiment.seeds) > 1
            yield from heat_maps(
                panels[0].tasks, panels[0].grid, maps, "The first seed." if several else "One seed."
            )


def _map(trial: "Trial", pair: tuple[str, str], settings: DisentanglementSettings) -> Plain:
    from taskvec.studies.numerics.disentanglement import square_grid

    grid = square_grid(**settings.grid.model_dump())
    few = trial.evaluator.limited(test=settings.samples)
    label = f"heat map {trial.regime} {'+'.join(pair)}"
    maps = disentangle(few, trial.points, pair, grid=grid, watch=trial.lab.watch, label=label)
    return {
        "tasks": list(pair),
        "grid": grid,
        "examples": [len(few.split(task, "test")) for task in pair],
        **summarize(grid, maps).model_dump(),
    }


def _draw_maps(grid: Sequence[float], tasks: Sequence[str], panels: Mapping[str, PairMaps]) -> "Figure":
    """Prediction error above, distance of representations below; a column a panel, one scale a row."""
    figure, axes = grid_of_axes(2, len(panels), 3.3, 3.2)
    kinds = (("prediction", "ξ (0 to 2)", 2.0), ("feature_kl", "representations: KL", math.inf))
    for row, (kind, label, ceiling) in zip(axes, kinds, strict=True):
        maps = {name: panel.maps[kind] for name, panel in panels.items()}
        top = max(max(map(max, values)) for values in maps.values()) or 1.0
        for ax, (name, values) in zip(row, maps.items(), strict=True):
            image = draw_heat_map(ax, values, grid, min(top, ceiling))
            ax.set_xlabel(_coefficient(tasks[0]), fontsize="large")
            ax.set_title(name, fontsize="medium")
        row[0].set_ylabel(_coefficient(tasks[1]), fontsize="large")
        figure.colorbar(image, ax=row, label=label, shrink=0.9)
    return figure


def _coefficient(task: str) -> str:
    """Alpha with the task as its index."""
    escaped = task.replace("_", r"\_").replace("-", "\N{HYPHEN}")
    return rf"$\alpha_\mathrm{{{escaped}}}$"


@dataclass(frozen=True)
class Panel:
    """One way to make and evaluate vectors: a map of its own for every pair of tasks.

    Args:
        label: such as ``full, post hoc``.
        points: edits by vectors under the names of their tasks, in one space.
    """

    label: str
    regime: str
    space: "Space"
    points: "Points"


@checked
def disentanglement(
    evaluator: "Evaluator",
    panels: Iterable[Panel],
    tasks: Sequence[str],
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    split: SplitName = "test",
    grid: Sequence[float] | None = None,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Maps and their summaries for pairs of tasks, in every panel; all pairs by default.

    Args:
        panels: taken one after another, so that a generator holds the vectors of one panel at a time.

    Returns: a record of plain data: what was measured how, and for each pair and panel the maps by distance
        (rows are values of the first task's coefficient) and their summary.
    Raises: InputError for fewer than two tasks, or a pair that comes twice, in either order.
    """
    from taskvec.studies.numerics.disentanglement import square_grid

    values = list(grid or square_grid())
    chosen = [(first, second) for first, second in pairs or combinations(tasks, 2)]
    if not chosen:
        raise InputError(f"disentanglement: {' '.join(tasks) or 'no task'} given, expected two or more tasks")
    for number, pair in enumerate(chosen):
        if set(pair) in map(set, chosen[:number]):
            raise InputError(f"disentanglement: {' '.join(pair)} given twice, expected each pair once")
    measure = partial(disentangle, evaluator, split=split, grid=values, watch=watch)
    facts: dict[str, dict[str, str]] = {}
    measured: dict[tuple[str, str], dict[str, PairMaps]] = {pair: {} for pair in chosen}
    for panel in panels:
        facts[panel.label] = {"regime": panel.regime, "space": panel.space}
        for pair, by_panel in measured.items():
            maps = measure(panel.points, pair, label=f"{' + '.join(pair)}, {panel.label}")
            by_panel[panel.label] = summarize(values, maps)
    return DisentanglementRecord(
        **describe(evaluator, tasks, split),
        heads={task: evaluator.head(task).kind for task in tasks},
        precision=evaluator.precision,
        grid=values,
        panels=facts,
        pairs=[Pair(tasks=list(pair), panels=by_panel) for pair, by_panel in measured.items()],
    ).model_dump()


def disentangle(
    evaluator: "Evaluator",
    points: "Points",
    pair: tuple[str, str],
    *,
    split: SplitName = "test",
    grid: Sequence[float] | None = None,
    watch: Watch = unwatched,
    label: str = "heat map",
) -> "dict[str, Maps]":
    """Maps of two tasks for every distance of ``DISTANCES``; labels are never read.

    Args:
        points: of either space, with the vectors under the names of the tasks.
        pair: two tasks of the evaluator.

    Raises: InputError for a task that comes twice; TaskvecError where a model's outputs are not finite.
    """
    from taskvec.studies.numerics.disentanglement import disentanglement_maps, distances, square_grid

    if pair[0] == pair[1]:
        raise InputError(f"pair: {pair[0]!r} twice, expected two different tasks")

    def visit(a1: float, a2: float) -> "tuple[Tensor, Tensor]":
        point = points.at({pair[0]: a1, pair[1]: a2})
        first, second = (evaluator.features(point, task, split)[0] for task in pair)
        if not bool(first.isfinite().all() and second.isfinite().all()):
            raise TaskvecError(
                f"{' + '.join(pair)}: the model's features at ({a1:g}, {a2:g}) are not finite; "
                "choose a smaller grid"
            )
        return first, second

    heads = [evaluator.head(task) for task in pair]
    return disentanglement_maps(visit, grid or square_grid(), distances(heads), watch, label)


def summarize(grid: Sequence[float], maps: "Mapping[str, Maps]") -> PairMaps:
    """A pair's maps as plain numbers, with what they come to."""
    from taskvec.studies.numerics.disentanglement import in_box, in_quadrant, mean_where

    def quadrant(values: "Tensor") -> float | None:
        return mean_where(in_quadrant, grid, values)

    def share(kind: str) -> float | None:
        error, movement = quadrant(maps[kind].error), quadrant(maps[kind].movement)
        return error / movement if error is not None and movement else None

    xi, before, behind = maps["prediction"].error, share("feature_kl"), share("output_kl")
    summary = Summary(
        box=mean_where(in_box, grid, xi),
        quadrant=quadrant(xi),
        features=quadrant(maps["feature_kl"].error),
        outputs=quadrant(maps["output_kl"].error),
        share_before_head=before,
        share_behind_head=behind,
        head_effect=None if before is None or behind is None else behind - before,
    )
    return PairMaps(summary=summary, maps={name: of_kind.error.tolist() for name, of_kind in maps.items()})
