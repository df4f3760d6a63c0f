"""``taskvec analyze linearity``."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from taskvec.cli._common import Force, Json, Quiet, watching
from taskvec.cli.analyze import _options as options
from taskvec.cli.analyze._output import Output, check_folder, finish
from taskvec.cli.analyze._vectors import by_regime, files_of, tasks_of

if TYPE_CHECKING:
    from taskvec.analysis.linearity import Regime
    from taskvec.cli.analyze._vectors import Regimes
    from taskvec.evaluation.evaluator import Evaluator


def linearity(
    vectors: options.Vectors,
    /,
    *,
    model: options.ModelOption,
    suite: options.Suite,
    output: Output,
    coefficients: Annotated[tuple[float, ...] | None, Parameter(consume_multiple=True, negative=())] = None,
    split: options.Split = "test",
    samples: options.Samples = 200,
    batch_size: options.BatchSize = 64,
    precision: options.Precision = "float32",
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare a fine-tuned model with its own linearization along the task vector.

    Example: `taskvec analyze linearity runs/text4/vectors/seed0/*/*.safetensors -m minilm -s text8 -o kernel`

    Parameters
    ----------
    vectors
        Task-vector files, each of one task; vectors of one regime are averaged over tasks.
    coefficients
        Where to compare; a tenth to one by default. 1 is always among them.
    """
    from taskvec.analysis.linearity import TENTHS
    from taskvec.analysis.linearity import linearity_gap as analysis
    from taskvec.reports.analysis_figures import linearity_figures
    from taskvec.reports.analysis_tables import linearity_tables

    check_folder(output, force=force)
    regimes = by_regime(vectors)
    tasks = tasks_of(regimes)
    evaluator, suite_name = options.evaluator_of(
        model, suite, tasks, limits={split: samples}, batch_size=batch_size, precision=precision
    )
    with watching(quiet) as watch:
        record = analysis(
            evaluator,
            _both_spaces(evaluator, regimes, tasks),
            tasks,
            coefficients=coefficients or TENTHS,
            split=split,
            watch=watch,
        )
    record |= {"suite": suite_name, "vectors": files_of(regimes, tasks)}
    finish(record, linearity_tables(record), linearity_figures, output, force=force, json=json)


def _both_spaces(evaluator: "Evaluator", regimes: "Regimes", tasks: Sequence[str]) -> "Iterator[Regime]":
    from taskvec.analysis.linearity import Regime
    from taskvec.evaluation.points import own_space

    for name, vectors in regimes.items():
        own = {task: vectors[task] for task in tasks}
        ordinary, tangent = evaluator.points(own), evaluator.points(own, space="tangent")
        yield Regime(name, own_space(own), ordinary, tangent)
