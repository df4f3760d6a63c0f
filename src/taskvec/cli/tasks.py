"""``taskvec tasks``: the tasks there are, or one in full."""

from typing import Annotated

from cyclopts import Parameter

from taskvec.cli._common import Json, print_json
from taskvec.cli._listing import print_lines, show
from taskvec.errors import InputError, UnknownName
from taskvec.registry import nearest
from taskvec.tasks.suite import load_suite, suite_names
from taskvec.tasks.task import Task


def tasks(
    name: str | None = None,
    /,
    *,
    suite: Annotated[str | None, Parameter(name=["--suite", "-s"])] = None,
    json: Json = False,
) -> None:
    """List the tasks there are, or show one.

    Args:
        name: A task; as suite/task where several suites have one of this name.
        suite: Only the tasks of this suite, or of this YAML file.
    """
    found = {
        f"{each}/{task.name}": task for each in _suites(suite) for task in load_suite(each).tasks.values()
    }
    if name is not None:
        show(_shown(_chosen(found, name)), json)
    elif json:
        print_json([{"suite": place.rsplit("/", 1)[0], **_shown(task)} for place, task in found.items()])
    else:
        rows = [
            [place, task.modality, _count(task), task.metric, task.description]
            for place, task in found.items()
        ]
        print_lines(["task", "modality", "classes", "metric", "what"], rows)


def _suites(suite: str | None) -> list[str]:
    return suite_names() if suite is None else [suite]


def _chosen(tasks: dict[str, Task], name: str) -> Task:
    if name in tasks:
        return tasks[name]
    places = [place for place, task in tasks.items() if task.name == name]
    if not places:
        known = [*tasks, *(task.name for task in tasks.values())]
        raise UnknownName(f"no task called {name!r}; {nearest(name, known)}")
    if len(places) > 1:
        raise InputError(f"task {name!r} is in several suites; say which: {', '.join(places)}")
    return tasks[places[0]]


def _shown(task: Task) -> dict[str, object]:
    fields = task.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return fields | {"data": {"source": task.data.source, **fields["data"]}}


def _count(task: Task) -> str:
    """How many classes, without opening the data."""
    return "from-data" if task.names is None else str(len(task.keep or task.names))
