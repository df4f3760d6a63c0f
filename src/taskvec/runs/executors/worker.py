"""The side of a worker: makes results, and asks its driver for the rest."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from taskvec.processes import Ask, noting, portable
from taskvec.runs.executors.messages import (
    Claim,
    Failed,
    Find,
    Progress,
    Put,
    Ready,
    Release,
    Setup,
)
from taskvec.runs.experiment import active
from taskvec.runs.jobs import Outcome, Worker
from taskvec.studies.files import Files, scratch_folder
from taskvec.studies.storage import open_files
from taskvec.studies.store import Records
from taskvec.studies.trial import Lab
from taskvec.turns import Turn, taking_turns

_PAUSE = 0.2
"""Seconds between two reports on progress, at least."""


def serve(setup: Setup, ask: Ask) -> None:
    """Do jobs until there are no more, or one fails for good."""
    if torch.get_num_threads() != setup.threads:
        torch.set_num_threads(setup.threads)
    with ExitStack() as stack:
        stack.enter_context(noting(ask))
        try:
            folder = stack.enter_context(scratch_folder()) if setup.storage else setup.folder
            files = open_files(folder, setup.storage)
            stack.enter_context(taking_turns(_turns(ask, files)))
            lab = Lab(setup.plan, _Asked(files, ask), _Reporting(ask))
            vars(lab).update(digests=dict(setup.digests), files=dict(setup.files))
            worker = Worker(lab, active(setup.plan.experiment))
            outcome: Outcome | None = None
            while (job := ask(Ready(outcome))) is not None:
                outcome = worker.do(job)
        except Exception as error:  # also a defect of ours: the driver raises it
            ask(Failed(portable(error)))


class _Asked(Records):
    """The records of the driver."""

    def __init__(self, files: Files, ask: Ask) -> None:
        super().__init__(files)
        self._ask = ask
        self._known: dict[str, dict[str, Any]] = {}

    def find(self, key: str) -> dict[str, Any] | None:
        """The record of this key; none if there is none."""
        if key not in self._known and (record := self._ask(Find(key))) is not None:
            self._known[key] = record
        return self._known.get(key)

    def put(self, record: dict[str, Any]) -> None:
        """Have the driver put a new result on record, once others have its files."""
        self.files.publish()
        self._ask(Put(record))
        self._known[record["key"]] = record


def _turns(ask: Ask, files: Files) -> Turn:
    @contextmanager
    def turn(name: str, *paths: Path) -> Iterator[None]:
        ask(Claim(name))
        try:
            for path in paths:
                files.fetch(path)
            yield
            if paths:
                files.publish()
        finally:
            ask(Release(name))

    return turn


class _Reporting:
    """A watcher that tells the driver, and not too often."""

    def __init__(self, ask: Ask) -> None:
        self._ask, self._due = ask, 0.0

    def __call__(self, label: str, done: int, total: int, **facts: float) -> None:
        """As every watcher."""
        if done == total or monotonic() >= self._due:
            self._due = monotonic() + _PAUSE
            self._ask(Progress(label, done, total, facts))
