"""What an executor is, and the one that works in this process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from taskvec.runs.events import Told
from taskvec.runs.jobs import Job, Outcome, Worker
from taskvec.studies.study import Study
from taskvec.studies.trial import Lab


@dataclass(frozen=True)
class Work:
    """An experiment to be done.

    Args:
        jobs: all of them, in order of work; some may be on record.
        told: of workers, and what they are at.
    """

    lab: Lab
    studies: Sequence[Study[Any]]
    jobs: Sequence[Job]
    told: Told


class Executor(Protocol):
    """Where jobs are done."""

    def open(self, work: Work) -> AbstractContextManager[Callable[[Job], Outcome]]:
        """What waits for the outcome of a job; it is asked for each of them once, in order of work.

        Leaving the context ends all that is at work. Waiting raises what keeps the run from going on.
        """
        ...


class Here:
    """This process does a job when its outcome is asked for."""

    @contextmanager
    def open(self, work: Work) -> Iterator[Callable[[Job], Outcome]]:
        """As every executor."""
        yield Worker(work.lab, work.studies).do


HERE = Here()
