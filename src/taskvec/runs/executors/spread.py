"""The side of the driver: hands jobs to workers, keeps the records, and says who may make what."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch

from taskvec.errors import TaskvecError, and_more
from taskvec.processes import AGAIN, Gone, Note
from taskvec.runs.events import TRAINING, Left, Step, Taken
from taskvec.runs.executors.claims import Claims
from taskvec.runs.executors.executor import Work
from taskvec.runs.executors.known import on_record
from taskvec.runs.executors.messages import (
    Claim,
    Failed,
    Find,
    Message,
    Progress,
    Put,
    Ready,
    Release,
    Setup,
)
from taskvec.runs.jobs import Job, Outcome, vectors_of

_note = logging.getLogger(__name__)


class Link(Protocol):
    """A worker, as its driver sees it."""

    @property
    def name(self) -> str:
        """For displays and messages."""
        ...

    def answer(self, value: object) -> None:
        """Answer what it said last; nothing happens where it is gone."""
        ...

    def close(self) -> None:
        """End it now, whatever it is at."""
        ...


class Pool(Protocol):
    """Where workers live."""

    def start(self, number: int, setup: Setup) -> Link:
        """A new worker. Raises: TaskvecError."""
        ...

    def wait(self, links: Sequence[Link]) -> Iterable[tuple[Link, Message | Gone]]:
        """What some workers say, once at least one of them says something or is gone."""
        ...


class Spread:
    """Jobs are done by workers in a pool, several at a time.

    Results are those of one process: a cell that others need is computed once, by whoever needs it first.

    Args:
        pool: where workers live.
        count: of workers, at most; no more are started than there are jobs.
    """

    def __init__(self, pool: Pool, count: int) -> None:
        self._pool, self._count = pool, count

    @contextmanager
    def open(self, work: Work) -> Iterator[Callable[[Job], Outcome]]:
        """As every executor."""
        desk = _Desk(work, self._pool)
        try:
            desk.begin(self._count)
            yield desk.outcome
            desk.sum_up()
        finally:
            desk.close()


class _Desk:
    """Jobs that are due, workers, and what they wait for."""

    def __init__(self, work: Work, pool: Pool) -> None:
        self._work, self._pool, self._store = work, pool, work.lab.store
        self._on_record = on_record(work)
        self._outcomes: dict[Job, Outcome] = {}
        self._due: list[Job] = []
        self._at: dict[Link, Job | None] = {}
        """Workers, and what each is at; none while it starts or waits for a job."""
        self._idle: list[Link] = []
        self._claims: Claims[Link] = Claims()
        self._again: Counter[Job] = Counter()
        self._started = self._stillborn = 0
        self._noted: set[str] = set()

    def begin(self, count: int) -> None:
        """Find what is on record, and start as many workers as there is work for, at most so many."""
        for job in dict.fromkeys(self._work.jobs):
            if outcome := self._on_record(job):
                self._outcomes[job] = outcome
            else:
                self._due.append(job)
        lab = self._work.lab
        vars(lab).pop("evaluator", None)  # it served to check the model; the workers have their own
        folder, storage = lab.store.folder.absolute(), lab.store.files.storage
        self._setup = Setup(lab.plan, folder, storage, lab.digests, lab.files, torch.get_num_threads())
        for _ in range(min(count, len(self._due))):
            self._start()

    def outcome(self, job: Job) -> Outcome:
        """Wait for a job to be done."""
        while job not in self._outcomes:
            if job not in self._due and job not in self._at.values():
                self._settle(job)
                continue
            for link, message in self._pool.wait(list(self._at)):
                self._handle(link, message)
        return self._outcomes.pop(job)

    def _settle(self, job: Job) -> None:
        """A job that was asked for before, as a part may come twice: it is on record, or is due again."""
        if outcome := self._on_record(job):
            self._outcomes[job] = outcome
        else:
            self._due.append(job)
            if not self._at:
                self._start()
            self._assign()

    def sum_up(self) -> None:
        """Say what was done again."""
        if jobs := list(map(str, self._again)):
            self._say(f"{jobs[0]}{and_more(jobs)}: computed again, as the worker that was at it ended")

    def close(self) -> None:
        """End all workers."""
        for link in self._at:
            link.close()
        self._at.clear()

    def _start(self) -> None:
        self._started += 1
        self._at[self._pool.start(self._started, self._setup)] = None

    def _handle(self, link: Link, message: Message | Gone) -> None:
        match message:
            case Gone(why=why):
                self._lose(link, why)
            case Ready(outcome=outcome):
                self._receive(link, outcome)
            case Failed(error=error):
                raise error
            case Find(key=key):
                link.answer(self._store.find(key))
            case Put(record=record):
                self._store.put(record)
                link.answer(None)
            case Claim(name=name):
                if self._claims.claim(name, link):
                    link.answer(None)
            case Release(name=name):
                following = self._claims.release(name, link)
                link.answer(None)
                if following is not None:
                    following.answer(None)
            case Progress(label=label, done=done, total=total, facts=facts):
                link.answer(None)
                self._work.told(Step(link.name, label, done, total, facts))
            case Note(logger=logger, level=level, text=text):
                link.answer(None)
                self._log(logger, level, text)

    def _receive(self, link: Link, outcome: Outcome | None) -> None:
        """A worker is ready for the next job."""
        if (job := self._at[link]) is not None and outcome is not None:
            self._outcomes[job] = outcome
            self._at[link] = None
        self._idle.append(link)
        self._assign()

    def _lose(self, link: Link, why: str) -> None:
        """A worker is gone: what it held is free, and what it was at is done again."""
        job = self._at.pop(link)
        link.close()
        if link in self._idle:
            self._idle.remove(link)
        for following in self._claims.forget(link):
            following.answer(None)
        self._work.told(Left(link.name))
        if job is None:
            self._stillborn += 1
            if self._stillborn > AGAIN:
                raise TaskvecError(f"{link.name} {why} before it began with anything; see what it said above")
        else:
            self._again[job] += 1
            if self._again[job] > AGAIN:
                raise TaskvecError(
                    f"{job}: its worker {why}, as {AGAIN} others did before; with fewer workers there is "
                    "more memory for each, and what is done already stays"
                )
            self._say(f"{job}: {link.name} {why}; computed again, {self._again[job]} of {AGAIN} times")
            self._due.insert(0, job)
        if len(self._at) < len(self._due) + sum(at is not None for at in self._at.values()):
            self._start()
        self._assign()

    def _assign(self) -> None:
        """Hand out jobs, as long as there are workers for them."""
        while self._idle and (job := self._next()):
            link = self._idle.pop(0)
            self._at[link] = job
            link.answer(job)
            self._work.told(Taken(link.name, job.part, job.label, len(self._due)))
        for link in self._idle:
            self._work.told(Taken(link.name, None, "", len(self._due)))

    def _next(self) -> Job | None:
        """The first job that can be done now: it is taken off the list."""
        experiment = self._work.lab.plan.experiment
        running = [job for job in self._at.values() if job is not None]
        at_work = {(vectors_of(experiment, job.part), job.label) for job in running if _trains(job)}
        lacking = {vectors_of(experiment, job.part) for job in (*self._due, *running) if _trains(job)}
        for job in list(self._due):
            vectors = vectors_of(experiment, job.part)
            if (vectors, job.label) in at_work if _trains(job) else vectors in lacking:
                continue
            self._due.remove(job)
            if outcome := self._on_record(job):  # another regime has the same vectors
                self._outcomes[job] = outcome
                return self._next()
            return job
        return None

    def _say(self, text: str) -> None:
        _note.warning(text)

    def _log(self, logger: str, level: int, text: str) -> None:
        """What workers note alike is noted once."""
        if text not in self._noted:
            self._noted.add(text)
            logging.getLogger(logger).log(level, text)


def _trains(job: Job) -> bool:
    return job.part.study == TRAINING
