"""``taskvec suites``: the suites there are, or one in full."""

from taskvec.cli._common import AllowCode, Json
from taskvec.cli._listing import print_entries, print_entry
from taskvec.code import allowing_code
from taskvec.tasks.suite import Suite, load_suite, suite_names


def suites(name: str | None = None, /, *, allow_code: AllowCode = False, json: Json = False) -> None:
    """List the suites there are, or show one.

    Args:
        name: A suite, or the path of a YAML file of your own.
    """
    if name is not None:
        with allowing_code(allow_code):
            print_entry(_record(load_suite(name)), json)
    else:
        shipped = map(load_suite, suite_names())
        print_entries(shipped, json, _record, ["suite", "version", "model", "tasks", "what"], _row)


def _record(suite: Suite) -> dict[str, object]:
    tasks = {task.name: task.description for task in suite.tasks.values()}
    return suite.model_dump(mode="json", by_alias=True, exclude={"tasks"}) | {"tasks": tasks}


def _row(suite: Suite) -> list[object]:
    return [suite.name, suite.version, suite.model or "", len(suite.tasks), suite.description]
