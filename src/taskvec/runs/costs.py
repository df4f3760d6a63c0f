"""What a run cost, from the seconds of its records."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from taskvec.reports.block import Block
from taskvec.reports.charts.scales import Axis, is_shown
from taskvec.reports.charts.stacked import Stacked
from taskvec.reports.numbers import Mean, percent
from taskvec.reports.tables import Table

Records = Iterable[Mapping[str, Any]]

_NAMES = {"vector": "training", "method": "methods", "geometry": "lengths and cosines"}
"""Kinds of cells in other words than their own."""


def cost_blocks(records: Records) -> list[Block]:
    """Seconds by kind of cell and regime, and on what; none without records that tell."""
    known = [record for record in records if is_shown(_seconds(record))]
    by_kind: dict[str, dict[str, float]] = {}
    for record in sorted(known, key=lambda record: record["cell"] != "vector"):
        of = by_kind.setdefault(_named(record["cell"]), {})
        regime = _regime(record)
        of[regime] = of.get(regime, 0.0) + (_seconds(record) or 0.0)
    return [_chart(by_kind), _table(by_kind, known)] if known else []


def _seconds(record: Mapping[str, Any]) -> float | None:
    """Without those of other cells that it waited for, where that is on record."""
    seconds = record.get("own_seconds", record.get("seconds"))
    usable = isinstance(seconds, int | float) and seconds >= 0
    return float(seconds) if usable and seconds is not None else None


def _named(cell: str) -> str:
    return _NAMES.get(cell, cell.replace("_", " "))


def _regime(record: Mapping[str, Any]) -> str:
    inputs = record.get("inputs")
    regime = inputs.get("regime") if isinstance(inputs, Mapping) else None
    return regime if isinstance(regime, str) else "the model alone"


def _chart(by_kind: Mapping[str, Mapping[str, float]]) -> Stacked:
    caption = (
        "Where the time went: training of vectors, and what was measured with them, a bar a kind of cell. "
        "Other bars than training are mostly evaluation, on validation data for coefficients and on test."
    )
    return Stacked("seconds", caption, Axis("seconds"), by_kind)


def _table(by_kind: Mapping[str, Mapping[str, float]], records: Sequence[Mapping[str, Any]]) -> Table:
    counts: dict[str, int] = {}
    for record in records:
        name = _named(record["cell"])
        counts[name] = counts.get(name, 0) + 1
    total = sum(sum(of.values()) for of in by_kind.values()) or 1.0
    sums = {name: sum(of.values()) for name, of in by_kind.items()}
    counts["all"], sums["all"] = len(records), sum(sums.values())
    rows = [
        (name, counts[name], Mean([seconds], ".1f"), percent([seconds / total]))
        for name, seconds in sums.items()
    ]
    return Table("Seconds by kind of cell", ("", "cells", "seconds", "% of all"), rows, _note(records))


def _note(records: Sequence[Mapping[str, Any]]) -> str:
    """On what, and what is counted twice."""
    devices = dict.fromkeys(str(record["device"]) for record in records if record.get("device"))
    versions = dict.fromkeys(
        f"{name} {version}"
        for record in records
        if isinstance(of := record.get("versions"), Mapping)
        for name, version in of.items()
    )
    twice = any("own_seconds" not in record for record in records)
    more = (
        " Some records are of an earlier version: trainings within other cells, such as joint training, are "
        "counted in both."
        if twice
        else ""
    )
    return (
        f"Of all records in the run folder, on {', '.join(devices) or 'an unknown device'}; "
        f"{', '.join(versions)}.{more}"
    )
