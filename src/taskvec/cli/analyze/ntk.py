"""``taskvec analyze ntk``."""

from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from taskvec.cli._common import Count, Force, Json, Quiet, watching
from taskvec.cli.analyze._options import Model, Suite, evaluator_of
from taskvec.cli.analyze._output import Output, check_folder, finish


def ntk(
    model: Model,
    /,
    *,
    suite: Suite,
    task: Annotated[str, Parameter(name=["--task", "-t"])],
    control: str,
    output: Output,
    vector: Annotated[str | None, Parameter(name=["--vector", "-v"])] = None,
    samples: Count = 48,
    mode: Literal["full", "class", "trace"] = "trace",
    params: str = "full",
    ridge: Annotated[float, Parameter(validator=Number(gte=0))] = 1e-3,
    seed: int = 0,
    memory: Annotated[float, Parameter(validator=Number(gt=0))] = 4.0,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show whether the gradients of a pre-trained model know a task: its tangent kernel, and where it lives.

    Example: `taskvec analyze ntk builtin -s builtin8 -t gabor --control display -o kernel`

    Parameters
    ----------
    task
        The task whose logits and training examples make the kernel.
    control
        Another task; its test examples are the outside, its labels are not used.
    vector
        A task vector of the task: adds the cheap score of its displacement, and its accuracy.
    samples
        Training examples, and test examples of each task.
    mode
        `full` compares all pairs of classes, `class` equal ones; `trace` shares the classes' mean kernel.
        A full kernel costs as many times more as there are classes.
    params
        `full`, `attention`, another selection, or `re:PATTERN`.
    ridge
        Of the kernel regression, in units of the kernel's mean eigenvalue.
    seed
        Draws the examples.
    memory
        Gigabytes to work with.
    """
    import math

    from taskvec.analysis.kernel import Settings, kernel_analysis
    from taskvec.errors import InputError, NonFinite
    from taskvec.reports.kernel_figures import kernel_figures, kernel_tables
    from taskvec.vectors import TaskVector

    check_folder(output, force=force)
    loaded = None if vector is None else TaskVector.load(vector)
    if loaded is not None and loaded.info.task not in (None, task):
        raise InputError(f"{vector}: a vector of {loaded.info.task!r}, expected one of {task!r}")
    if loaded is not None and not math.isfinite(loaded.norm()):
        raise NonFinite(f"{vector}: holds NaN or infinity; extract or train it again")
    evaluator, _ = evaluator_of(model, suite, list(dict.fromkeys((task, control))))
    settings = Settings(samples, params, mode, ridge, seed, 1e9 * memory)
    with watching(quiet) as watch:
        record = kernel_analysis(evaluator, task, control, vector=loaded, settings=settings, watch=watch)
    finish(record, kernel_tables(record), kernel_figures, output, force=force, json=json)
