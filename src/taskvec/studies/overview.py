"""What a reader wants first: every model for all tasks in one table, and what came of a run in a sentence."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean

from taskvec.reports.charts.dots import Dots, Row, Rows
from taskvec.reports.charts.painting import paint
from taskvec.reports.drawing import Drawing
from taskvec.reports.numbers import NOTHING, Interval, Mean, Probability, Range, percent
from taskvec.reports.tables import Cells, Table
from taskvec.studies.charting import Unit
from taskvec.studies.comparing import SHARES, Line, compare, entries_of
from taskvec.studies.entry import ADDITION, PRETRAINED, SINGLE, Entry, of_regimes
from taskvec.studies.measured import in_unit, mean_in_unit, reciprocal_note, titled, unit_note, units_of
from taskvec.studies.single import Baseline
from taskvec.studies.study import Results
from taskvec.tasks.score import utility

_LABELS = {"validation labels", "train labels", "training", "task id", "unlabelled test inputs"}
"""What the best model without labels consumed none of."""


@dataclass(frozen=True)
class MainTable(Table):
    """A table whose folded columns are for pages alone."""

    def narrow(self) -> Table:
        """The same for a terminal and Markdown."""
        kept = [place for place in range(len(self.columns)) if place not in self.folded]

        def picked(cells: Cells) -> Cells:
            return [cells[place] for place in kept]

        return Table(
            self.title, list(map(str, picked(self.columns))), [*map(picked, self.rows)], self.note, self.heads
        )

    def markdown(self) -> str:
        return self.narrow().markdown()


@dataclass(frozen=True)
class Column:
    """A column of the main table: its head, and what it shows of a line."""

    head: str
    cells: Sequence[object]
    is_compared: bool = False
    is_folded: bool = False
    is_usual: bool = False

    @property
    def is_filled(self) -> bool:
        """Whether a reader looks for it, or any row has something to show there."""
        return self.is_usual or self.is_folded or any(str(cell) not in ("", NOTHING) for cell in self.cells)


class Overview:
    """All models of a run that serve all tasks, compared.

    Args:
        baseline: the name of what others are compared with, see :func:`compare`.
    """

    def __init__(self, results: Results, baseline: str = ADDITION) -> None:
        self.results, self.baseline = results, baseline
        self.metrics = results.plan.metrics
        self.seeds = len(results.plan.experiment.seeds)

    @cached_property
    def lines(self) -> list[Line]:
        """Every model and how sure its figures are, in the order of the table."""
        known = dict(zip(self.results.plan.compared, self.results.of(Baseline), strict=False))
        examples = {task: of.test.examples for task, of in known.items()}
        regimes = list(self.results.plan.experiment.regimes)
        return compare(entries_of(self.results), self.metrics, examples, regimes, self.baseline)

    @cached_property
    def unit(self) -> str | None:
        """The unit of means over tasks: empty for shares; none where tasks have several."""
        units = units_of(self.metrics.values())
        return units[0] if len(units) == 1 else None

    def table(self) -> MainTable | None:
        """The main table; none of a run without any model."""
        if not self.lines:
            return None
        columns = [column for column in self._columns() if column.is_filled]
        rows = list(zip(*(column.cells for column in columns), strict=True))
        heads: dict[int, str] = {}
        for place, line in enumerate(self.lines):
            head = _head(line.entry)
            if head not in heads.values():
                heads[place] = head
        places = {name: [i for i, of in enumerate(columns) if getattr(of, name)] for name in _PLACES}
        tasks = self.results.plan.tasks
        title = f"One model for all {len(tasks)} tasks" if len(tasks) > 1 else f"Models for {tasks[0]}"
        return MainTable(
            title,
            [column.head for column in columns],
            rows,
            " ".join(self._notes()),
            heads,
            places["is_compared"],
            places["is_folded"],
        )

    def _columns(self) -> Iterator[Column]:
        lines, metrics = self.lines, self.metrics
        yield Column("", [self._name(line.entry) for line in lines])
        if len(of_regimes(line.entry for line in lines)) > 1:
            yield Column("regime", [line.entry.regime for line in lines])
        yield Column("α", [_alpha(line.entry) for line in lines])
        absolutes = [mean_in_unit(metrics.values(), _absolutes(line.entry)) for line in lines]
        yield Column(titled("absolute", self.unit or ""), absolutes, is_compared=True)
        yield Column("95 %", [self._interval(line) for line in lines], is_usual=True)
        relatives = [percent([_known(edit.normalized) for edit in line.entry.edits]) for line in lines]
        yield Column("normalized", relatives, is_compared=self.unit is None)
        yield Column(f"− {self.baseline}", [self._difference(line) for line in lines])
        yield Column("p", [Probability(line.p) for line in lines])
        yield Column("seconds", [_seconds(list(line.entry.seconds.values())) for line in lines])
        for task, metric in metrics.items():
            values = [in_unit(metric, [of.values[task] for of in line.entry.edits]) for line in lines]
            yield Column(titled(task, metric), values, is_compared=True, is_folded=True)

    def _name(self, entry: Entry) -> str:
        missing = f" ({len(entry.seeds)} of {self.seeds} seeds)" if len(entry.seeds) < self.seeds else ""
        return f"{entry.name}{missing}"

    def _interval(self, line: Line) -> object:
        if line.interval is None or self.unit is None:
            return NOTHING
        if not self.unit:
            return Interval(*line.interval, scale=100)
        low, high = sorted(utility(self.unit, end) for end in line.interval)
        return Interval(low, high, ".4g")

    def _difference(self, line: Line) -> object:
        if line.difference is None or line.baseline is None or self.unit is None:
            return NOTHING
        if self.unit:
            mine, other = (_shown_mean(self.unit, of) for of in (line.entry, line.baseline))
            return Mean([mine - other], "+.3g")
        if line.test is None:
            return Mean([100 * line.difference], "+.1f")
        half = 50 * (line.test.interval[1] - line.test.interval[0])
        return f"{100 * line.difference:+.1f} ± {half:.1f}".replace("-", "−")

    def _notes(self) -> Iterator[str]:
        """How to read the table."""
        metrics = self.metrics.values()
        yield (
            f"{unit_note(metrics)}: mean over tasks on test data. Normalized: mean of the ratios to the "
            f"single-task models of the same regime.{reciprocal_note(metrics)} Rows that consumed the same "
            "are ranked by what they give; nothing was chosen by it."
        )
        yield f"95 %: {self._drawn()}."
        tested = sum(line.test is not None for line in self.lines)
        if any(line.difference is not None for line in self.lines) and self.unit is not None:
            yield (
                f"− {self.baseline}: over {self.baseline} of the same regime whose α was found in the same "
                "way (of a row without α: searched, if it was), and for its own rows over that of the first "
                f"regime.{self._tested(tested)}"
            )
        if any(line.entry.seconds for line in self.lines):
            yield (
                "Seconds: making the model of the tasks' vectors, or training it where training is consumed; "
                "the vectors' own training, the search of α and measuring are not counted."
            )
        if any(line.entry.name == SINGLE for line in self.lines) and len(self.metrics) > 1:
            yield "Single-task models are one for each task, and need to be told the task."

    def _drawn(self) -> str:
        """What the bootstrap draws, or why there is none."""
        others = [task for task, metric in self.metrics.items() if metric not in SHARES]
        if self.unit is None:
            return "none, as the tasks have figures of several units"
        if not others:
            also = " and seeds" if self.seeds > 1 else "; there is one seed"
            return f"percentiles of a bootstrap over test examples{also}"
        why = f"as the metric of {', '.join(others[:3])} is no share of examples"
        if self.seeds > 1:
            return f"percentiles of a bootstrap over seeds alone, {why}"
        return f"none, {why} and there is one seed"

    def _tested(self, tests: int) -> str:
        if not tests:
            return ""
        seeds = "" if self.seeds == 1 else f", given these {self.seeds} seeds"
        return (
            " ± half of the 95 % interval on the same test examples"
            f"{seeds}; p: of the paired test, corrected after Holm for the {tests} tests of this table."
        )

    def chart(self) -> Dots | None:
        """The best of each class, and lines where the models are that others are compared with."""
        made = [line for line in self.lines if not line.entry.is_reference]
        if not made:
            return None
        unit = Unit(self.unit or "")
        groups: dict[str, list[Row]] = {}
        for line in made:
            rows = groups.setdefault(_head(line.entry), [])
            if len(rows) < _DRAWN:
                rows.append(self._row(line, unit))
        measure = "normalized" if self.unit is None else "absolute"
        levels = {
            line.entry.name: fmean(unit.of(self._means(line.entry)))
            for line in reversed(self.lines)
            if line.entry.is_reference
        }
        several = "the best" if any(len(rows) == _DRAWN for rows in groups.values()) else "models"
        caption = (
            f"One model for all tasks: {several} of each class of what was consumed, with "
            f"{'95 % intervals' if self.unit is not None else 'the deviation over seeds'}; "
            f"dashed: {' and '.join(levels)}."
        )
        return Dots("overview", caption, [Rows("", unit.axis(measure), groups, levels)])

    def _row(self, line: Line, unit: Unit) -> Row:
        entry = line.entry
        several = len(self.results.plan.experiment.regimes) > 1
        name = ", ".join(filter(None, (entry.name, entry.regime if several else "")))
        is_scaled = entry.how != "none" and entry.coefficients
        alpha = f", α {Range(entry.coefficients.values())}" if is_scaled else ""
        ends = None if line.interval is None or self.unit is None else sorted(unit.of(line.interval))
        return Row(f"{name}{alpha}", {"": unit.of(self._means(entry))}, (ends[0], ends[1]) if ends else None)

    def _means(self, entry: Entry) -> list[float]:
        """Over tasks, of each seed: absolute where the tasks have one unit."""
        return [edit.normalized if self.unit is None else edit.absolute for edit in entry.edits]

    def drawings(self) -> Iterator[Drawing]:
        """The chart as a file."""
        if chart := self.chart():
            yield Drawing(chart.name, chart.caption, partial(paint, chart))

    def sentence(self) -> str:
        """What was run and what came of it."""
        return f"{self._subject()}: {self._outcome()}."

    def _subject(self) -> str:
        experiment, tasks = self.results.plan.experiment, self.results.plan.tasks
        what = f"{_counted(len(tasks), 'task')} of {_named(experiment.suite)} on {_named(experiment.model)}"
        return f"{what[0].upper()}{what[1:]}, {_counted(self.seeds, 'seed')}"

    def _outcome(self) -> str:
        made = [line for line in self.lines if not line.entry.is_reference]
        if not made:
            said = [study.headline(self.results) for study in self.results.studies]
            return "; ".join(filter(None, said)) or self._references()
        free = [line for line in made if not _LABELS.intersection(line.entry.consumed)]
        best = max(free or made, key=self._mean)
        words = "the best single model" if len(self.metrics) > 1 else "the best model"
        labels = " without labels" if free else ""
        told = f"{words}{labels} is {self._told(best)}{self._aside(best.entry.regime)}{_cost(best.entry)}"
        other = max(made, key=self._mean)
        if free and self._mean(other) > self._mean(best):
            told += f"; with {other.entry.group} it is {self._told(other)}{_cost(other.entry)}"
        return told

    def _mean(self, line: Line) -> float:
        return fmean(self._means(line.entry))

    def _told(self, line: Line) -> str:
        """A model and what it gives."""
        entry, several = line.entry, len(self.results.plan.experiment.regimes) > 1
        alpha = "" if not entry.coefficients else f" at α {Range(entry.coefficients.values())}"
        where = f" of regime {entry.regime}" if several and entry.regime else ""
        interval = "" if self._interval(line) == NOTHING else f" {self._interval(line)}"
        return f"{entry.name}{alpha}{where} with {self._value(entry)}{interval}{self._of_what()}"

    def _value(self, entry: Entry) -> str:
        if self.unit is None:
            return f"{100 * fmean(edit.normalized for edit in entry.edits):.1f} %"
        mean = _shown_mean(self.unit, entry)
        return f"{mean:.4g}" if self.unit else f"{100 * mean:.1f} %"

    def _of_what(self) -> str:
        if self.unit is None:
            return " of what the single-task models give"
        if self.unit:
            return f" of {self.unit.replace('_', ' ')} (less is better)"
        [*named] = dict.fromkeys(self.metrics.values())
        return f" of {named[0].replace('_', ' ')}" if len(named) == 1 else " of the tasks' metrics"

    def _aside(self, regime: str) -> str:
        """The references, in brackets."""
        told = [f"{name} {value}" for name, value in self._known_references(regime)]
        return f" ({', '.join(told)})" if told and self.unit is not None else ""

    def _known_references(self, regime: str) -> Iterator[tuple[str, str]]:
        """The models for each task of a regime, and the one before any edit."""
        for line in reversed(self.lines):
            if line.entry.is_reference and line.entry.regime in ("", regime):
                alone = len(self.metrics) == 1 and line.entry.name == SINGLE
                yield "fine-tuned" if alone else line.entry.name, self._value(line.entry)

    def _references(self) -> str:
        found = [line for line in self.lines if line.entry.name == SINGLE]
        if not found:
            return "nothing is measured yet"
        told = dict(self._known_references(max(found, key=self._mean).entry.regime))
        what = self._of_what() if self.unit is not None else ""
        return f"{' against '.join(f'{name} {value}' for name, value in told.items())}{what}"


_DRAWN = 8
"""Models of a class that the chart has room for."""

_PLACES = ("is_compared", "is_folded")


def _head(entry: Entry) -> str:
    return "reference" if entry.name == PRETRAINED else f"consumed: {entry.group}"


def _absolutes(entry: Entry) -> list[float]:
    return [edit.absolute for edit in entry.edits]


def _shown_mean(unit: str, entry: Entry) -> float:
    """Over seeds of the means over tasks, as the table has it: in the unit of the tasks."""
    return fmean(utility(unit, mean) for mean in _absolutes(entry))


def _known(value: float) -> float | None:
    """None for what is not a number."""
    return value if value == value else None


def _alpha(entry: Entry) -> str:
    if not entry.coefficients:
        return NOTHING
    return f"{Range(entry.coefficients.values())}{' searched' if entry.how == 'searched' else ''}"


def _seconds(values: Sequence[float]) -> Mean:
    """Two digits, but no power of ten."""
    return Mean(values, ".0f" if values and fmean(values) >= 10 else ".2g", spread=False)


def _cost(entry: Entry) -> str:
    values = list(entry.seconds.values())
    verb = "train" if "training" in entry.consumed else "make"
    return f", {_seconds(values)} s to {verb}" if values else ""


_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def _named(reference: str) -> str:
    """A model or suite without the folders that it is in."""
    is_path = reference.startswith(("/", ".", "~")) or reference.endswith((".yaml", ".yml"))
    return Path(reference).name.removesuffix(".yaml").removesuffix(".yml") if is_path else reference


def _counted(count: int, noun: str) -> str:
    words = _WORDS[count] if count < len(_WORDS) else str(count)
    return f"{words} {noun}{'' if count == 1 else 's'}"
