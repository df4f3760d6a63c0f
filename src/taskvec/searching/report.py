"""What a search found, for people: tables, figures, results.json."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from taskvec.reports.drawing import Drawing, axes_in_a_row, draw_all, grid_of_axes, hide_spines, label_axes
from taskvec.reports.numbers import NOTHING
from taskvec.reports.tables import Table
from taskvec.searching.loop import Found
from taskvec.searching.space import Scalar
from taskvec.searching.trace import Evaluation
from taskvec.writing import replace_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = 24
"""Numbers that are drawn against the score, at most."""


def tables_of(found: Found) -> list[Table]:
    """The numbers and the figures of start and best."""
    return [_numbers(found), _figures(found)]


def _numbers(found: Found) -> Table:
    failed = sum(bool(evaluation.problem) for evaluation in found.evaluations)
    remark = f", {failed} of which could not be measured" if failed else ""
    count = f"{len(found.evaluations)} evaluations{remark}. Why the search ended: {found.ended}."
    rows = [[path, _shown(found.start.values[path]), _shown(best)] for path, best in found.values.items()]
    return Table("numbers", ["number", "start", "best"], rows, count)


def _figures(found: Found) -> Table:
    pairs = [(found.start, found.best), *([found.holdout] if found.holdout else [])]
    columns = ["figure", "start", "best", *(["start, unseen", "best, unseen"] if found.holdout else [])]
    flat = [evaluation for pair in pairs for evaluation in pair]
    rows = [
        [name, *(_shown(evaluation.figures.get(name)) for evaluation in flat)] for name in found.start.figures
    ]
    rows.append(["objective", *(_shown(_objective(evaluation)) for evaluation in flat)])
    alone = list(found.maximized.values()) == [1.0]
    words = "" if alone else f"The objective, of which more is better, is {_sum(found.maximized)}."
    return Table("figures", columns, rows, " ".join(filter(None, [words, _floors(found), bias(found)])))


def _sum(counts: Mapping[str, float]) -> str:
    """A weighted sum of figures in words."""
    parts = [
        f"{'-' if count < 0 else '+'} {'' if abs(count) == 1 else f'{abs(count):g} × '}{name}"
        for name, count in counts.items()
    ]
    text = " ".join(parts)
    return text.removeprefix("+ ") if text.startswith("+") else text.replace("- ", "-", 1)


def _floors(found: Found) -> str:
    """What is to be said of floors that the best breaks, or the recipe's own numbers do; nothing if none."""
    if found.best.worth.kept < 0:
        return "No candidate keeps every floor; the best breaks them least."
    return "The recipe's own numbers break a floor that the best keeps." if found.start.worth.kept < 0 else ""


def bias(found: Found) -> str:
    """The gains, and which of them is to be believed."""
    seen = f"Gain on what the search saw: {found.gain:+.4g}, too high, as the best was chosen there"
    if found.best.number == 0:
        return "No candidate was better than the recipe's own numbers."
    if found.holdout is None:
        return f"{seen}; the score has no second part, so measure the best one on other data."
    gain = found.gain_on_holdout
    unseen = "could not be measured" if gain is None else f"{gain:+.4g}, without that bias"
    broken = found.holdout[1].worth.kept < 0
    return f"{seen}; on what it did not see: {unseen}.{' A floor is broken there.' if broken else ''}"


def write_report(found: Found, folder: Path) -> None:
    """Write results.json, report.md and the figures; without matplotlib there are none."""
    facts = json.dumps(found.record(), indent=1)
    replace_text(folder / "results.json", facts + "\n")
    points = json.dumps([evaluation.record() for evaluation in found.evaluations])
    drawings = [
        Drawing(
            "trace",
            "The objective, candidate by candidate; the line is the best so far.",
            lambda: _trace(found),
        ),
        Drawing(
            "numbers",
            "Each number against the objective; later candidates are lighter.",
            lambda: _scatter(found),
        ),
    ]
    figures = draw_all(drawings, folder / "figures", points, [Path(__file__)])
    pictures = [f"![{caption}]({path.relative_to(folder)})\n" for path, caption in figures]
    parts = ["# Search\n", *(table.markdown() for table in tables_of(found)), *pictures]
    replace_text(folder / "report.md", "\n".join(parts))


def _shown(value: Scalar | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _objective(evaluation: Evaluation) -> float | None:
    return None if evaluation.problem else evaluation.worth.objective


def _measured(found: Found) -> list[Evaluation]:
    return [evaluation for evaluation in found.evaluations if not evaluation.problem]


def _incumbents(evaluations: Sequence[Evaluation]) -> Iterator[float]:
    """The objective of the best candidate so far, after each."""
    best = evaluations[0]
    for evaluation in evaluations:
        best = max(best, evaluation, key=lambda each: each.worth)
        yield best.worth.objective


def _trace(found: Found) -> "Figure":
    figure, [ax] = axes_in_a_row(1, 6, 3)
    measured = _measured(found)
    numbers = [evaluation.number for evaluation in measured]
    kept = [evaluation for evaluation in measured if evaluation.worth.kept == 0]
    for group, marker in ((kept, "o"), ([each for each in measured if each not in kept], "x")):
        heights = [evaluation.worth.objective for evaluation in group]
        ax.plot([each.number for each in group], heights, marker, ms=4, color="tab:blue", alpha=0.6)
    ax.step(numbers, list(_incumbents(measured)), where="post", color="black", lw=1.2)
    broken = " (x breaks a floor)" if len(kept) < len(measured) else ""
    label_axes(ax, f"evaluation{broken}", "objective")
    return figure


def _scatter(found: Found) -> "Figure":
    paths = list(found.values)[:PANELS]
    columns = min(4, len(paths))
    rows = -(-len(paths) // columns)
    figure, grid = grid_of_axes(rows, columns, 2.8, 2.2)
    measured = _measured(found)
    panels = [ax for row in grid for ax in row]
    for ax, path in zip(panels, paths, strict=False):
        values = [_place(evaluation.values[path]) for evaluation in measured]
        heights = [evaluation.worth.objective for evaluation in measured]
        ax.scatter(values, heights, c=range(len(values)), cmap="viridis", s=12)
        ax.axvline(_place(found.values[path]), color="black", lw=0.8)  # type: ignore[arg-type]
        hide_spines(ax)
        label_axes(ax, path, "objective" if ax in [row[0] for row in grid] else "")
    for ax in panels[len(paths) :]:
        ax.set_axis_off()
    return figure


def _place(value: Scalar) -> float | str:
    """Where a value stands on an axis: words by themselves."""
    return value if isinstance(value, str) else float(value)
