"""What workers and their driver say to each other. A worker speaks, and waits for the answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskvec.processes import Note
from taskvec.runs.jobs import Outcome
from taskvec.studies.store import versions
from taskvec.studies.trial import Plan


@dataclass(frozen=True)
class Setup:
    """All that a worker needs to make results of an experiment; it can be pickled.

    Args:
        folder: of the run, for files.
        storage: where files lie that all workers see, if not in that folder.
        digests, files: of given vectors, and of files of statistics by path, as the driver found them.
        threads: of torch. Results depend on their number, by rounding, so that it is the driver's.
        versions: of the driver.
    """

    plan: Plan
    folder: Path
    storage: str | None
    digests: Mapping[str, str]
    files: Mapping[str, str]
    threads: int
    versions: Mapping[str, str] = field(default_factory=versions)


@dataclass(frozen=True)
class Ready:
    """The last job is done; the answer is the next, or none: nothing is left to do."""

    outcome: Outcome | None


@dataclass(frozen=True)
class Failed:
    """The run cannot go on; there is no answer."""

    error: Exception


@dataclass(frozen=True)
class Find:
    """The answer is the record of a key, if there is one."""

    key: str


@dataclass(frozen=True)
class Put:
    """A new record."""

    record: dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """The answer comes when no other worker holds the name."""

    name: str


@dataclass(frozen=True)
class Release:
    """The name is held no more."""

    name: str


@dataclass(frozen=True)
class Progress:
    """How far the job is, as watchers are told."""

    label: str
    done: int
    total: int
    facts: Mapping[str, float]


Message = Ready | Failed | Find | Put | Claim | Release | Progress | Note
