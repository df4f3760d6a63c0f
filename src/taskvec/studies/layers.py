"""Which layers tasks need: those that training changed, and the fewest of them that keep the score."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Annotated

from pydantic import BeforeValidator, Field

from taskvec.config import Config
from taskvec.evaluation.pruning import Ranking, prune_layers
from taskvec.names import Grouping
from taskvec.reports.charts.chart import Chart
from taskvec.reports.charts.lines import Curve, Dot, Lines, Plot
from taskvec.reports.charts.matrix import Map, Matrix, Tint
from taskvec.reports.charts.scales import Axis
from taskvec.reports.numbers import percent
from taskvec.reports.tables import Table
from taskvec.studies.charting import mean_of
from taskvec.studies.experiment import Experiment
from taskvec.studies.measured import in_unit, mean_in_unit, titled, unit_note, units_of
from taskvec.studies.record import Plain, Record
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial
from taskvec.tasks.suite import Suite


class LayersSettings(Config):
    """Remove the layers of each task's vector that its score does not need."""

    by: Ranking = "loss"
    """What ranks layers: the validation ``loss`` without each, or its ``first-order`` estimate."""
    tolerance: float = Field(default=0.01, ge=0, le=1)
    """The share of the whole vector's validation score that may be lost."""
    gates: Grouping = "layer"
    """What goes together."""
    regimes: tuple[str, ...] | None = None
    """Default: all of the experiment."""


def _switch(value: object) -> object:
    if isinstance(value, bool):
        return LayersSettings() if value else None
    return value


class LayersRecord(Record):
    """One task's vector, whole and pruned."""

    cell = "layers"
    layers: list[str]
    """Of the encoder, in its order."""
    changed: list[str]
    kept: list[str]
    curve: list[tuple[float, float, float]]
    """Share of layers, share of bytes, value on validation: from no layer to all that are changed."""
    whole: tuple[float, float, float]
    cut: tuple[float, float, float]
    """Where the curve is left."""
    test: dict[str, float]
    """Of the pre-trained model, of the whole and of the pruned vector."""
    labels: int
    """That were read, of the validation split."""


class Layers(Study[LayersSettings]):
    """A map of layers by tasks, and what is lost with fewer of them."""

    title = "Layers that tasks need"
    settings = Annotated[LayersSettings | None, BeforeValidator(_switch)]

    def check(self, experiment: Experiment, suite: Suite) -> None:
        experiment.check_regimes("layers", self.block.regimes)

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        if trial.regime in (self.block.regimes or trial.experiment.regimes):
            how = self.block.model_dump(exclude={"regimes"})
            for task in trial.tasks:
                yield trial.cell(LayersRecord, partial(_prune, task=task, how=how), [task], **how)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        found = results.stored(LayersRecord, regime, seed)
        return {"layers": dict(zip(results.plan.tasks, found, strict=True))} if found else {}

    def tables(self, results: Results) -> Iterator[Table]:
        for regime, cells in results.by_regime(LayersRecord).items():
            yield _table(results, regime, cells, self.block)

    def charts(self, results: Results) -> Iterator[Chart]:
        found = results.by_regime(LayersRecord)
        if found:
            yield _map(results.plan.tasks, found)
            yield _curves(list(results.plan.metrics.values()), found)


def _prune(trial: Trial, task: str, how: Mapping[str, object]) -> Plain:
    options = LayersSettings.parse("layers", dict(how))
    pruned = prune_layers(
        trial.evaluator,
        trial.vectors[task],
        task,
        tolerance=options.tolerance,
        by=options.by,
        gates=options.gates,
        space=trial.space,
    )
    points = [(*pruned.shares(cut), cut.value) for cut in pruned.curve]
    return {
        "layers": list(pruned.layers),
        "changed": [layer for layer in pruned.layers if layer in pruned.importance],
        "kept": list(pruned.kept),
        "importance": dict(pruned.importance),
        "curve": points,
        "whole": points[-1],
        "cut": (*pruned.shares(pruned.cut), pruned.cut.value),
        "test": dict(pruned.test),
        "labels": pruned.examples,
    }


def _table(
    results: Results, regime: str, cells: Sequence[Sequence[LayersRecord]], how: LayersSettings
) -> Table:
    metrics = results.plan.metrics
    rows: list[Sequence[object]] = []
    for (task, metric), seeds in zip(metrics.items(), cells, strict=True):
        tests = [in_unit(metric, [of.test[label] for of in seeds]) for label in ("whole", "pruned")]
        rows.append((titled(task, metric), *_shares(seeds), *tests))
    by_seed = list(zip(*cells, strict=True))
    means = [
        mean_in_unit(metrics.values(), [fmean(of.test[label] for of in seed) for seed in by_seed])
        for label in ("whole", "pruned")
    ]
    rows.append(("mean", *_shares([of for seeds in cells for of in seeds], spread=False), *means))
    heads = ("task", "layers changed", "layers kept", "bytes kept", "whole", "pruned")
    note = (
        f"{unit_note(metrics.values())} on test. Layers and bytes: per cent of the encoder's "
        f"{len(cells[0][0].layers)} {how.gates}s. The fewest, ranked by {how.by}, that lose at most "
        f"{100 * how.tolerance:g} % of the whole vector's validation score; validation labels are read."
    )
    return Table(f"Layers that tasks need, {regime}", heads, rows, note)


def _shares(seeds: Sequence[LayersRecord], *, spread: bool = True) -> list[object]:
    columns = ([of.whole[0] for of in seeds], [of.cut[0] for of in seeds], [of.cut[1] for of in seeds])
    return [percent(column if spread else [fmean(column)]) for column in columns]


def _map(tasks: Sequence[str], regimes: Mapping[str, Sequence[Sequence[LayersRecord]]]) -> Matrix:
    layers = next(iter(regimes.values()))[0][0].layers
    grids = [
        Map(
            regime,
            tasks,
            layers,
            [[fmean(_state(of, at) for of in seeds) for at in layers] for seeds in cells],
        )
        for regime, cells in regimes.items()
    ]
    caption = (
        "Layers that each task's vector changes, and needs: 0 is unchanged, 0.5 changed and not needed, 1 "
        f"needed. {mean_of(len(next(iter(regimes.values()))[0]))}"
    )
    return Matrix("layers", caption, grids, Tint(0.0, 1.0, "needed"), "", across="layers", down="tasks")


def _state(of: LayersRecord, layer: str) -> float:
    return 0.5 * (layer in of.changed) + 0.5 * (layer in of.kept)


def _curves(metrics: Sequence[str], regimes: Mapping[str, Sequence[Sequence[LayersRecord]]]) -> Lines:
    relative = units_of(metrics) != [""]
    y = Axis("validation, % of pre-trained" if relative else "validation metric, %")
    plots = [
        Plot(
            "",
            Axis(f"share of the encoder's {unit}, %"),
            y,
            [
                curve
                for regime, cells in regimes.items()
                for curve in _curve(regime, [of for seeds in cells for of in seeds], axis, relative)
            ],
        )
        for axis, unit in enumerate(("layers", "bytes"))
    ]
    caption = (
        "Validation score with the most important layers alone, mean of the tasks; dots are what was kept."
    )
    return Lines("layers-curve", caption, plots)


def _curve(regime: str, records: Sequence[LayersRecord], axis: int, relative: bool) -> tuple[Curve, Curve]:
    """The mean over tasks and seeds; each is its whole vector's value from its last layer on."""
    import numpy as np

    units = [of.curve[0][2] if relative else 1.0 for of in records]
    far = fmean(of.whole[axis] for of in records)
    grid = np.linspace(0, far, 101)
    values = [
        np.interp(
            grid * of.whole[axis] / far if far else grid,
            [p[axis] for p in of.curve],
            [p[2] / unit for p in of.curve],
        )
        for of, unit in zip(records, units, strict=True)
    ]
    line = [
        Dot(100 * x, [100 * y]) for x, y in zip(grid.tolist(), np.mean(values, axis=0).tolist(), strict=True)
    ]
    cut = fmean(of.cut[axis] for of in records)
    height = fmean(of.cut[2] / unit for of, unit in zip(records, units, strict=True))
    kept = Curve(f"{regime}, kept", [Dot(100 * cut, [100 * height])], regime, joined=False)
    return Curve(regime, line, thin=True), kept
