"""``taskvec rules``."""

import sys

from taskvec.cli._common import Json, print_json
from taskvec.cli._listing import print_lines


def rules(name: str | None = None, /, *, json: Json = False) -> None:
    """List the rules that turn several task vectors into one, or explain one.

    A rule of stage `each` changes every vector by itself and one of stage `after` what was merged; alone
    they go with `sum`, and they chain with the others: `dare+ties`, `tsv+lines`, `dare+ties+lines`.

    Args:
        name: A rule, or a chain of rules.
    """
    from taskvec.rules import RULES, Rule

    def shown(rule: Rule) -> dict[str, object]:
        return {
            "rule": rule.name,
            "stage": rule.role,
            "scope": rule.scope,
            "consumes": rule.consumes,
            "about": rule.summary,
            "parameters": rule.parameters(),
        }

    if name is not None and json:
        print_json({**shown(RULES[name]), "description": RULES[name].description})
    elif name is not None:
        rule = RULES[name]
        given = "".join(f"  {key} = {value}\n" for key, value in rule.parameters().items())
        sys.stdout.write(
            f"{rule.name}: {rule.description}\n\nparameters and defaults:\n{given or '  none'}\n"
        )
    elif json:
        print_json([shown(rule) for rule in RULES.values()])
    else:
        rows = [[rule.name, rule.role, rule.scope, rule.consumes, rule.summary] for rule in RULES.values()]
        print_lines(["rule", "stage", "scope", "consumes", "what"], rows)
