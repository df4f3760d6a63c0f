"""A run at work: what of it can be shown, and the page that can be opened before it is done."""

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGINT, signal
from threading import current_thread, main_thread
from time import monotonic
from typing import Self

from taskvec.reports.page import Page, Unfinished, render_page
from taskvec.runs.events import Begun, Done, Event, Finished, Part
from taskvec.runs.manifest import write_manifest
from taskvec.runs.report import page_of, title_of
from taskvec.studies.study import Results
from taskvec.writing import replace_text

_PAUSE = 5.0
"""Seconds from one writing of the page to the next, at least."""

_REFRESH = 5
"""Seconds after which an open page loads itself again."""

_SHARE = 20
"""Writing takes at most one second in so many."""

_note = logging.getLogger(__name__)


def settled(results: Results, at_work: Collection[Part]) -> Results:
    """Results without the seeds that are at work, so that every mean is of the same seeds; but for the first
    seed, which is shown as far as it is."""
    plan = results.plan
    first, *others = plan.experiment.seeds
    waiting = {part.seed for part in at_work if part.regime}
    seeds = (first, *(seed for seed in others if seed not in waiting))
    experiment = plan.experiment.model_copy(update={"seeds": seeds})
    return replace(results, plan=replace(plan, experiment=experiment))


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of this: an import that it cuts short may fail ever after."""
    if current_thread() is not main_thread():
        yield
        return
    came: list[object] = []
    before = signal(SIGINT, lambda *told: came.append(told))
    try:
        yield
    finally:
        signal(SIGINT, before)
    if came:
        raise KeyboardInterrupt


class LivePage:
    """Writes ``report.html`` and ``run.json`` as parts of a run are done, and says in them that it is not.

    Nothing is drawn for it. Where a run finds all its results on record, the page is left as it is.

    Args:
        folder: of the run.
        command: that goes on with the run.
    """

    def __init__(self, folder: Path, command: str) -> None:
        self._folder, self._command = folder, command
        self._left: dict[Part, int] = {}
        self._own: list[Part] = []
        """Those of the first experiment, whose results the page shows."""
        self._results: Results | None = None
        self._computed = False
        self._due = 0.0

    def __call__(self, event: Event) -> None:
        """Take note, and write the page where there is news and the last one is some seconds old."""
        match event:
            case Begun(parts=parts):
                self._left |= {part: part.total for part in parts}
                self._own = self._own or list(parts)
            case Done(part=part, done=done, seconds=seconds):
                self._left[part] = part.total - done
                self._computed |= seconds is not None
            case Finished(results=results):
                self._results = self._results or results
                if self._computed and monotonic() >= self._due:
                    self._try(_REFRESH)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Write the page as it stays, where the run ends before it is done."""
        if kind is not None and self._computed:
            self._try(None)

    def _try(self, refresh: int | None) -> None:
        """Write the page; a failure is said once, and ends no run."""
        begun = monotonic()
        try:
            with _uninterrupted():
                self._write(refresh)
        except Exception as error:  # a disk that is full, a chart that takes no half of the results
            _note.warning("the page waits for the end of the run (%s: %s)", type(error).__name__, error)
            self._computed, self._due = False, float("inf")
            return
        self._due = begun + max(_PAUSE, _SHARE * (monotonic() - begun))

    def _write(self, refresh: int | None) -> None:
        if self.results is not None:
            write_manifest(self.results, self._folder, finished=False)
            page = page_of(self.results, {})
            replace_text(self._folder / "report.html", render_page(self._marked(page, refresh)))

    @property
    def results(self) -> Results | None:
        """What can be shown."""
        if self._results is None:
            return None
        return settled(self._results, [part for part in self._own if self._left[part]])

    def _marked(self, page: Page, refresh: int | None) -> Page:
        total = sum(part.total for part in self._left)
        state = Unfinished(
            done=total - sum(self._left.values()),
            total=total,
            left=list(dict.fromkeys(title_of(part.study) for part, left in self._left.items() if left)),
            written=datetime.now(UTC).isoformat(" ", "seconds"),
            command=self._command,
            refresh=refresh,
        )
        return replace(page, unfinished=state)
