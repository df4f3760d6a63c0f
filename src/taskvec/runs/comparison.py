"""Several runs side by side: what was set otherwise, the same models aligned, and what changed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from statistics import fmean
from typing import Any

import numpy as np

from taskvec.reading import shortened
from taskvec.reports.numbers import NOTHING, Mean, Several, percent
from taskvec.reports.tables import Table
from taskvec.runs.several import Run
from taskvec.studies.comparing import entries_of
from taskvec.studies.entry import Entry
from taskvec.studies.hits import unpack_hits
from taskvec.studies.measured import mean_in_unit, reciprocal_note, titled, unit_note, units_of
from taskvec.studies.numerics.paired import Difference, holm, paired_difference
from taskvec.tasks.score import LOWER_IS_BETTER, utility, wilson

_UNSET = {"experiment", "description", "log_to", "device", "evaluation_batch"}
"""Settings that decide no figure."""

_BY_TASK = 3
"""So many runs are compared with the first task by task."""

Place = tuple[object, ...]
"""What is the same for a model in several runs."""


@dataclass(frozen=True)
class Change:
    """What became of a model's mean over tasks from the first run to another.

    Args:
        shown: before and after, over seeds: in the unit of the tasks, normalized where they have several.
        test: on the same examples with the same seeds; none where they are not the same.
        p: of the test, corrected by Holm for all models.
    """

    shown: tuple[float, float]
    test: Difference | None
    p: float | None = None


def alike(runs: Sequence[Run]) -> bool:
    """Whether means over tasks compare: the same tasks, by the same metrics."""
    return len({json.dumps(sorted(run.metrics.items())) for run in runs}) == 1


def aligned(runs: Sequence[Run]) -> list[Table]:
    """What differs between runs and, where they are alike, their models next to each other."""
    tables = list(_differing(runs))
    if not alike(runs):
        return tables
    first, *others = runs
    changes = {run.label: changes_of(first, run) for run in others}
    tables.append(_means(runs, changes))
    tables += [table for run in others[:_BY_TASK] for table in _by_task(first, run)]
    return [*tables, *_beside(runs)]


def compare(runs: Sequence[Run]) -> list[dict[str, object]]:
    """Every figure that two or more runs have: its mean over seeds by run, and the change to the first."""
    found = _means_by_place(runs)
    return [
        {
            **dict(zip(("study", "row", "regime", "task", "metric"), place, strict=True)),
            "values": {run.label: fmean(of[run.label]) for run in runs if run.label in of},
        }
        for place, of in found.items()
        if len(of) > 1
    ]


def _means_by_place(runs: Sequence[Run]) -> dict[tuple[str, ...], dict[str, list[float]]]:
    """Values of every figure, one a seed, by place and by label."""
    found: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for run in runs:
        for fact in run.facts:
            found.setdefault(fact.place, {}).setdefault(run.label, []).append(fact.value)
    return found


def changes_of(first: Run, other: Run) -> dict[Place, Change]:
    """What changed of every model that both runs have."""
    before, after = _models(first), _models(other)
    same, unit = _same_examples(first, other), _unit(first.metrics)
    changes = {
        place: Change(
            (_shown(entry, unit), _shown(after[place], unit)),
            _test(entry, after[place]) if same else None,
        )
        for place, entry in before.items()
        if place in after
    }
    corrected = iter(holm([change.test.p for change in changes.values() if change.test]))
    return {
        place: replace(change, p=next(corrected)) if change.test else change
        for place, change in changes.items()
    }


def _models(run: Run) -> dict[Place, Entry]:
    return {entry.identity: entry for entry in entries_of(run.results)}


def _absolutes(entry: Entry) -> list[float]:
    return [edit.absolute for edit in entry.edits]


def _shown(entry: Entry, unit: str | None) -> float:
    """The mean over seeds that changes are of."""
    if unit is None:
        return fmean(edit.normalized for edit in entry.edits)
    return fmean(utility(unit, mean) for mean in _absolutes(entry))


def _same_examples(first: Run, other: Run) -> bool:
    """Whether both were measured on the same test examples."""
    plans = [run.results.plan for run in (first, other)]
    before, after = (
        ({task: plan.digests.get(task) for task in plan.tasks}, plan.experiment.limits.get("test"))
        for plan in plans
    )
    return before == after


def _test(before: Entry, after: Entry) -> Difference | None:
    """The second model against the first, on the same examples; none unless all of them are on record."""
    tasks = list(before.edits[0].values)
    seeds = list(before.seeds)
    if seeds != list(after.seeds) or any(
        edit.hits.keys() != set(tasks) for of in (before, after) for edit in of.edits
    ):
        return None
    pairs = list(zip(after.edits, before.edits, strict=False))
    found = [
        [(unpack_hits(mine.hits[task]), unpack_hits(theirs.hits[task])) for mine, theirs in pairs]
        for task in tasks
    ]
    if any(len(mine) != len(theirs) for of_task in found for mine, theirs in of_task):
        return None
    return paired_difference([np.stack([mine - theirs for mine, theirs in of_task]) for of_task in found])


def _differing(runs: Sequence[Run]) -> Iterator[Table]:
    """The settings, data and versions that are not the same in all runs."""
    settings = {run.label: dict(_settings(run)) for run in runs}
    keys = dict.fromkeys(key for of in settings.values() for key in of)
    rows = [
        (key, *(of.get(key, NOTHING) for of in settings.values()))
        for key in keys
        if len({of.get(key) for of in settings.values()}) > 1
        and not any(other.startswith(f"{key}.") for other in keys)
    ]
    if rows:
        note = "Settings at their defaults count as set; what decides no figure is left out."
        yield Table("What differs", ("", *settings), rows, note)


def _settings(run: Run) -> Iterator[tuple[str, str]]:
    plan = run.results.plan
    yield "model fingerprint", plan.model[:12]
    for task in plan.tasks:
        yield f"data of {task}", plan.digests.get(task, "")[:12]
    told = plan.experiment.model_dump(mode="json", by_alias=True, exclude=_UNSET)
    yield from _flat({key: value for key, value in told.items() if key not in _UNSET})
    versions = {
        (name, version)
        for record in run.records.values()
        for name, version in record.get("versions", {}).items()
    }
    for name in sorted({name for name, _ in versions}):
        yield (
            f"version of {name}",
            ", ".join(sorted(str(version) for known, version in versions if known == name)),
        )
    yield "device", ", ".join(sorted({str(record.get("device", "cpu")) for record in run.records.values()}))


def _flat(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, each in value.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(each, dict) and each:
            yield from _flat(each, name)
        else:
            yield name, shortened(each if isinstance(each, str) else json.dumps(each), 60)


def _means(runs: Sequence[Run], changes: Mapping[str, Mapping[Place, Change]]) -> Table:
    """Absolute and normalized means of every model, a column a run; and what changed against the first."""
    models = {run.label: _models(run) for run in runs}
    first, metrics = runs[0], runs[0].metrics
    unit = _unit(metrics)
    groups: dict[str, list[tuple[object, ...]]] = {}
    for place, entry in {place: entry for of in models.values() for place, entry in of.items()}.items():
        has = [label for label, of in models.items() if place in of]
        only = f" (only {has[0]})" if len(has) == 1 else ""
        cells = [_both(of.get(place), metrics) for of in models.values()]
        moved = [cell for of in changes.values() for cell in _change(of.get(place), unit, len(runs) == 2)]
        groups.setdefault(f"consumed: {entry.group}", []).append((f"{_named(entry)}{only}", *cells, *moved))
    heads = ["change", "95 %", "p"] if len(runs) == 2 else [f"change in {run.label}" for run in runs[1:]]
    note = (
        f"Absolute / normalized, mean over tasks: {_words(metrics)}; ± standard deviation over seeds. "
        f"Change: {_of_change(unit)} from {first.label}; * p < 0.05. Interval and "
        "p are of a z-test on the same test examples and seeds, where both runs have on record which are "
        f"right; p is corrected by Holm for all models of a run.{reciprocal_note(metrics.values())}"
    )
    compared = () if unit else range(1, len(runs) + 1)
    return Table.grouped("The same models", ["", *models, *heads], groups, note, compared)


def _named(entry: Entry) -> str:
    alphas = set(entry.coefficients.values())
    alpha = "α searched" if entry.how == "searched" else f"α = {alphas.pop():g}" if len(alphas) == 1 else ""
    return ", ".join(filter(None, (entry.name, entry.regime, alpha)))


def _both(entry: Entry | None, metrics: Mapping[str, str]) -> object:
    if entry is None:
        return NOTHING
    absolute = mean_in_unit(
        [metrics[task] for task in entry.edits[0].values if task in metrics], _absolutes(entry)
    )
    return Several(
        [absolute, percent([None if isnan(edit.normalized) else edit.normalized for edit in entry.edits])]
    )


def _unit(metrics: Mapping[str, str]) -> str | None:
    """The unit of means over tasks: empty for shares; none where tasks have several."""
    units = units_of(metrics.values())
    return units[0] if len(units) == 1 else None


def _words(metrics: Mapping[str, str]) -> str:
    words = unit_note(metrics.values())
    return f"{words[0].lower()}{words[1:]}"


def _of_change(unit: str | None) -> str:
    """What a change is of."""
    if unit is None:
        return "points of the normalized mean"
    return (
        f"of the mean {unit.replace('_', ' ')}, below 0 is better," if unit else "points of the absolute mean"
    )


def _change(change: Change | None, unit: str | None, wide: bool) -> Iterator[object]:
    if change is None:
        yield from [NOTHING] * (3 if wide else 1)
        return
    moved = _said(change, unit)
    yield f"{moved}*" if change.p is not None and change.p < 0.05 else moved
    if wide and change.test is not None and change.p is not None:
        low, high = (f"{100 * bound:+.1f}".replace("-", "−") for bound in change.test.interval)
        yield f"[{low}, {high}]"
        yield "< 0.001" if change.p < 0.001 else f"{change.p:.3f}"
    elif wide:
        yield from (NOTHING, NOTHING)


def _said(change: Change, unit: str | None) -> str:
    """A change in the unit of its means, or in points."""
    before, after = change.shown
    if isnan(after - before):
        return NOTHING
    return str(Mean([after - before], "+.3g") if unit else Mean([100 * (after - before)], "+.1f"))


def _by_task(first: Run, other: Run) -> Iterator[Table]:
    """Change of every model on every task, marked where the intervals are apart."""
    tasks, after = first.tasks, _models(other)
    sizes = [_sizes(run) for run in (first, other)]
    rows = [
        (
            _named(entry),
            *(
                _moved(task, first.metrics[task], (entry, after[place]), [of.get(task) for of in sizes])
                for task in tasks
            ),
        )
        for place, entry in _models(first).items()
        if place in after
    ]
    if rows:
        heads = [titled(task, first.metrics[task]) for task in tasks]
        note = (
            f"From {first.label} to {other.label}, means over seeds, in points of the metric; tasks with ↓ "
            "in the metric's own unit, below 0 is better. * the 95 % intervals over examples do not "
            "overlap, with any seed."
        )
        yield Table(f"Changes by task, {other.label}", ("", *heads), rows, note)


def _sizes(run: Run) -> dict[str, int | None]:
    """Test examples by task."""
    return {fact.task: fact.n for fact in run.facts if fact.study == "zero-shot"}


def _moved(task: str, metric: str, entries: Sequence[Entry], sizes: Sequence[int | None]) -> str:
    """The change of a task's value from the first entry to the second, each of so many examples."""
    first, second = (
        [utility(metric, edit.values[task]) for edit in entry.edits if task in edit.values]
        for entry in entries
    )
    if not first or not second:
        return NOTHING
    own = metric in LOWER_IS_BETTER
    text = str(Mean([(fmean(second) - fmean(first)) * (1 if own else 100)], "+.3g" if own else "+.1f"))
    return f"{text}*" if metric == "accuracy" and _apart(first, second, sizes) else text


def _apart(before: Sequence[float], after: Sequence[float], sizes: Sequence[int | None]) -> bool:
    """Whether every interval of one lies above every interval of the other; shares of so many examples."""
    ranges = [
        (wilson(round(min(of) * n), n)[0], wilson(round(max(of) * n), n)[1])
        for of, n in zip((before, after), sizes, strict=True)
        if n
    ]
    return len(ranges) == 2 and (ranges[0][1] < ranges[1][0] or ranges[1][1] < ranges[0][0])


def _beside(runs: Sequence[Run]) -> Iterator[Table]:
    """Figures of models that have no mean over all tasks, such as negation, by study."""
    whole = {
        (fact.study, fact.row, fact.regime) for run in runs for fact in run.facts if fact.metric == "absolute"
    }
    found: dict[str, list[tuple[object, ...]]] = {}
    for (study, *rest, metric), of in _means_by_place(runs).items():
        if (study, *rest[:2]) in whole:
            continue
        cells = [Mean(of[run.label], ".4g") if run.label in of else NOTHING for run in runs]
        change = [fmean(of[run.label]) for run in runs if run.label in of]
        moved = [Mean([change[1] - change[0]], "+.3g") if len(change) == 2 else NOTHING] * (len(runs) == 2)
        found.setdefault(study, []).append((", ".join(filter(None, (*rest, metric))), *cells, *moved))
    for study, rows in found.items():
        columns = ("", *(run.label for run in runs), *(["change"] if len(runs) == 2 else []))
        yield Table(study.replace("-", " ").capitalize(), columns, rows, "As on record, means over seeds.")
