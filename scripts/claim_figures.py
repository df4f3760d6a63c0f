"""Figures of records with their intervals, and verdicts on them: for ``claims.py``."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from pydantic import Field, model_validator
from scipy.stats import t as student  # type: ignore[import-untyped]

from claim_records import Found, Runs
from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.studies.store import key_of

Verdict = Literal["holds", "does not hold here", "not resolved here", "not testable here", "not measured"]


class Pick(Config):
    """One number a seed: a mean over the records of a kind that the seed has."""

    run: str
    """The experiment's or the analysis' name."""
    cell: str
    regime: str | None = None
    tasks: int | None = None
    """How many tasks a record is about."""
    where: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    """What else a record says: in its result, else in its inputs."""
    at: tuple[str | int, ...]
    """The path to the number in the result: names; places, of a list or a mapping; ``NAME*``, all that begin
    so."""
    reduce: str = "mean"
    """What is taken of the list or matrix at the path; one of ``REDUCTIONS``."""

    def fits(self, found: Found) -> bool:
        """Whether a record of the kind is meant, and has the number: older ones may lack it."""
        known = {**found.inputs, **found.result}
        return (
            self.regime in (None, found.inputs.get("regime"))
            and self.tasks in (None, len(found.inputs.get("tasks", ())))
            and all(known.get(key) == value for key, value in self.where.items())
            and any(True for _ in _at(found.result, self.at))
        )


class Expect(Config):
    """Where the interval of a figure lies if a claim holds."""

    above: float = -math.inf
    below: float = math.inf

    def __str__(self) -> str:
        bounds = {"above": self.above, "below": self.below}
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))

    def judge(self, low: float | None, high: float | None) -> Verdict:
        """By the interval alone: it lies where it should, elsewhere, or across; or there is none."""
        if low is None or high is None:
            return "not resolved here"
        if self.above < low and high < self.below:
            return "holds"
        return "does not hold here" if high <= self.above or low >= self.below else "not resolved here"


class Quantity(Config):
    """The sum of some numbers less that of others, over another: a figure a seed.

    In a file, picks say what differs from the first of ``of``.
    """

    what: str
    of: tuple[Pick, ...] = Field(min_length=1)
    less: tuple[Pick, ...] = ()
    over: Pick | None = None
    unit: str = ""
    """``%`` and ``points`` are hundredths."""
    form: str = ".1f"
    exact: bool = False
    """Nothing is drawn: the figure is its own interval."""
    expect: Expect | None = None
    """None for a figure that is shown beside the others."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        """Give every pick what the first one says."""
        lists = {key: _listed(given.get(key, ())) for key in ("of", "less", "over")}
        first = lists["of"][0]
        filled = {key: [{**first, **pick} for pick in picks] for key, picks in lists.items()}
        return {**given, **filled, "over": filled["over"][0] if filled["over"] else None}

    @property
    def picks(self) -> list[Pick]:
        """All numbers that it is made of."""
        return [*self.of, *self.less, *([self.over] if self.over else [])]

    @property
    def digest(self) -> str:
        """Of what is measured, so that a figure is not kept as the answer to another question."""
        return key_of("quantity", self.model_dump(mode="json", include={"of", "less", "over", "exact"}))


def _listed(value: Any) -> list[dict[str, Any]]:
    return [dict(value)] if isinstance(value, Mapping) else list(value or ())


class Figure(Config):
    """A measured quantity."""

    asked: str
    """The quantity's digest."""
    values: dict[str, float]
    """By seed; of what no seed decides, under an empty name."""
    mean: float
    low: float | None
    high: float | None
    by: Literal["seeds", "examples", "exact", "nothing"]
    """Where the interval comes from."""
    records: tuple[str, ...] = Field(min_length=1)
    """Keys."""


Matrix = Sequence[Sequence[float]]


def _pairs(matrix: Matrix, chosen: Callable[[int, int], bool]) -> list[float]:
    return [value for i, row in enumerate(matrix) for j, value in enumerate(row) if i > j and chosen(i, j)]


REDUCTIONS: Mapping[str, Callable[[Any], float]] = {
    "mean": fmean,
    "last": lambda values: values[-1],
    "count": len,
    "size of a cosine": lambda matrix: fmean(map(abs, _pairs(matrix, lambda i, j: True))),
    "among the first three": lambda matrix: fmean(_pairs(matrix, lambda i, j: i < 3)),
    "others": lambda matrix: fmean(_pairs(matrix, lambda i, j: i >= 3)),
}
"""What one number of a list or a matrix of tasks may be."""


@dataclass(frozen=True)
class Number:
    """A value, and its variance over test examples where that is known."""

    value: float
    variance: float | None = None

    def __add__(self, other: "Number") -> "Number":
        known = self.variance is not None and other.variance is not None
        variance = (self.variance or 0) + (other.variance or 0) if known else None
        return Number(self.value + other.value, variance)

    def scaled(self, factor: float) -> "Number":
        """Times a factor that is known."""
        return Number(factor * self.value, None if self.variance is None else factor**2 * self.variance)


def measure(quantity: Quantity, runs: Runs) -> Figure | None:
    """A figure with the records that it comes from; none where records are missing."""
    found = [_by_seed(pick, runs) for pick in quantity.picks]
    seeds = _seeds(found)
    if not seeds:
        return None
    numbers = {seed: _number(quantity, [of.get(seed) or of[None] for of in found]) for seed in seeds}
    low, high, by = _interval(list(numbers.values()), exact=quantity.exact)
    return Figure(
        asked=quantity.digest,
        values={"" if seed is None else str(seed): number.value for seed, number in numbers.items()},
        mean=fmean(number.value for number in numbers.values()),
        low=low,
        high=high,
        by=by,
        records=tuple(dict.fromkeys(each.key for each in _used(found, seeds))),
    )


def _by_seed(pick: Pick, runs: Runs) -> dict[int | None, list[Found]]:
    by_seed: dict[int | None, list[Found]] = {}
    for found in runs.of(pick.run, pick.cell):
        if pick.fits(found):
            by_seed.setdefault(found.seed, []).append(found)
    return by_seed


def _seeds(found: Sequence[Mapping[int | None, object]]) -> list[int | None]:
    """Those that all picks have; what no seed decides goes with every one. Empty where a pick has nothing."""
    seeded = [set(of) for of in found if None not in of]
    if not all(found):
        return []
    shared = set.intersection(*seeded) if seeded else {None}
    return sorted(shared, key=lambda seed: -1 if seed is None else seed)


def _used(
    found: Iterable[Mapping[int | None, Sequence[Found]]], seeds: Sequence[int | None]
) -> Iterable[Found]:
    return (each for of in found for seed in (*seeds, None) for each in of.get(seed, ()))


def _number(quantity: Quantity, records: Sequence[Sequence[Found]]) -> Number:
    numbers = [_mean(pick, of) for pick, of in zip(quantity.picks, records, strict=True)]
    plus, minus = len(quantity.of), len(quantity.of) + len(quantity.less)
    terms = [*numbers[:plus], *(number.scaled(-1) for number in numbers[plus:minus])]
    total = sum(terms[1:], terms[0])
    return total.scaled(1 / numbers[-1].value) if quantity.over else total


def _mean(pick: Pick, records: Sequence[Found]) -> Number:
    numbers = [_read(pick, found) for found in records]
    return sum(numbers[1:], numbers[0]).scaled(1 / len(numbers))


def _read(pick: Pick, found: Found) -> Number:
    places = list(_at(found.result, pick.at))
    try:
        values = [REDUCTIONS[pick.reduce](each) if isinstance(each, list) else each for each in places]
        value = fmean(map(float, values))
    except (KeyError, TypeError, ValueError) as error:
        where = f"{found.run}, {found.cell}"
        raise InputError(f"{where}: no number at {'/'.join(map(str, pick.at))} ({error})") from None
    return Number(value, _variance(pick.at, found, value))


def _at(value: Any, path: Sequence[str | int]) -> Iterable[Any]:
    if not path:
        return [value]
    return [each for one in _inside(value, path[0]) for each in _at(one, path[1:])]


def _inside(value: Any, step: str | int) -> list[Any]:
    """What a step of a path leads to; nothing where it leads nowhere."""
    if isinstance(step, int):
        values = list(value.values()) if isinstance(value, Mapping) else value
        return values[step:][:1] if isinstance(values, list) else []
    if not isinstance(value, Mapping):
        return []
    if step.endswith("*"):
        return [each for name, each in value.items() if name.startswith(step[:-1])]
    return [value[step]] if step in value else []


def _variance(path: Sequence[str | int], found: Found, value: float) -> float | None:
    """Of a mean accuracy over tasks, as its test examples are drawn; normalized in its proportion."""
    examples = found.inputs.get("limits", {}).get("test")
    if path[-1] not in ("absolute", "normalized") or "*" in path or not examples:
        return None
    [edit] = _at(found.result, path[:-1])
    shares = edit["values"].values()
    variance = sum(share * (1 - share) / examples for share in shares) / len(shares) ** 2
    return float((value / edit["absolute"]) ** 2 * variance)


def _interval(
    numbers: Sequence[Number], *, exact: bool
) -> tuple[float | None, float | None, Literal["seeds", "examples", "exact", "nothing"]]:
    """95 %: Student's t over seeds; of one seed, of its test examples as if unpaired."""
    values = [number.value for number in numbers]
    mean = fmean(values)
    if exact:
        return min(values), max(values), "exact"
    if len(values) > 1:
        half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
        return mean - half, mean + half, "seeds"
    if numbers[0].variance is None:
        return None, None, "nothing"
    half = 1.96 * math.sqrt(numbers[0].variance)
    return mean - half, mean + half, "examples"
