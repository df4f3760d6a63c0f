"""Task-vector files as analyses take them: by regime, then by task."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskvec.cli._common import distinct
from taskvec.cli._standard import say_line
from taskvec.errors import InputError

if TYPE_CHECKING:
    from taskvec.vectors import TaskVector

    Regimes = dict[str, dict[str, TaskVector]]


def by_regime(paths: Sequence[str]) -> "Regimes":
    """``{regime: {task: vector}}`` of files that state both; others are left out, which is said in one line.

    Raises: InputError for two vectors of the same task and regime, or when nothing is left.
    """
    from taskvec.vectors import TaskVector

    found: Regimes = {}
    origin: dict[tuple[str, str], str] = {}
    left_out = []
    for path in paths:
        vector = TaskVector.load(path)
        task, regime = vector.info.task, vector.info.regime
        if task is None or regime is None or "+" in task or " (" in regime:
            left_out.append(path)
            continue
        if (regime, task) in origin:
            raise InputError(
                f"{origin[regime, task]} and {path}: both hold a {regime!r} vector of {task!r}; "
                "give one of them"
            )
        origin[regime, task] = path
        found.setdefault(regime, {})[task] = vector
    if left_out:
        say_line(f"left out, not a plain vector of one task: {', '.join(left_out)}")
    if not found:
        raise InputError("vectors: none is of a single task; train some with: taskvec train")
    return found


def tasks_of(regimes: "Regimes", only: Sequence[str] = ()) -> list[str]:
    """The tasks that every regime has a vector of, in the order given; ``only`` some of them if it names any.

    Raises: InputError if a regime lacks a task that another one has, or none has a task of ``only``.
    """
    known = list(dict.fromkeys(task for vectors in regimes.values() for task in vectors))
    for name in only:
        if name not in known:
            raise InputError(f"no vector of {name!r} is given, only of {', '.join(known)}")
    tasks = [task for task in known if not only or task in only]
    for regime, vectors in regimes.items():
        for task in tasks:
            if task not in vectors:
                raise InputError(
                    f"regime {regime!r} has no vector of {task!r}, and others have; give one, or leave the "
                    "regime or the task out"
                )
    return tasks


def files_of(regimes: "Regimes", tasks: Sequence[str]) -> dict[str, dict[str, str]]:
    """The file behind each vector, for the record."""
    return {regime: {task: vectors[task].ref for task in tasks} for regime, vectors in regimes.items()}


def labelled(paths: Sequence[str]) -> "dict[str, TaskVector]":
    """Vectors of any kind under the shortest labels that tell them apart: task, task and regime, or path.

    Raises: InputError for a path given twice.
    """
    from taskvec.vectors import TaskVector

    loaded = {path: TaskVector.load(path) for path in distinct(paths, "vectors")}
    infos = [vector.info for vector in loaded.values()]
    for labels in (
        [info.task for info in infos],
        [f"{info.task} ({info.regime})" for info in infos if info.task],
        list(loaded),
    ):
        known = [label for label in labels if label]
        if len(set(known)) == len(loaded):
            return dict(zip(known, loaded.values(), strict=True))
    raise AssertionError("paths are distinct")
