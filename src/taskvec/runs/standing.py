"""Where a run stands: what is done, what is at work, and how long the rest takes, as far as that is known."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from time import monotonic

from taskvec.runs.events import Begun, Done, Event, Left, Part, Step, Taken, Working

_STEADY = 2.0
"""Results of one kind whose seconds differ by no more than this factor tell how long the next takes."""


class Standing:
    """Follows a run and counts."""

    def __init__(self) -> None:
        self.begun = monotonic()
        self.name = ""
        self.done: dict[Part, int] = {}
        """Of each part's results, in order of work."""
        self.part: Part | None = None
        self.label = ""
        self.computed = 0
        """Results that were not on record."""
        self.workers: dict[str, AtWork | None] = {}
        """What each is at; none where this process works by itself, or a worker waits."""
        self.due = 0
        """Results that no worker has begun with."""
        self._since = self.begun
        self._seconds: dict[tuple[str, str, str], list[float]] = {}

    def __call__(self, event: Event) -> None:
        """Take note."""
        match event:
            case Begun(name=name, parts=parts):
                self.name, self.done = name, dict.fromkeys(parts, 0)
            case Working(part=part, label=label):
                self.part, self.label, self._since = part, label, monotonic()
            case Taken(worker=worker, part=part, label=label, due=due):
                self.workers[worker], self.due = AtWork(part, label) if part else None, due
            case Step(worker=worker, label=label, done=done, total=total, facts=facts):
                if at := self.workers.get(worker):
                    at.inner(label, done, total, **facts)
            case Left(worker=worker):
                self.workers.pop(worker, None)
            case Done(part=part, label=label, done=done, seconds=seconds):
                self.done[part] = done
                if seconds is not None:
                    self.computed += 1
                    self._seconds.setdefault((part.study, part.regime, label), []).append(seconds)

    @property
    def counts(self) -> tuple[int, int]:
        """Results that are there, and all."""
        total = sum(part.total for part in self.done)
        return total - self.due - len(self.running) if self.running else sum(self.done.values()), total

    @property
    def running(self) -> dict[str, "AtWork"]:
        """The workers that are at something."""
        return {name: at for name, at in list(self.workers.items()) if at}  # a display looks meanwhile

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return monotonic() - self.begun

    def left(self, parts: Sequence[Part] | None = None) -> float | None:
        """Seconds that the rest takes, of some parts or all; none where nothing like it was done yet."""
        rest = [
            self._expected(part, label)
            for part, done in self.done.items()
            if parts is None or part in parts
            for label in part.cells[done:]
        ]
        known = [seconds for seconds in rest if seconds is not None]
        if not known or len(known) < len(rest):
            return None
        return max(0.0, sum(known) / max(1, len(self.running)) - (monotonic() - self._since))

    def _expected(self, part: Part, label: str) -> float | None:
        """Seconds of the same result with another seed, or of others of its part, where they are alike."""
        if same := self._seconds.get((part.study, part.regime, label)):
            return fmean(same)
        alike = [
            each
            for (study, regime, _), seconds in self._seconds.items()
            if (study, regime) == (part.study, part.regime)
            for each in seconds
        ]
        return fmean(alike) if len(alike) > 2 and max(alike) <= _STEADY * min(alike) else None


class Inner:
    """Follows what is at work inside a result: a training, a measurement, a search."""

    def __init__(self) -> None:
        self.label, self.done, self.total = "", 0, 0
        self.facts: Mapping[str, float] = {}

    def __call__(self, label: str, done: int, total: int, **facts: float) -> None:
        """Take note."""
        self.label, self.done, self.total = label, done, total
        self.facts = facts if done < total else {}

    def forget(self) -> None:
        """Something else begins."""
        self.label = ""


class AtWork:
    """A worker at a result."""

    def __init__(self, part: Part, label: str) -> None:
        self.part, self.label, self.inner = part, label, Inner()
        self._since = monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since it began with the result."""
        return monotonic() - self._since
