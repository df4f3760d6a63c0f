"""How sure the figures of models are, and how sure it is that one is better than another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from taskvec.studies.entry import ADDITION, PRETRAINED, Entry
from taskvec.studies.hits import unpack_hits
from taskvec.studies.measured import Measured
from taskvec.studies.numerics.intervals import Array, Sample, interval_of_mean
from taskvec.studies.numerics.paired import Difference, holm, paired_difference
from taskvec.studies.study import Results

Metrics = Mapping[str, str]
"""By task."""

SHARES = ("accuracy", "exact_match")
"""Metrics that are the share of examples that are right."""


@dataclass(frozen=True)
class Line:
    """An entry and what is known of its mean over tasks, more is better.

    Args:
        interval: 95 % of the mean over tasks and seeds.
        baseline: what it is compared with; none for references and the baseline itself.
        difference: of the means, over the seeds that both have.
        test: the same on the same examples; none unless every example is right or wrong.
        p: of that test, corrected for all tests of the table.
    """

    entry: Entry
    interval: tuple[float, float] | None
    baseline: Entry | None = None
    difference: float | None = None
    test: Difference | None = None
    p: float | None = None


def entries_of(results: Results) -> list[Entry]:
    """Every model of a run, once: the pre-trained one, then by what was consumed, the best first."""
    found: dict[tuple[object, ...], Entry] = {}
    for study in results.studies:
        for entry in study.entries(results):
            known = found.get(entry.identity)
            if known is None or _known_of(entry) > _known_of(known):
                found[entry.identity] = entry
    return sorted(found.values(), key=_place)


def _known_of(entry: Entry) -> tuple[int, bool, bool]:
    """How much is on record of it; the same model may be in several studies, and older records hold less."""
    return len(entry.seeds), all(of.hits for of in entry.edits), bool(entry.seconds)


def _place(entry: Entry) -> tuple[bool, Sequence[int], float]:
    mean = sum(edit.absolute for edit in entry.edits) / len(entry.edits)
    return entry.name != PRETRAINED, entry.level, -mean


def compare(
    entries: Sequence[Entry],
    metrics: Metrics,
    examples: Mapping[str, int],
    regimes: Sequence[str],
    baseline: str = ADDITION,
) -> list[Line]:
    """Every entry with its interval, and its difference to a baseline with p-values corrected after Holm.

    Args:
        metrics: by task.
        examples: test examples by task, for entries whose single examples are not on record.
        regimes: in their order.
        baseline: the name of what all others are compared with, of the same regime and with a coefficient
            found in the same way; entries without a coefficient, with the searched one, if there is any. The
            baseline itself is compared with that of the first regime.
    """
    candidates = sorted(
        (entry for entry in entries if entry.name == baseline), key=lambda entry: regimes.index(entry.regime)
    )
    lines = [_line(entry, _baseline_of(entry, candidates), metrics, examples) for entry in entries]
    corrected = iter(holm([line.test.p for line in lines if line.test]))
    return [replace(line, p=next(corrected)) if line.test else line for line in lines]


def _line(entry: Entry, baseline: Entry | None, metrics: Metrics, examples: Mapping[str, int]) -> Line:
    interval = interval_of_mean(samples_of(entry, metrics, examples))
    if baseline is None:
        return Line(entry, interval)
    pairs = [(entry.seeds[seed], baseline.seeds[seed]) for seed in entry.seeds if seed in baseline.seeds]
    difference = fmean(mine.absolute - other.absolute for mine, other in pairs) if pairs else None
    return Line(entry, interval, baseline, difference, _test(pairs, list(metrics)) if pairs else None)


def _baseline_of(entry: Entry, candidates: Sequence[Entry]) -> Entry | None:
    """The better one where there are two, such as addition at 1 and at the coefficient of its source."""
    if entry.is_reference or not candidates:
        return None
    regime = candidates[0].regime if entry in candidates else entry.regime
    order = ("searched", "default", "none") if entry.how == "none" else (entry.how,)
    for how in order:
        found = [other for other in candidates if (other.regime, other.how) == (regime, how)]
        if entry in found:
            return None
        if found:
            return max(found, key=lambda other: fmean(edit.absolute for edit in other.edits))
    return None


def samples_of(entry: Entry, metrics: Metrics, examples: Mapping[str, int]) -> list[Sample]:
    """What is known of an entry on every task; with single examples where all seeds have them."""
    return [_sample(entry.edits, task, metric, examples.get(task, 0)) for task, metric in metrics.items()]


def _sample(edits: Sequence[Measured], task: str, metric: str, examples: int) -> Sample:
    values = np.array([edit.values[task] for edit in edits])
    if metric not in SHARES:
        return Sample(values)
    hits = _hits(edits, task)
    return Sample(values, None, examples) if hits is None else Sample(hits.mean(axis=1), hits, hits.shape[1])


def _hits(edits: Sequence[Measured], task: str) -> Array | None:
    """Which examples are right (S, n); none unless all seeds say so of as many."""
    if any(task not in edit.hits for edit in edits):
        return None
    hits = [unpack_hits(edit.hits[task]) for edit in edits]
    return np.stack(hits) if len({len(right) for right in hits}) == 1 else None


def _test(pairs: Sequence[tuple[Measured, Measured]], tasks: Sequence[str]) -> Difference | None:
    """On the same examples, over tasks; none unless all of them are right or wrong."""
    differences = []
    for task in tasks:
        mine, others = (_hits([pair[side] for pair in pairs], task) for side in (0, 1))
        if mine is None or others is None or mine.shape != others.shape:
            return None
        differences.append(mine - others)
    return paired_difference(differences)
