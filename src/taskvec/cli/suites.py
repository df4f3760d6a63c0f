"""``taskvec suites``: the suites there are, or one in full."""

from taskvec.cli._common import Json, print_json
from taskvec.cli._listing import print_lines, show
from taskvec.tasks.suite import Suite, load_suite, suite_names


def suites(name: str | None = None, /, *, json: Json = False) -> None:
    """List the suites there are, or show one.

    Args:
        name: A suite, or the path of a YAML file of your own.
    """
    if name is not None:
        show(_shown(load_suite(name)), json)
        return
    found = [load_suite(each) for each in suite_names()]
    if json:
        print_json([_shown(suite) for suite in found])
    else:
        rows = [
            [suite.name, suite.version, suite.model or "", len(suite.tasks), suite.description]
            for suite in found
        ]
        print_lines(["suite", "version", "model", "tasks", "what"], rows)


def _shown(suite: Suite) -> dict[str, object]:
    tasks = {task.name: task.description for task in suite.tasks.values()}
    return suite.model_dump(mode="json", by_alias=True, exclude={"tasks"}) | {"tasks": tasks}
