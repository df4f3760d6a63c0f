"""Every figure of a run, one by one, each traced to its record: what exports and comparisons are made of."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from taskvec.studies.record import Plain
from taskvec.studies.study import Results
from taskvec.tasks.score import utility, wilson

Path = tuple[str, ...]

_UNTOLD = {"inspected", "vector"}
"""Kinds of records that hold no figures."""

_SKIPPED = {
    *("validation", "trace", "grid_extended", "at_grid_limit", "satisfied", "plateau", "measured", "points"),
    *("remark", "search", "searches", "intervals", "recall", "target_recall", "hits", "facts", "course"),
    *("coefficient", "coefficients", "examples", "grid", "seconds", "draw", "shots", "rounds"),
}
"""What says how a figure was found, and what is no figure of its own."""

_SAID_TWICE = {"negation": {"control", "keep"}}
"""By kind of record, what is no figure, or the mean of others."""

_BY_TASK = {"single": {"test"}, "negation": {"controls"}}
"""By kind of record, the keys of values by task."""

_OF_TARGET = {"negation": {"target"}, "few_shot": {"values"}, "layers": {"test"}}
"""By kind of record, the keys of values of its target."""

_OF_ONE_TASK = {"zero_shot", "layers"}
"""Kinds with a record a task that does not name it."""

_IN_UNIT = {"negation"}
"""Kinds whose values are in the unit of the task's metric, and not as protocols compare them."""


@dataclass(frozen=True)
class Fact:
    """A figure on test data.

    Args:
        study: the kind of its record.
        row: which of the record's models it is of.
        regime, seed: empty and none for a figure of the model alone.
        task: empty for a mean over tasks, and for what is of no task.
        metric: the task's, in whose unit the value is; or what else it is, such as ``normalized``.
        interval: 95 %, over examples.
        n: examples.
        consumed: beside the vectors; none where the record does not say.
        seconds: that the record took to compute.
        key: of the record.
        hits: which examples are right, packed.
    """

    study: str
    row: str
    regime: str
    seed: int | None
    task: str
    metric: str
    value: float
    interval: tuple[float, float] | None = None
    n: int | None = None
    coefficient: float | None = None
    consumed: Sequence[str] | None = None
    seconds: float | None = None
    key: str = ""
    hits: str | None = field(default=None, repr=False)

    @property
    def place(self) -> tuple[str, str, str, str, str]:
        """What is the same for this figure in another run, or with another seed."""
        return self.study, self.row, self.regime, self.task, self.metric


@dataclass(frozen=True)
class _Source:
    """A record and its place in the run."""

    kind: str
    result: Plain
    sizes: Mapping[str, int]
    metrics: Mapping[str, str]
    like: Fact

    def of(self, path: Path, task: str, metric: str, value: float, **more: Any) -> Fact:
        row = ", ".join(filter(None, [self.like.row, " ".join(path)]))
        return replace(self.like, row=row, task=task, metric=metric, value=value, **more)


def facts_of(results: Results, records: Mapping[str, Mapping[str, Any]]) -> list[Fact]:
    """Every figure of a run.

    Args:
        records: by key, for what the cells took.
    """
    plan, found = results.plan, list[Fact]()
    tests = [
        (task, cell.get("test"))
        for task, cell in zip(plan.compared, results.cells.get(("zero_shot", "", 0), ()), strict=False)
    ]
    sizes = {task: test["examples"] for task, test in tests if isinstance(test, dict) and "examples" in test}
    metrics = {name: task.metric for name, task in plan.suite.tasks.items()}
    for (kind, regime, seed), cells in results.cells.items():
        for place, (result, key) in enumerate(zip(cells, results.keys[kind, regime, seed], strict=True)):
            if kind in _UNTOLD:
                continue
            of_one = plan.compared if kind == "zero_shot" else plan.tasks if kind in _OF_ONE_TASK else ()
            like = Fact(
                kind.replace("_", "-"),
                _label(result, plan.tasks),
                regime,
                seed if regime else None,
                of_one[place] if of_one else "",
                "",
                0.0,
                seconds=records.get(key or "", {}).get("seconds"),
                key=key or "",
            )
            found += _facts(result, (), _Source(kind, result, sizes, metrics, like))
    return found


def _label(result: Plain, tasks: Sequence[str]) -> str:
    """What a record is of, where its kind has several."""
    parts = [str(result[key]) for key in ("name", "combiner", "model") if isinstance(result.get(key), str)]
    match result:
        case {"a": str(a), "b": str(b), "c": str(c), "target": str(target)}:
            parts.append(f"{target} = {c} + ({b} − {a})")
        case {"target": str(target)}:
            parts.append(target)
        case {"tasks": list(of)} if list(of) != list(tasks):
            parts.append(" + ".join(map(str, of)))
    for key in ("rounds", "shots"):
        if isinstance(result.get(key), int):
            parts.append(f"{result[key]} {key}")
    return ", ".join(filter(None, parts))


def _facts(value: Any, path: Path, source: _Source) -> Iterator[Fact]:
    """Those in a part of a record, by what the part looks like."""
    match value:
        case {"absolute": float() | int(), "normalized": float() | int(), "values": dict()}:
            yield from _measured(value, path, source)
        case {"metric": str(metric), "value": float() | int() as number, **more} if "examples" in more:
            task = path[-1] if path and path[-1] in source.metrics else source.like.task or _target(source)
            rest = path[:-1] if path and path[-1] == task else path
            named = tuple(part for part in rest if part not in ("test", "score", "target_score", "rows"))
            yield source.of(named, task, metric, number, **_sure(value, metric, number))
        case dict():
            yield from _inside(value, path, source)


def _inside(value: Mapping[str, Any], path: Path, source: _Source) -> Iterator[Fact]:
    by_task, of_target = _BY_TASK.get(source.kind, set()), _OF_TARGET.get(source.kind, set())
    has_score = any(isinstance(each, dict) and "metric" in each for each in value.values())
    for key, each in value.items():
        inner = path if key == "rows" else (*path, key)
        if key in _SKIPPED or key in _SAID_TWICE.get(source.kind, ()) or f"{key}_score" in value:
            continue
        if key in by_task and isinstance(each, dict):
            yield from _values(each, path, source)
            if source.kind == "single" and each:
                yield source.of(path, "", "absolute", fmean(each.values()))
        elif key in of_target:
            values = each if isinstance(each, dict) else {"": each}
            for row, number in values.items():
                yield from _value(_target(source), number, (*path, *filter(None, [row])), source)
        elif key == "outcomes" and isinstance(each, list):
            for outcome in each:
                yield from _facts(outcome, path, source)
        elif key == "value" and has_score:
            continue
        elif isinstance(each, dict):
            yield from _facts(each, inner, source)
        elif _is_number(each):
            yield source.of(*_named(path, key, source), float(each))


def _named(path: Path, key: str, source: _Source) -> tuple[Path, str, str]:
    """Row, task and name of a number: a task may be its key, or the one before it."""
    if key in source.metrics and path:
        return path[:-1], key, path[-1]
    if path and path[-1] in source.metrics:
        return path[:-1], path[-1], key
    return path, source.like.task, key


def _measured(value: Mapping[str, Any], path: Path, source: _Source) -> Iterator[Fact]:
    """An edit on several tasks: every task, and the two means."""
    how = ("α searched",) if value.get("how") == "searched" else ()
    consumed, coefficient = value.get("consumed"), value.get("coefficient")
    known: dict[str, Any] = {
        "coefficient": coefficient if _is_number(coefficient) else None,
        "consumed": consumed if isinstance(consumed, list) else None,
    }
    of = replace(source, like=replace(source.like, **known))
    hits, scores = value.get("hits") or {}, value.get("test") or {}
    for task, number in value["values"].items():
        score = scores.get(task) if isinstance(scores, dict) else None
        more = {"hits": hits.get(task)} if isinstance(hits, dict) else {}
        yield from _value(task, number, (*path, *how), of, score, **more)
    for metric in ("absolute", "normalized"):
        yield of.of((*path, *how), "", metric, float(value[metric]))
    rest = {
        key: each
        for key, each in value.items()
        if key not in ("values", "absolute", "normalized", "test", "how")
    }
    yield from _inside(rest, path, source)


def _values(values: Mapping[str, Any], path: Path, source: _Source) -> Iterator[Fact]:
    for task, number in values.items():
        yield from _value(task, number, path, source)


def _value(
    task: str, number: object, path: Path, source: _Source, score: object = None, **more: Any
) -> Iterator[Fact]:
    """A value in the unit of its task's metric, which a record holds as protocols compare it."""
    if not _is_number(number):
        return
    metric = source.metrics.get(task, "")
    value = float(number)  # type: ignore[arg-type]
    value = value if source.kind in _IN_UNIT else utility(metric, value)
    if isinstance(score, dict):
        sure = _sure(score, metric, value)
    else:
        n = source.sizes.get(task)
        sure = {"n": n, "interval": _share(value, n) if metric == "accuracy" else None}
    yield source.of(path, task, metric or "value", value, **sure, **more)


def _sure(score: Mapping[str, Any], metric: str, value: float) -> dict[str, Any]:
    """How many examples a score is of, and its interval."""
    ranges = score.get("intervals") or {}
    found = ranges.get(metric) if metric in ranges else score.get("interval")
    n = score.get("examples")
    interval = tuple(found) if isinstance(found, list | tuple) and len(found) == 2 else None
    return {"n": n, "interval": interval or (_share(value, n) if metric == "accuracy" else None)}


def _share(value: float, n: int | None) -> tuple[float, float] | None:
    return wilson(round(value * n), n) if n and 0 <= value <= 1 else None


def _target(source: _Source) -> str:
    target = source.result.get("target", source.result.get("task", source.like.task))
    return target if isinstance(target, str) else ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
