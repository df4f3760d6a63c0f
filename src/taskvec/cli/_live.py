"""A run as it works: a compact display on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from taskvec.cli._standard import say_line
from taskvec.progress import is_detail
from taskvec.reading import printable
from taskvec.runs.events import Done, Event, Finished, Trained, Working
from taskvec.runs.report import title_of
from taskvec.runs.standing import AtWork, Inner, Standing

_PATIENCE = 10.0
"""Seconds between two plain lines on what is at work."""

_LINES = 16
"""Workers of which a terminal shows what they are at."""


class Display:
    """What a run shows: nothing. ``watch`` is told of the steps of what is at work, the display of events."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is shown any more."""

    def __call__(self, event: Event) -> None:
        """Something began or ended."""

    def watch(self, label: str, done: int, total: int, **facts: float) -> None:
        """As every watcher."""

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Room for what is printed on standard output."""
        yield


class _Telling(Display):
    """A display with a line for the first task that is fine-tuned, and one for every study that is done."""

    def __init__(self) -> None:
        self.standing, self.inner = Standing(), Inner()
        self._told = False
        self._computed: dict[str, int] = {}
        self._seconds: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        self.standing(event)
        match event:
            case Working():
                self.inner.forget()
            case Done(part=part, seconds=float(seconds)):
                self._computed[part.study] = self._computed.get(part.study, 0) + 1
                self._seconds[part.study] = self._seconds.get(part.study, 0.0) + seconds
            case Trained() if not self._told and self._seconds:
                self._told = True
                self.line(_of_training(event))
            case Finished(part=part, last=True) if part.study in self._seconds:
                self.line(self._of_study(event))

    def watch(self, label: str, done: int, total: int, **facts: float) -> None:
        self.inner(label, done, total, **facts)

    def line(self, text: str) -> None:
        """A line that stays."""
        raise NotImplementedError

    def at_work(self) -> str:
        """The part at work, how much of it is done, and what is computed."""
        if self.standing.running:
            return self.spread()
        part = self.standing.part
        if part is None:
            return "opening the model and the data"
        place = f", {part.regime}" if part.regime else ""
        seed = (
            f", seed {part.seed}"
            if len({each.seed for each in self.standing.done if each.regime}) > 1
            else ""
        )
        counted = f"{self.standing.done[part]} of {part.total}"
        return f"{title_of(part.study)}{place}{seed}: {counted}, now {self.standing.label}"

    def spread(self) -> str:
        """How many results workers are at, and how many wait."""
        done, _ = self.standing.counts
        return f"{len(self.standing.running)} running, {done} done, {self.standing.due} waiting"

    def workers(self) -> list[str]:
        """What each worker is at, how long, and how far it is."""
        several = len({part.seed for part in self.standing.done if part.regime}) > 1
        return [f"{name}: {_of_worker(at, several)}" for name, at in self.standing.running.items()]

    def within(self) -> str:
        """The step at work inside a result; empty where nothing is known of it."""
        return _of_step(self.inner)

    def remaining(self) -> str:
        """How long the rest takes, or the part at work, where that is known."""
        standing = self.standing
        if (left := standing.left()) is not None:
            return f"about {duration(left)} left"
        if standing.part and (left := standing.left([standing.part])) is not None:
            return f"about {duration(left)} left of {title_of(standing.part.study)}"
        return ""

    def _of_study(self, event: Finished) -> str:
        name = event.part.study
        count, seconds = self._computed.pop(name), self._seconds.pop(name)
        results = f"{count} result{'s' if count > 1 else ''}"
        return f"{title_of(name)}: {results} in {duration(seconds)}"


class Lines(_Telling):
    """A line a study, and one every ten seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        self._now_and_then()

    def watch(self, label: str, done: int, total: int, **facts: float) -> None:
        super().watch(label, done, total, **facts)
        self._now_and_then()

    def line(self, text: str) -> None:
        self._last = time.monotonic()
        say_line(text)

    def _now_and_then(self) -> None:
        if time.monotonic() - self._last >= _PATIENCE:
            told = (self.at_work(), *self.workers(), self.within(), self.remaining())
            self.line("; ".join(filter(None, told)))


class Compact(_Telling):
    """A few lines at the foot of a terminal, and above them one a study."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._start()
        return self

    def close(self) -> None:
        self._stop()

    @contextmanager
    def aside(self) -> Iterator[None]:
        self._stop()
        yield
        self._start()

    def line(self, text: str) -> None:
        self._console.print(_plain(text), soft_wrap=True)

    def _start(self) -> None:
        self._live = Live(
            get_renderable=self._render, console=self._console, transient=True, redirect_stdout=False
        )
        self._live.start()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _render(self) -> Group:
        standing = self.standing
        done, total = standing.counts
        head = Table.grid(padding=(0, 1))
        head.add_column(width=min(24, self._console.width // 3))
        head.add_column(no_wrap=True, overflow="crop")
        counted = f"{done} of {total}, " if total else ""
        rest = f", {self.remaining()}" if self.remaining() else ""
        told = f"{standing.name} {counted}{duration(standing.elapsed)}{rest}"
        head.add_row(ProgressBar(max(total, 1), done), _plain(told, "bold"))
        workers = self.workers()
        lines = [_plain(text) for text in workers[:_LINES]]
        if len(workers) > _LINES:
            lines.append(_plain(f"and {len(workers) - _LINES} more", "dim"))
        return Group(head, _plain(self.at_work()), *(lines or [_plain(self.within(), "dim")]))


def display(*, quiet: bool) -> Display:
    """On standard error: a compact one on a terminal, lines elsewhere."""
    if quiet:
        return Display()
    console = Console(stderr=True, highlight=False)
    return Compact(console) if sys.stderr.isatty() and not console.is_dumb_terminal else Lines()


def _of_training(event: Trained) -> str:
    from taskvec.studies.measured import in_unit

    before, after = (in_unit(event.metric, [value]) for value in (event.before, event.after))
    return f"{event.task}: {event.metric} {before} zero-shot, {after} fine-tuned ({event.regime}, validation)"


def _of_worker(at: AtWork, several: bool) -> str:
    regime = "" if at.label.startswith(at.part.regime) else f", {at.part.regime}"
    seed = f", seed {at.part.seed}" if several and at.part.regime else ""
    what = f"{title_of(at.part.study)}{regime}{seed}: {at.label}"
    told = (what, duration(at.elapsed), _of_step(at.inner))
    return "  ".join(filter(None, told))


def _of_step(inner: Inner) -> str:
    return f"{inner.label}: {inner.done}/{inner.total} {facts(inner.facts)}" if inner.label else ""


def _plain(text: str, style: str = "") -> Text:
    return Text(printable(text), style=style, no_wrap=True, overflow="crop")


def facts(known: Mapping[str, float]) -> str:
    """Figures of a step, but for those that are too many for a line."""
    return "  ".join(f"{name} {value:.3g}" for name, value in known.items() if not is_detail(name))


def duration(seconds: float) -> str:
    """``0:07``, ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
