"""The loop of a search: candidates proposed, measured, put on record."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskvec.edits.merge import Merge
from taskvec.errors import DiskFull, InputError, MissingExtra, OutOfMemory, TaskvecError, and_more
from taskvec.progress import Watch, unwatched
from taskvec.searching.measuring import Candidate, Measured, Measurer
from taskvec.searching.objective import WORST, Figures, Objective, Portion, Score
from taskvec.searching.optimisers import METHODS
from taskvec.searching.settings import SearchSettings
from taskvec.searching.space import Dimension, Numbers, Scalar, Space
from taskvec.searching.trace import Evaluation, Trace

_FATAL = (DiskFull, MissingExtra, OutOfMemory)
"""What is no fault of the candidate."""

REPEATS = 200
"""Candidates in a row that are known already, after which no others are to be expected."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        evaluations: in order, the first is that of the recipe's own numbers.
        best: the best of them; of equal ones the first.
        holdout: the first and the best on the part of the data that the search did not see, if there is one.
        ended: why it ended.
        maximized: figure -> what it counts in the objective.
        recipe: the plain data of the best one's recipe, whose paths hold wherever it is written.
        notes: on the recipe's inputs, for the user.
    """

    evaluations: tuple[Evaluation, ...]
    best: Evaluation
    holdout: tuple[Evaluation, Evaluation] | None
    ended: str
    maximized: Mapping[str, float]
    recipe: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def start(self) -> Evaluation:
        """The recipe's own numbers."""
        return self.evaluations[0]

    @property
    def values(self) -> Mapping[str, Scalar]:
        """The best numbers, by path."""
        return self.best.values

    @property
    def gain(self) -> float:
        """By how much the best is above the start on the part that the search saw; too high, being chosen."""
        return self.best.worth.objective - self.start.worth.objective

    @property
    def gain_on_holdout(self) -> float | None:
        """The same on the part that it did not see."""
        if self.holdout is None:
            return None
        start, best = (evaluation.worth.objective for evaluation in self.holdout)
        return best - start if math.isfinite(start) and math.isfinite(best) else None

    def remarks(self) -> list[str]:
        """What went wrong with candidates: the first of those with each problem, and how many."""
        problems: dict[str, list[int]] = {}
        for evaluation in self.evaluations:
            if evaluation.problem:
                problems.setdefault(evaluation.problem, []).append(evaluation.number)
        return [
            f"evaluation {numbers[0]}{and_more(numbers)} counts as the worst: {problem}"
            for problem, numbers in problems.items()
        ] + list(self.notes)

    def record(self) -> dict[str, Any]:
        """As plain data."""
        unseen = self.holdout and {
            "start": self.holdout[0].record(),
            "best": self.holdout[1].record(),
            "gain": self.gain_on_holdout,
        }
        return {
            "start": self.start.record(),
            "best": self.best.record(),
            "gain": self.gain if math.isfinite(self.gain) else None,
            "holdout": unseen,
            "evaluations": len(self.evaluations),
            "failed": sum(bool(evaluation.problem) for evaluation in self.evaluations),
            "seconds": round(math.fsum(evaluation.seconds for evaluation in self.evaluations), 3),
            "ended": self.ended,
            "maximized": dict(self.maximized),
            "recipe": self.recipe,
        }


@dataclass(frozen=True)
class Searching:
    """A search at work.

    Args:
        variant: makes the model of a candidate's recipe.
        score: measures the models, which ``run`` has done by a measurer.
        trace: what is measured already, and where it is put on record.
    """

    space: Space
    variant: Callable[[Mapping[str, object]], Merge]
    score: Score
    objective: Objective
    settings: SearchSettings
    trace: Trace
    watch: Watch = unwatched

    def check_ranges(self) -> None:
        """Refuse a range with an end that no recipe can have, or fractions of what is counted.

        Raises: InputError, naming the number.
        """
        for place, dimension in enumerate(self.space.dimensions):
            for number, advice in _extremes(dimension):
                numbers = (*self.space.start[:place], number, *self.space.start[place + 1 :])
                try:
                    self.variant(self.space.recipe(numbers))
                except InputError as error:
                    shown = dimension.value(number)
                    raise InputError(f"{dimension.path}: cannot be {shown} ({error}); {advice}") from None

    def run(self, measurer: Measurer) -> Found:
        """Search.

        Raises: TaskvecError if the recipe's own numbers cannot be measured.
        """
        start = self.space.start
        first = self._evaluation(measurer, 0, start, "search")
        known = {start: first}
        unseen = self._evaluation(measurer, 0, start, "holdout") if self.score.parts else None
        ended = self._propose(measurer, known)
        found = list(known.values())
        self._tell(found, ended=True)
        best = max(found, key=lambda evaluation: (evaluation.worth, -evaluation.number))
        numbers = next(numbers for numbers, evaluation in known.items() if evaluation is best)
        notes = self.variant(self.space.recipe(self.space.start)).notes
        holdout = None
        if unseen is not None:
            again = (
                self._evaluation(measurer, best.number, numbers, "holdout", unseen) if best.number else unseen
            )
            holdout = (unseen, again)
        counts = self.objective.signed(first.figures, self.score)
        return Found(tuple(found), best, holdout, ended, counts, self.space.recipe(numbers), notes)

    def _propose(self, measurer: Measurer, known: dict[Numbers, Evaluation]) -> str:
        """Measure one candidate after the other; why that ends."""
        first = known[self.space.start]
        proposals = METHODS[self.settings.method](self.space, self.settings)
        repeats = 0
        try:
            together = next(proposals)
            while True:
                measurer.expect(self._new(together, known))
                for numbers in together:
                    if ended := self._spent(known.values()):
                        return ended
                    if repeats >= REPEATS:
                        return "no new candidates are drawn"
                    repeats = repeats + 1 if numbers in known else 0
                    if numbers not in known:
                        known[numbers] = self._evaluation(measurer, len(known), numbers, "search", first)
                        self._tell(list(known.values()))
                together = proposals.send([known[numbers].worth for numbers in together])
        except StopIteration as last:
            return str(last.value)

    def _new(self, together: Sequence[Numbers], known: Collection[Numbers]) -> Iterator[Candidate]:
        """Those of some candidates that are to be measured, as far as the budget goes."""
        room = self.settings.most - len(known)
        for place, numbers in enumerate(dict.fromkeys(each for each in together if each not in known)):
            number = len(known) + place
            if place < room and (number, "search") not in self.trace.lines:
                yield Candidate(number, "search", self.space.recipe(numbers))

    def _spent(self, found: Collection[Evaluation]) -> str:
        """Why the budget is spent; nothing while it is not."""
        if len(found) >= self.settings.most:
            return f"the budget of {len(found)} evaluations is spent"
        seconds = math.fsum(evaluation.seconds for evaluation in found)
        if self.settings.time is not None and seconds >= self.settings.time:
            return f"the budget of {self.settings.time:g} seconds is spent"
        return ""

    def _tell(self, found: list[Evaluation], *, ended: bool = False) -> None:
        best = max(evaluation.worth for evaluation in found).objective
        total = self.settings.most if math.isfinite(self.settings.most) else len(found) + 1
        done = int(total) if ended else min(len(found), int(total) - 1)
        self.watch("searching", done, int(total), best=best, last=found[-1].worth.objective)

    def _evaluation(
        self,
        measurer: Measurer,
        number: int,
        numbers: Numbers,
        part: Portion,
        first: Evaluation | None = None,
    ) -> Evaluation:
        """A candidate as it is on record, or measured now.

        Args:
            first: the recipe's own numbers on this part, to which floors may be relative; without, these are
                they, and must be measurable, where another candidate that is not counts as the worst.
        """
        values = self.space.values(numbers)
        line = self.trace.lines.get((number, part))
        if line is not None:
            self._check_same(line, values)
            return self._judged(number, part, values, line, first)
        measured = measurer.measured(Candidate(number, part, self.space.recipe(numbers)))
        told = _told(measured, fatal=first is None)
        evaluation = self._judged(number, part, values, told, first)
        self.trace.add(evaluation)
        return evaluation

    def _judged(
        self,
        number: int,
        part: Portion,
        values: Mapping[str, Scalar],
        measured: Mapping[str, Any],
        first: Evaluation | None,
    ) -> Evaluation:
        figures = measured["figures"]
        problem = measured.get("problem", "") or _oddity(figures, figures if first is None else first.figures)
        if first is None:
            self.objective.check(figures)
            if problem:
                raise TaskvecError(f"the score of the recipe's own numbers: {problem}; correct the score")
        start = figures if first is None else first.figures
        worth = WORST if problem else self.objective.worth(figures, start, self.score)
        return Evaluation(number, part, values, figures, worth, measured["seconds"], problem)

    def _check_same(self, line: Mapping[str, Any], values: Mapping[str, Scalar]) -> None:
        """Refuse to go on with other candidates than those on record."""
        held = line["values"]
        if held.keys() != values.keys() or not all(
            _same(held[path], value) for path, value in values.items()
        ):
            raise InputError(
                f"{self.trace.folder}: evaluation {line['number']} has other numbers than are drawn here, by "
                "other versions of numpy or cmaes perhaps; go on where it began, or start anew with --force"
            )


def _told(measured: Measured, *, fatal: bool) -> dict[str, Any]:
    """What was measured as a line tells it. Raises: what is no fault of the candidate, or any error."""
    outcome, seconds = measured
    if not isinstance(outcome, Exception):
        return {"figures": outcome, "seconds": seconds}
    if fatal or isinstance(outcome, _FATAL) or not isinstance(outcome, TaskvecError):
        raise outcome
    return {"figures": {}, "problem": str(outcome), "seconds": seconds}


def _extremes(dimension: Dimension) -> list[tuple[float, str]]:
    """What a number must be able to be for all between to be likely, and the advice if it cannot."""
    if dimension.choices:
        return [(float(place), "vary it less") for place in range(len(dimension.choices))]
    ends = [(dimension.low, "vary it less"), (dimension.high, "vary it less")]
    whole = f"say {dimension.low:g}..{dimension.high:g}:integer"
    return ends if dimension.integer else [*ends, (dimension.number(0.381966), whole)]


def _oddity(figures: Figures, expected: Figures) -> str:
    """Why figures say nothing; nothing if they do."""
    lacking = next((name for name in expected if name not in figures), None)
    if lacking is not None or not figures:
        return f"no figure {lacking!r}" if lacking else "no figures"
    odd = next((name for name, value in figures.items() if not math.isfinite(value)), None)
    return "" if odd is None else f"{odd} is {figures[odd]}"


def _same(held: object, value: Scalar) -> bool:
    if isinstance(held, int | float) and isinstance(value, int | float):
        return math.isclose(held, value, rel_tol=1e-4, abs_tol=1e-9)
    return held == value
