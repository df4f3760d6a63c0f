"""Which layers tasks need: those that training changed, and the fewest of them that keep the score."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, Field

from taskvec.config import Config
from taskvec.evaluation.pruning import Ranking, prune_layers
from taskvec.names import Grouping
from taskvec.reports.drawing import Drawing, axes_in_a_row, grid_of_axes, label_axes
from taskvec.reports.numbers import percent
from taskvec.reports.tables import Table
from taskvec.studies.experiment import Experiment
from taskvec.studies.measured import in_unit, mean_in_unit, titled, unit_note, units_of
from taskvec.studies.record import Plain, Record
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial
from taskvec.tasks.suite import Suite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED = 60
"""The most layers whose names a map shows."""


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

    def drawings(self, results: Results) -> Iterator[Drawing]:
        found = results.by_regime(LayersRecord)
        if found:
            tasks, metrics = results.plan.tasks, list(results.plan.metrics.values())
            yield Drawing(
                "layers",
                "Layers that each task's vector changes, and needs.",
                partial(_draw_map, tasks, found),
            )
            caption = "Validation score with the most important layers alone; dots are what was kept."
            yield Drawing("layers-curve", caption, partial(_draw_curves, metrics, found))


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


def _draw_map(tasks: Sequence[str], regimes: Mapping[str, Sequence[Sequence[LayersRecord]]]) -> "Figure":
    layers = next(iter(regimes.values()))[0][0].layers
    height = 1.4 + 0.16 * min(len(layers), 2 * _NAMED)
    figure, [axes] = grid_of_axes(1, len(regimes), 0.9 + 0.34 * len(tasks), height, margin=3.0)
    for ax, (regime, cells) in zip(axes, regimes.items(), strict=True):
        values = [[fmean(_state(of, layer) for of in seeds) for seeds in cells] for layer in layers]
        image = ax.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        ax.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right", fontsize="small")
        ax.set_yticks([])
        label_axes(ax, "", title=regime)
    if len(layers) <= _NAMED:
        axes[0].set_yticks(range(len(layers)), layers, fontsize="x-small")
    else:
        axes[0].set_ylabel(f"{len(layers)} layers, the first on top")
    bar = figure.colorbar(image, ax=axes, shrink=0.5, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["unchanged", "changed,\nnot needed", "needed"], fontsize="small")
    return figure


def _state(of: LayersRecord, layer: str) -> float:
    return 0.5 * (layer in of.changed) + 0.5 * (layer in of.kept)


def _draw_curves(metrics: Sequence[str], regimes: Mapping[str, Sequence[Sequence[LayersRecord]]]) -> "Figure":
    relative = units_of(metrics) != [""]
    figure, axes = axes_in_a_row(2, 3.6, 3.0)
    for axis, (ax, unit) in enumerate(zip(axes, ("layers", "bytes"), strict=True)):
        for regime, cells in regimes.items():
            _draw_curve(ax, regime, [of for seeds in cells for of in seeds], axis, relative)
        label_axes(ax, f"share of the encoder's {unit}, %")
    axes[0].set_ylabel("validation, % of pre-trained" if relative else "validation metric, %")
    axes[1].set_ylim(axes[0].get_ylim())
    axes[1].legend(frameon=False, fontsize="small", loc="lower right")
    return figure


def _draw_curve(ax: "Axes", regime: str, records: Sequence[LayersRecord], axis: int, relative: bool) -> None:
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
    [line] = ax.plot(100 * grid, 100 * np.mean(values, axis=0), label=regime)
    cut = fmean(of.cut[axis] for of in records)
    height = fmean(of.cut[2] / unit for of, unit in zip(records, units, strict=True))
    ax.plot([100 * cut], [100 * height], "o", color=line.get_color())
