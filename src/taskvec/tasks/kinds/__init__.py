"""Kinds of task, a file each: fields in a suite, batches, objective, metrics."""

from typing import Any

from taskvec.registry import Registry

KINDS: Registry[Any] = Registry(
    "kind of task",
    {
        "classification": "taskvec.tasks.kinds.classification:Classification",
        "generation": "taskvec.tasks.kinds.generation:Generation",
        "language": "taskvec.tasks.kinds.language:Language",
        "regression": "taskvec.tasks.kinds.regression:Regression",
    },
)
"""Subclasses of ``Task`` by the name that stands under ``kind``."""
