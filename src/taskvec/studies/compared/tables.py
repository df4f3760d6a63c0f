"""Tables of methods side by side, grouped by what they consumed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from statistics import fmean

import numpy as np

from taskvec.reports.numbers import NOTHING, Mean, Range, Several, percent
from taskvec.reports.tables import Table
from taskvec.studies.compared.records import Compared, How, Row, difference, groups_of, rows_of, sums_of
from taskvec.studies.measured import (
    both,
    greatest_is_best,
    in_unit,
    mean_in_unit,
    reciprocal_note,
    search_note,
    tally_note,
    titled,
    unit_note,
)
from taskvec.studies.numerics.paired import Difference, holm

Methods = Sequence[Sequence[Compared]]
"""Of each method a record a seed."""
Metrics = Mapping[str, str]
"""By task."""

MANY = 6
"""Searches whose remarks are counted, where those of fewer are told one by one."""


def tables_of(compared: Methods, metrics: Metrics, of_regime: str) -> Iterator[Table]:
    """Of one regime.

    Args:
        of_regime: what ends the titles.
    """
    whole = [of for of in compared if len(of[0].tasks) == len(metrics)]
    rows = rows_of(whole)
    yield _table_of_methods(rows, whole, metrics, of_regime)
    yield _table_by_task(rows, metrics, of_regime)
    if learned := learned_of(rows):
        yield _table_of_coefficients(learned, metrics, of_regime)
    if stored := [row for row in rows if all("bytes_by_task" in of.facts for of in row.of)]:
        yield _table_of_storage(stored, of_regime)
    if len({len(of[0].tasks) for of in compared}) > 1:
        yield _table_of_subsets(compared, of_regime)


def _grouped(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Row],
    cells: Callable[[Row], Sequence[object]],
    note: str,
    compared: Sequence[int] = (),
) -> Table:
    groups = {_head(head): list(map(cells, of)) for head, of in groups_of(rows).items()}
    return Table.grouped(title, columns, groups, note, compared)


def _head(consumed: str) -> str:
    return f"consumed: {consumed}"


def _table_of_methods(rows: Sequence[Row], compared: Methods, metrics: Metrics, of_regime: str) -> Table:
    against = _against_sums(rows)

    def cells(row: Row) -> Sequence[object]:
        return (
            row.name,
            row.alpha,
            both(row.outcomes, metrics),
            against.get(id(row), NOTHING),
            Range([of.coefficients + (row.how == "searched") for of in row.of], "d"),
            _seconds([of.seconds for of in row.of if of.seconds is not None]),
            Mean([_mebibytes(of.peak_bytes) for of in row.of], ".0f", spread=False),
        )

    columns = ("method", "α", "absolute / normalized", "− sum", "fitted", "seconds", "MiB")
    note = " ".join(_notes(rows, compared, metrics))
    compared_by = greatest_is_best(metrics.values(), 2)
    return _grouped(f"Methods side by side{of_regime}", columns, rows, cells, note, compared_by)


def _seconds(values: Sequence[float]) -> Mean:
    """Two digits, but no power of ten."""
    return Mean(values, ".0f" if values and fmean(values) >= 10 else ".2g", spread=False)


def _notes(rows: Sequence[Row], compared: Methods, metrics: Metrics) -> Iterator[str]:
    yield (
        "Per cent, mean over tasks; methods that consumed the same are ranked among themselves, after what "
        f"they give on test, and nothing is chosen by it.{reciprocal_note(metrics.values())}"
    )
    yield _test_note(rows, metrics)
    yield "Fitted: numbers chosen on data. Seconds and memory of making the model once, not of measuring it."
    searches = {row.name: [of.search for of in row.outcomes if of.search] for row in rows}
    searches = {name: of for name, of in searches.items() if of}
    if searches:
        told = search_note(searches) if len(searches) <= MANY else tally_note(list(chain(*searches.values())))
        yield f"α searched: {told}."
    yield from _missing(compared)


def _test_note(rows: Sequence[Row], metrics: Metrics) -> str:
    others = [task for task in metrics if any(task not in row.outcomes[0].hits for row in rows)]
    if others:
        return f"− sum: no test, as single examples of {', '.join(others)} are not right or wrong."
    seeds = len(rows[0].outcomes) if rows else 1
    again = "not on how it would come out with other seeds" if seeds == 1 else f"given these {seeds} seeds"
    return (
        "− sum: points over plain addition whose α was found in the same way (that of a method without α: "
        "searched, if it was) on the same test examples, ± half of the 95 % interval; * p < 0.05, corrected "
        "after Holm for the tests of this table. It says how sure the difference is on other examples of "
        f"these tasks, {again}."
    )


def _missing(compared: Methods) -> Iterator[str]:
    left = {of[0].name: reason for of in compared if (reason := of[0].left_out)}
    if left:
        yield f"Left out: {', '.join(f'{name} ({why})' for name, why in left.items())}."
    diverged = [
        f"{of[0].name} (α {how}, {sum(how in each.diverged for each in of)} of {len(of)} seeds)"
        for of in compared
        for how in dict.fromkeys(how for each in of for how in each.diverged)
    ]
    if diverged:
        yield f"Outputs not finite: {', '.join(diverged)}."
    wrong = {of[0].name: reason for of in compared for each in of if (reason := each.failed)}
    if wrong:
        yield f"Failed: {'; '.join(f'{name}: {why}' for name, why in wrong.items())}."


def _against_sums(rows: Sequence[Row]) -> dict[int, str]:
    """Rows against plain addition, where that can be tested; by their ids."""
    sums = sums_of(rows)
    found = {id(row): of for row in rows if (of := _difference(row, sums))}
    corrected = holm([of.p for of in found.values()])
    return {row: _shown(of, p) for (row, of), p in zip(found.items(), corrected, strict=True)}


def _difference(row: Row, sums: Mapping[How, Row]) -> Difference | None:
    plain = sums.get(row.how) or sums.get("searched") or sums.get("default")
    return None if plain is None or row.name in ("sum", "zero-shot") else difference(row, plain)


def _shown(found: Difference, p: float) -> str:
    star = "*" if p < 0.05 else ""
    half = 100 * (found.interval[1] - found.interval[0]) / 2
    return f"{100 * found.mean:+.1f} ± {half:.1f}{star}".replace("-", "−")


def _mebibytes(size: int | None) -> float | None:
    return None if size is None else size / 2**20


def _table_by_task(rows: Sequence[Row], metrics: Metrics, of_regime: str) -> Table:
    def cells(row: Row) -> Sequence[object]:
        by_task = [
            in_unit(metric, [of.values[task] for of in row.outcomes]) for task, metric in metrics.items()
        ]
        return (
            row.name if row.how == "none" else f"{row.name}, α {row.alpha.removesuffix(' searched')}",
            *by_task,
            mean_in_unit(metrics.values(), [outcome.absolute for outcome in row.outcomes]),
        )

    heads = [titled(task, metric) for task, metric in metrics.items()]
    note = f"{unit_note(metrics.values())} on test."
    columns, count = ("method", *heads, "mean"), len(heads)
    compared = (*range(1, count + 1), *greatest_is_best(metrics.values(), count + 1))
    return _grouped(f"Methods by task{of_regime}", columns, rows, cells, note, compared)


def learned_of(rows: Sequence[Row]) -> list[Row]:
    """Those with learned coefficients of the tasks' vectors."""
    return [row for row in rows if all("coefficients" in of.facts for of in row.of)]


def learned_coefficient(row: Row, task: str) -> list[float]:
    """Of a task's vector, one a seed; of several, their mean."""
    return [_mean_of(of.facts["coefficients"][task]) for of in row.of]


def _mean_of(learned: float | Mapping[str, float]) -> float:
    return float(np.mean(list(learned.values()))) if isinstance(learned, Mapping) else learned


def _table_of_coefficients(rows: Sequence[Row], metrics: Metrics, of_regime: str) -> Table:
    def cells(row: Row) -> Sequence[object]:
        return (
            row.name,
            *(
                Several(
                    [
                        Mean(learned_coefficient(row, task), ".2f", spread=False),
                        in_unit(metric, [of.values[task] for of in row.outcomes]),
                    ]
                )
                for task, metric in metrics.items()
            ),
        )

    heads = [titled(task, metric) for task, metric in metrics.items()]
    note = (
        "The coefficient of each task's vector / what the model gives on the task, "
        f"{unit_note(metrics.values())[0].lower()}{unit_note(metrics.values())[1:]}. Of methods with several "
        "coefficients a task, their mean."
    )
    return _grouped(f"Learned coefficients{of_regime}", ("method", *heads), rows, cells, note)


def _table_of_storage(rows: Sequence[Row], of_regime: str) -> Table:
    def cells(row: Row) -> Sequence[object]:
        facts = row.of[0].facts
        by_task, whole = facts["bytes_by_task"].values(), sum(facts["bytes_of_vectors"].values())
        added = sum(by_task) / len(by_task)
        every = (facts["bytes_shared"] + sum(by_task)) / whole if whole else None
        return (
            row.name,
            Mean([added / 2**20], ".3g"),
            percent([facts["share"]]),
            Mean([facts["bytes_shared"] / 2**20], ".3g"),
            percent([every]),
        )

    note = "What serves each task by its name, relative to the tasks' own vectors in full."
    columns = ("method", "MiB a task", "% of its vector", "MiB shared", "% of all vectors")
    return _grouped(f"Bytes of models that know the task{of_regime}", columns, rows, cells, note)


def _table_of_subsets(compared: Methods, of_regime: str) -> Table:
    """Normalized values by the number of tasks."""
    sizes = sorted({len(of[0].tasks) for of in compared})
    by_method: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in rows_of(compared):
        by_size = by_method.setdefault((_head(row.group), row.label), {})
        by_size.setdefault(len(row.of[0].tasks), []).extend(each.normalized for each in row.outcomes)
    groups: dict[str, list[Sequence[object]]] = {}
    for (head, label), by_size in by_method.items():
        cells = [Mean(by_size.get(size, [None]), scale=100, spread=False) for size in sizes]
        groups.setdefault(head, []).append((label, *cells))
    note = "Normalized, per cent: mean over subsets of so many tasks, and over their tasks."
    title = f"Methods by number of tasks{of_regime}"
    return Table.grouped(title, ("method", *map(str, sizes)), groups, note)
