"""Which test examples a model gets right, a bit each: what tests and intervals are made of."""

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskvec.errors import CorruptFile
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.points import Point
from taskvec.studies.record import Plain
from taskvec.tasks.kinds.classification import Classifying
from taskvec.tasks.objective import Objective, Tally
from taskvec.tasks.score import Score, utility

Hits = Mapping[str, str]
"""By task, of classifications scored by accuracy: how many examples there are, and a bit each."""


def pack_hits(tally: Tally) -> str:
    """Which examples of a classification are right: their number, and a bit each."""
    right = tally["logits"].argmax(1) == tally["labels"]
    return f"{len(right)}:{b64encode(np.packbits(right.numpy()).tobytes()).decode()}"


def unpack_hits(packed: str) -> NDArray[np.float64]:
    """Of each example (n,): 1 if it is right, else 0. Raises: CorruptFile for anything else."""
    count, _, bits = packed.partition(":")
    try:
        octets = np.frombuffer(b64decode(bits, validate=True), np.uint8)
    except ValueError:  # as binascii.Error is
        octets = np.zeros(0, np.uint8)
    if not count.isdecimal() or len(count) > 12 or -(-int(count) // 8) != len(octets) or not len(octets):
        raise CorruptFile(
            f"hits: {packed[:40]!r}, expected a number of examples and a bit each; run the experiment again"
        )
    return np.unpackbits(octets, count=int(count)).astype(np.float64)


def has_hits(objective: Objective) -> bool:
    """Whether the metric of a task is the share of its examples that are right."""
    return isinstance(objective, Classifying) and objective.metric == "accuracy"


def scores_and_hits(
    evaluator: Evaluator, point: Point, tasks: Iterable[str]
) -> tuple[dict[str, Score], dict[str, str]]:
    """All figures on test data, by task, and which examples are right; a pass a task."""
    scores, hits = {}, {}
    for task in tasks:
        if has_hits(objective := evaluator.objective(task)):
            tally = evaluator.tally(point, task, "test")
            scores[task], hits[task] = objective.score(tally), pack_hits(tally)
        else:
            scores[task] = evaluator.score(point, task, "test")
    return scores, hits


def values_and_hits(
    evaluator: Evaluator, point: Point, tasks: Iterable[str]
) -> tuple[dict[str, float], dict[str, str]]:
    """The same with the tasks' own metrics alone, of which more is better."""
    values, hits = {}, {}
    for task in tasks:
        if has_hits(objective := evaluator.objective(task)):
            tally = evaluator.tally(point, task, "test")
            values[task] = utility(objective.metric, objective.value(tally))
            hits[task] = pack_hits(tally)
        else:
            values |= evaluator.values(point, [task], "test")
    return values, hits


def without_hits(stored: Plain) -> dict[str, Any]:
    """A record for readers; which examples are right stays in ``records.jsonl``."""
    return {key: _without(value) for key, value in stored.items() if key != "hits" or not _packed(value)}


def _without(value: object) -> object:
    if isinstance(value, Mapping):
        return without_hits(value)
    return [_without(each) for each in value] if isinstance(value, list) else value


def _packed(value: object) -> bool:
    """Whether these are hits, and not what a task of this name has."""
    several = list(value.values()) if isinstance(value, Mapping) else [value]
    return all(isinstance(each, str) for each in several)
