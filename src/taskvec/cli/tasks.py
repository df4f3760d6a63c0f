"""``taskvec tasks``: the tasks there are, or one in full."""

from collections.abc import Mapping
from typing import Annotated

from cyclopts import Parameter

from taskvec.cli._common import AllowCode, Json
from taskvec.cli._listing import print_entries, print_entry
from taskvec.code import allowing_code
from taskvec.errors import InputError, UnknownName
from taskvec.registry import nearest
from taskvec.tasks.suite import load_suite, suite_names
from taskvec.tasks.task import Task


def tasks(
    name: str | None = None,
    /,
    *,
    suite: Annotated[str | None, Parameter(name=["--suite", "-s"])] = None,
    allow_code: AllowCode = False,
    json: Json = False,
) -> None:
    """List the tasks there are, or show one.

    Args:
        name: A task; as suite/task where several suites have one of this name.
        suite: Only the tasks of this suite, or of this YAML file.
    """
    suites = suite_names() if suite is None else [suite]
    with allowing_code(allow_code):
        loaded = [(each, load_suite(each)) for each in suites]
    by_place = {f"{each}/{task.name}": task for each, held in loaded for task in held.tasks.values()}
    if name is not None:
        print_entry(_record(_choose(by_place, name)), json)
    else:
        columns = ["task", "kind", "modality", "classes", "metric", "what"]
        print_entries(by_place.items(), json, _record_with_suite, columns, _row)


def _choose(tasks: Mapping[str, Task], name: str) -> Task:
    if name in tasks:
        return tasks[name]
    places = [place for place, task in tasks.items() if task.name == name]
    if not places:
        known = [*tasks, *(task.name for task in tasks.values())]
        raise UnknownName(f"no task called {name!r}; {nearest(name, known)}")
    if len(places) > 1:
        raise InputError(f"task {name!r} is in several suites; say which: {', '.join(places)}")
    return tasks[places[0]]


def _record(task: Task) -> dict[str, object]:
    fields = task.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return fields | {"data": {"source": task.data.source, **fields["data"]}}


def _record_with_suite(entry: tuple[str, Task]) -> dict[str, object]:
    place, task = entry
    return {"suite": place.rsplit("/", 1)[0], **_record(task)}


def _row(entry: tuple[str, Task]) -> list[object]:
    place, task = entry
    return [place, task.kind, task.modality, _classes(task), task.metric, task.description]


def _classes(task: Task) -> object:
    """How many, as far as it is known without opening the data, which may have to be fetched first."""
    if "names" not in type(task).model_fields:
        return ""
    return "from-data" if task.names is None else len(task.keep or task.names)
