"""``taskvec rules``."""

import sys
from typing import TYPE_CHECKING

from taskvec.cli._common import Json, print_json
from taskvec.cli._listing import print_entries

if TYPE_CHECKING:
    from taskvec.rules import Rule


def rules(name: str | None = None, /, *, json: Json = False) -> None:
    """List the rules that turn several task vectors into one, or explain one.

    A rule of stage `each` changes every vector by itself and one of stage `after` what was merged; alone
    they go with `sum`, and they chain with the others: `dare+ties`, `tsv+lines`, `dare+ties+lines`.

    Args:
        name: A rule, or a chain of rules.
    """
    from taskvec.rules import RULES

    if name is None:
        print_entries(RULES.values(), json, _record, ["rule", "stage", "scope", "consumes", "what"], _row)
        return
    rule = RULES[name]
    if json:
        print_json({**_record(rule), "description": rule.description})
        return
    defaults = "".join(f"  {key} = {value}\n" for key, value in rule.parameters().items()) or "  none"
    sys.stdout.write(f"{rule.name}: {rule.description}\n\nparameters and defaults:\n{defaults}\n")
    sys.stdout.write(f"usual scale for several tasks, without a search: {rule.coefficient:g}\n")


def _row(rule: "Rule") -> list[str]:
    return [rule.name, rule.role, rule.scope, rule.consumes, rule.summary]


def _record(rule: "Rule") -> dict[str, object]:
    keys = ("rule", "stage", "scope", "consumes", "about")
    return {
        **dict(zip(keys, _row(rule), strict=True)),
        "coefficient": rule.coefficient,
        "parameters": rule.parameters(),
    }
