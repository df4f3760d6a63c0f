"""Suites: named sets of tasks, read from YAML."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt, SerializeAsAny, model_validator

from taskvec.arguments import checked
from taskvec.code import check_allowed, names_code
from taskvec.config import Config, read_yaml
from taskvec.errors import InputError, UnknownName
from taskvec.reading import local_path
from taskvec.registry import nearest
from taskvec.tasks.task import Task

_CODE = ("metric", "score")
"""Keys of a task that may name a function of the user's."""

_SHIPPED = Path(__file__).parent / "suites"


class Suite(Config):
    """A named, versioned set of tasks."""

    name: str = Field(alias="suite")
    version: PositiveInt = 1
    description: str = ""
    model: str | None = None
    """The model its heads and prompts were made for."""
    control: str | None = None
    """The task that negation must leave alone."""
    tasks: dict[str, SerializeAsAny[Task]] = Field(min_length=1)

    @model_validator(mode="after")
    def _control_is_a_task(self) -> "Suite":
        if self.control is not None and self.control not in self.tasks:
            raise ValueError(f"control: no task called {self.control!r}; {nearest(self.control, self.tasks)}")
        return self

    def task(self, name: str) -> Task:
        """One task.

        Raises: UnknownName, with the nearest name.
        """
        if name not in self.tasks:
            raise UnknownName(f"no task called {name!r} in suite {self.name!r}; {nearest(name, self.tasks)}")
        return self.tasks[name]


def suite_names() -> list[str]:
    """The suites that come with the package."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def suite_with(task: str) -> "Suite":
    """The shipped suite that has this task.

    Raises: UnknownName with the nearest task of all suites.
    """
    suites = [load_suite(name) for name in suite_names()]
    for suite in suites:
        if task in suite.tasks:
            return suite
    known = [name for suite in suites for name in suite.tasks]
    raise UnknownName(f"no task called {task!r} in any shipped suite; {nearest(task, known)}")


@checked
def load_suite(ref: str | Path) -> Suite:
    """The suite of this name, or in this YAML file.

    Raises: UnknownName with the nearest name; InputError naming the file and the key at fault.
    """
    path = local_path(ref)
    if path.suffix in (".yaml", ".yml"):
        return _read(Path(os.path.realpath(path)), str(ref))
    if str(ref) not in suite_names():
        raise UnknownName(
            f"no suite called {str(ref)!r}; {nearest(str(ref), suite_names())}, or the path of a YAML file"
        )
    return _read(_SHIPPED / f"{ref}.yaml", str(ref))


def _read(path: Path, where: str) -> Suite:
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{where}: {type(values).__name__}, expected keys such as 'suite' and 'tasks'")
    return Suite.parse(where, _completed(values, path.parent, where))


def _completed(values: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """A suite file with its ``defaults`` filled into every task, and each task told its name and folder.

    What is not a mapping is left for validation to name.
    """
    rest = {key: value for key, value in values.items() if key != "defaults"}
    defaults, tasks = values.get("defaults") or {}, values.get("tasks")
    if not isinstance(defaults, dict):
        raise InputError(f"{where}: defaults: {type(defaults).__name__}, expected keys such as 'data'")
    if not isinstance(tasks, dict):
        return rest
    named = {name: _task(str(name), task, defaults, folder) for name, task in tasks.items()}
    for name, task in named.items():
        _check_code(task, f"{where}: tasks.{name}")
    return {**rest, "tasks": named}


def _check_code(task: object, where: str) -> None:
    """Refuse code that a task names, unless it is allowed; nothing is imported. Raises: InputError."""
    values = task if isinstance(task, dict) else {}
    for key in _CODE:
        value = values.get(key)
        if isinstance(value, str) and names_code(value):
            check_allowed(value, f"{where}.{key}")


def _task(name: str, task: object, defaults: Mapping[str, Any], folder: Path) -> object:
    if not isinstance(task, dict | None):
        return task
    merged = {**defaults, **(task or {}), "name": name}
    sources = [part.get("data") or {} for part in (defaults, task or {})]
    if all(isinstance(source, dict) for source in sources):
        data = {key: value for source in sources for key, value in source.items()}
        merged["data"] = {**_named(data, name), "folder": folder}
    return merged


def _named(value: Any, task: str) -> Any:
    """``{task}`` in any text of the data options stands for the task's name."""
    if isinstance(value, str):
        return value.replace("{task}", task)
    if isinstance(value, dict):
        return {key: _named(inner, task) for key, inner in value.items()}
    return value
