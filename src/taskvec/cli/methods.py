"""``taskvec methods``."""

from typing import TYPE_CHECKING

from taskvec.cli._common import Json
from taskvec.cli._listing import print_entries, print_entry

if TYPE_CHECKING:
    from taskvec.merging.method import Method


def methods(name: str | None = None, /, *, json: Json = False) -> None:
    """List what `methods: {rules: [...]}` of an experiment file may name, or show one with its settings.

    Rules and chains of them are methods, ways to learn coefficients, and what needs to know the task. The
    column `consumes` says what making one needs beside the vectors.

    Args:
        name: A method, such as `adamerging`, or a chain of rules.
    """
    from taskvec.merging import every_method, method_of

    if name is None:
        print_entries(every_method(), json, _record, ["method", "consumes", "α", "what"], _row)
    else:
        method = method_of(name)
        print_entry({**_record(method), "settings": dict(method.settings())}, json)


def _row(method: "Method") -> list[object]:
    alpha = "" if method.coefficient is None else f"{method.coefficient:g}"
    return [method.name, ", ".join(_consumed(method)) or "nothing", alpha, method.about]


def _record(method: "Method") -> dict[str, object]:
    return {
        "method": method.name,
        "about": method.about,
        "consumes": _consumed(method),
        "coefficient": method.coefficient,
    }


def _consumed(method: "Method") -> list[str]:
    """Of an experiment that does not say otherwise."""
    return list(map(str, method.consumes("validation")))
