"""Weight disentanglement of pairs of tasks, in every regime of an experiment."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Self

from pydantic import Field, PositiveInt, model_validator

from taskvec.analysis.disentanglement import disentangle, square_grid, summary
from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.reports.analysis_figures import disentanglement_figures
from taskvec.reports.drawing import Drawing
from taskvec.reports.numbers import Range, percent
from taskvec.reports.tables import Table
from taskvec.studies.experiment import Experiment
from taskvec.studies.study import Cell, Context, Plain, Plan, Record, Results, Study
from taskvec.tasks.suite import Suite

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


class Summary(Record):
    """Means of the error over the square of coefficients and over its positive quadrant."""

    box: float | None
    quadrant: float | None


class Disentangled(Record):
    """The maps of one pair of tasks, and what they come to."""

    cell = "disentanglement"
    tasks: list[str]
    grid: list[float]
    examples: list[int]
    summary: Summary
    maps: dict[str, list[list[float]]]


class Disentanglement(Study[DisentanglementSettings]):
    """Every pair by itself, in every regime."""

    settings = DisentanglementSettings

    def check(self, experiment: Experiment, suite: Suite) -> None:
        experiment.check_regimes("disentanglement", self.block.regimes)
        names = experiment.task_names(suite)
        for pair in self.block.pairs:
            if pair[0] == pair[1] or not {*pair} <= {*names}:
                raise InputError(
                    f"disentanglement.pairs: {' '.join(pair)}, expected two of the tasks {', '.join(names)}"
                )

    def cells(self, plan: Plan, regime: str, seed: int) -> Iterator[Cell[Record]]:
        if regime not in (self.block.regimes or plan.experiment.regimes):
            return
        for pair in self.block.pairs:
            job = partial(_map, regime=regime, seed=seed, pair=pair, settings=self.block)
            inputs = {"grid": self.block.grid.model_dump(), "samples": self.block.samples, "split": "test"}
            yield plan.cell(Disentangled, job, regime, seed, pair, **inputs)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        return results.listed("disentanglement", Disentangled, regime, seed)

    def tables(self, results: Results) -> Iterator[Table]:
        by_regime = results.by_regime(Disentangled)
        if not by_regime:
            return
        pairs = next(iter(by_regime.values()))[0]
        names = [" + ".join(pair.tasks) for pair in pairs]
        rows = []
        for regime, seeds in by_regime.items():
            summaries = [[pair.summary for pair in of] for of in zip(*seeds, strict=True)]
            cells = (
                percent([getattr(summary, region) for summary in of])
                for of in summaries
                for region in ("box", "quadrant")
            )
            rows.append((regime, *cells))
        sizes = Range([size for pair in pairs for size in pair.examples], "d")
        note = (
            "Mean of ξ over the square of coefficients and over its positive quadrant, per cent: the share "
            "of predictions that the other task's vector changes, summed over both tasks (0 to 200), lower "
            f"is better; {sizes} test examples a task."
        )
        columns = ["", *(column for name in names for column in (f"{name}: [−1, 1]²", "(0, 1]²"))]
        yield Table("Weight disentanglement error", columns, rows, note)

    def drawings(self, results: Results) -> Iterator[Drawing]:
        """A figure a pair, of the first seed: the regimes side by side on one scale."""
        first = {regime: seeds[0] for regime, seeds in results.by_regime(Disentangled).items()}
        for panels in zip(*first.values(), strict=True):
            one, other = panels[0].tasks
            caption = (
                f"Disentanglement error of {one} and {other}: how far the other's vector changes "
                "predictions (above) and representations (below); the best coefficients mostly lie in the "
                "square."
            )
            draw = partial(_draw, dict(zip(first, panels, strict=True)))
            yield Drawing(f"disentanglement-{one}-{other}", caption, draw)


def _map(
    context: Context, regime: str, seed: int, pair: tuple[str, str], settings: DisentanglementSettings
) -> Plain:
    grid = square_grid(**settings.grid.model_dump())
    few = context.evaluator.limited(test=settings.samples)
    label = f"heat map {regime} {'+'.join(pair)}"
    points = context.points(regime, seed)
    maps = disentangle(few, points, pair, grid=grid, watch=context.watch, label=label)
    return {
        "tasks": list(pair),
        "grid": grid,
        "examples": [len(few.split(task, "test")) for task in pair],
        "summary": summary(grid, maps),
        "maps": {name: map_.error.tolist() for name, map_ in maps.items()},
    }


def _draw(panels: Mapping[str, Disentangled]) -> "Figure":
    pair = next(iter(panels.values()))
    plain = {regime: panel.model_dump() for regime, panel in panels.items()}
    record = {"grid": pair.grid, "pairs": [{"tasks": pair.tasks, "panels": plain}]}
    return disentanglement_figures(record)["figure"]
