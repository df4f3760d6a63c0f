"""``taskvec analyze disentanglement``."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from taskvec.cli._common import Force, Json, Quiet, watching
from taskvec.cli.analyze import _options as options
from taskvec.cli.analyze._output import Output, check_folder, finish
from taskvec.cli.analyze._vectors import by_regime, files_of, tasks_of

if TYPE_CHECKING:
    from taskvec.analysis.disentanglement import Panel
    from taskvec.cli.analyze._vectors import Regimes
    from taskvec.evaluation.evaluator import Evaluator


def disentanglement(
    vectors: options.Vectors,
    /,
    *,
    model: options.ModelOption,
    suite: options.Suite,
    output: Output,
    pair: Annotated[tuple[tuple[str, str], ...], Parameter(negative=())] = (),
    grid: Annotated[tuple[float, float, float], Parameter(negative=())] = (-3.0, 3.0, 21),
    split: options.Split = "test",
    samples: options.Samples = 200,
    post_hoc: Annotated[bool, Parameter(negative=())] = False,
    batch_size: options.BatchSize = 64,
    precision: options.Precision = "float32",
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Map how far two tasks disturb each other's predictions, over a plane of coefficients.

    Example: `taskvec analyze disentanglement runs/text4/vectors/seed0/*/*.safetensors -m minilm -s text8
    --pair sst2 ag_news -o heat`

    Parameters
    ----------
    vectors
        Task-vector files, each of one task; vectors of one regime make a panel, in the space they were
        trained in.
    pair
        Two tasks; may be given several times, each pair once. All pairs by default.
    grid
        First and last coefficient and how many, a whole number, for both tasks.
    post_hoc
        Also show the ordinary vectors in the tangent space of the pre-trained model.
    """
    from taskvec.analysis.disentanglement import disentanglement as analysis
    from taskvec.analysis.disentanglement import square_grid
    from taskvec.reports.analysis_figures import disentanglement_figures
    from taskvec.reports.analysis_tables import disentanglement_tables

    check_folder(output, force=force)
    values = square_grid(*grid)
    regimes = by_regime(vectors)
    tasks = tasks_of(regimes, only=[name for of_pair in pair for name in of_pair])
    evaluator, suite_name = options.evaluator_of(
        model, suite, tasks, limits={split: samples}, batch_size=batch_size, precision=precision
    )
    panels = _panels(evaluator, regimes, tasks, post_hoc)
    with watching(quiet) as watch:
        record = analysis(evaluator, panels, tasks, pairs=pair or None, split=split, grid=values, watch=watch)
    record |= {"suite": suite_name, "vectors": files_of(regimes, tasks)}
    finish(record, disentanglement_tables(record), disentanglement_figures, output, force=force, json=json)


def _panels(
    evaluator: "Evaluator", regimes: "Regimes", tasks: Sequence[str], post_hoc: bool
) -> "Iterator[Panel]":
    """Every regime in its own space; ordinary ones in tangent space too if ``post_hoc``."""
    from taskvec.analysis.disentanglement import Panel
    from taskvec.evaluation.points import own_space

    for regime, vectors in regimes.items():
        own = {task: vectors[task] for task in tasks}
        space = own_space(own)
        yield Panel(regime, regime, space, evaluator.points(own, space=space))
        if post_hoc and space == "ordinary":
            yield Panel(f"{regime}, post hoc", regime, "tangent", evaluator.points(own, space="tangent"))
