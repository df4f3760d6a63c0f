"""``taskvec analyze gradients``."""

from typing import Annotated

from cyclopts import Parameter

from taskvec.cli._common import Count, Force, Json, Quiet, distinct, watching
from taskvec.cli.analyze._options import Model, Samples, Split, Suite, evaluator_of
from taskvec.cli.analyze._output import Output, check_folder, finish


def gradients(
    model: Model,
    *,
    suite: Suite,
    task: Annotated[tuple[str, ...], Parameter(name=["--task", "-t"], consume_multiple=True, negative=())],
    output: Output,
    steps: Annotated[tuple[Count, ...], Parameter(consume_multiple=True, negative=())] = (1, 3),
    rates: Annotated[tuple[float, ...] | None, Parameter(consume_multiple=True, negative=())] = None,
    alpha: float | None = None,
    samples: Samples = 16,
    split: Split = "train",
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how far a sum of task vectors is from multi-task gradient descent, on a real model in float64.

    Example: `taskvec analyze gradients builtin -s builtin8 -t gabor greek display --steps 1 3 5 -o order`

    Parameters
    ----------
    task
        Two or more tasks of the suite.
    steps
        Full-batch gradient steps of each task; 1 is exact.
    rates
        Learning rates; by default four, each half of the one before.
    alpha
        Factor of the sum of vectors; by default one over the number of tasks, their mean.
    """
    from taskvec.analysis.gradients import RATES
    from taskvec.analysis.gradients import gradients as analysis
    from taskvec.reports.analysis_figures import gradients_figures
    from taskvec.reports.analysis_tables import gradients_tables

    check_folder(output, force=force)
    names = distinct(task, "--task")
    evaluator, suite_name = evaluator_of(model, suite, names, limits={split: samples})
    with watching(quiet) as watch:
        record = analysis(
            evaluator, names, steps=steps, rates=rates or RATES, alpha=alpha, split=split, watch=watch
        )
    record["suite"] = suite_name
    finish(record, gradients_tables(record), gradients_figures, output, force=force, json=json)
