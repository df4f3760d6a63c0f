"""Several task vectors -> one. A rule a file: a pure function on stacked tensors; here is the list."""

from taskvec.registry import Registry
from taskvec.rules.rule import Rule

RULES = Registry[Rule](
    "rule",
    {
        "sum": "taskvec.rules.sum:SUM",
        "mean": "taskvec.rules.mean:MEAN",
        "ties": "taskvec.rules.ties:TIES",
    },
)

__all__ = ["RULES", "Rule"]
