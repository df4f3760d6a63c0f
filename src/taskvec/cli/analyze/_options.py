"""Options that analyses share, and the evaluator they come to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from taskvec.cli._common import Count

if TYPE_CHECKING:
    from taskvec.evaluation.evaluator import Evaluator

Vectors = Annotated[tuple[str, ...], Parameter(negative=(), allow_leading_hyphen=False)]
Model = Annotated[
    str, Parameter(help="The pre-trained model: a known name (`taskvec models`), a folder, or a hub id.")
]
ModelOption = Annotated[Model, Parameter(name=["--model", "-m"])]
Suite = Annotated[
    str, Parameter(name=["--suite", "-s"], help="A shipped suite (`taskvec suites`) or a suite file.")
]
Split = Annotated[Literal["train", "validation", "test"], Parameter(help="The examples looked at.")]
Samples = Annotated[Count, Parameter(help="Examples of each task, the first ones.")]
BatchSize = Annotated[Count, Parameter(help="Examples a forward pass.")]
Precision = Annotated[
    Literal["float32", "bf16"], Parameter(help="`bf16` computes matrix products in bfloat16.")
]


def evaluator_of(model: str, suite: str, tasks: Sequence[str], **options: Any) -> "tuple[Evaluator, str]":
    """The model with the tasks of a suite, and the name of the suite.

    Args:
        **options: of the evaluator.

    Raises: UnknownName for a task that the suite lacks; InputError.
    """
    from taskvec.evaluation.evaluator import Evaluator
    from taskvec.models.loading import load_backbone
    from taskvec.tasks.suite import load_suite

    chosen = load_suite(suite)
    found = [chosen.task(name) for name in tasks]
    return Evaluator(load_backbone(model), found, **options), chosen.name
