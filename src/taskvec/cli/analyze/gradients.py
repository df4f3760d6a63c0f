"""``taskvec analyze gradients``."""

from typing import Annotated, Literal

from cyclopts import Parameter

from taskvec.cli._common import Count, Force, Json, Quiet, distinct, watching
from taskvec.cli.analyze._output import Output, finish


def gradients(
    model: str,
    *,
    suite: Annotated[str, Parameter(name=["--suite", "-s"])],
    task: Annotated[tuple[str, ...], Parameter(name=["--task", "-t"], consume_multiple=True, negative=())],
    output: Output,
    steps: Annotated[tuple[Count, ...], Parameter(consume_multiple=True, negative=())] = (1, 3),
    rates: Annotated[tuple[float, ...] | None, Parameter(consume_multiple=True, negative=())] = None,
    alpha: float | None = None,
    samples: Count = 16,
    split: Literal["train", "validation", "test"] = "train",
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how far a sum of task vectors is from multi-task gradient descent, on a real model in float64.

    Example: `taskvec analyze gradients builtin -s builtin8 -t gabor greek display --steps 1 3 5 -o order`

    Parameters
    ----------
    model
        A known name (`taskvec models`), a folder, or a hub id.
    suite
        A shipped suite (`taskvec suites`) or a suite file.
    task
        Two or more tasks of the suite.
    output
        A folder for record.json, table.md and figure.png.
    steps
        Full-batch gradient steps of each task; 1 is exact.
    rates
        Learning rates; by default four, each half of the one before.
    alpha
        Factor of the sum of vectors; by default one over the number of tasks, their mean.
    samples
        Examples of each task, the first ones, in one batch.
    split
        The examples.
    """
    from taskvec.analysis.gradients import RATES
    from taskvec.analysis.gradients import gradients as analysis
    from taskvec.evaluation.evaluator import Evaluator
    from taskvec.models.loading import load_backbone
    from taskvec.reports.analyses import check_folder
    from taskvec.reports.analysis_figures import gradients_figures
    from taskvec.reports.analysis_tables import gradients_tables
    from taskvec.tasks.suite import load_suite

    check_folder(output, force=force)
    chosen, names = load_suite(suite), distinct(task, "--task")
    evaluator = Evaluator(
        load_backbone(model), [chosen.task(name) for name in names], limits={split: samples}
    )
    with watching(quiet) as watch:
        record = analysis(
            evaluator, names, steps=steps, rates=rates or RATES, alpha=alpha, split=split, watch=watch
        )
    record["suite"] = chosen.name
    finish(record, gradients_tables(record), gradients_figures, output, force=force, json=json)
