"""``taskvec analyze linearity``."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from taskvec.cli._common import Count, Force, Json, Quiet, watching
from taskvec.cli.analyze._output import Output, finish
from taskvec.cli.analyze._vectors import by_regime, files_of, tasks_of

if TYPE_CHECKING:
    from taskvec.analysis.linearity import Regime
    from taskvec.cli.analyze._vectors import Regimes
    from taskvec.evaluation.evaluator import Evaluator


def linearity(
    vectors: Annotated[tuple[str, ...], Parameter(negative=(), allow_leading_hyphen=False)],
    /,
    *,
    model: Annotated[str, Parameter(name=["--model", "-m"])],
    suite: Annotated[str, Parameter(name=["--suite", "-s"])],
    output: Output,
    coefficients: Annotated[tuple[float, ...] | None, Parameter(consume_multiple=True, negative=())] = None,
    split: Literal["train", "validation", "test"] = "test",
    samples: Count = 200,
    batch_size: Count = 64,
    precision: Literal["float32", "bf16"] = "float32",
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
    model
        The pre-trained model: a known name (`taskvec models`), a folder, or a hub id.
    suite
        A shipped suite (`taskvec suites`) or a suite file.
    output
        A folder for record.json, table.md and figure.png.
    coefficients
        Where to compare; a tenth to one by default. 1 is always among them.
    split
        The examples.
    samples
        Examples of each task, the first ones.
    batch_size
        Examples a forward pass.
    precision
        `bf16` computes matrix products in bfloat16.
    """
    from taskvec.analysis.linearity import TENTHS
    from taskvec.analysis.linearity import linearity_gap as analysis
    from taskvec.evaluation.evaluator import Evaluator
    from taskvec.models.loading import load_backbone
    from taskvec.reports.analyses import check_folder
    from taskvec.reports.analysis_figures import linearity_figures
    from taskvec.reports.analysis_tables import linearity_tables
    from taskvec.tasks.suite import load_suite

    check_folder(output, force=force)
    regimes = by_regime(vectors)
    tasks = tasks_of(regimes)
    chosen = load_suite(suite)
    evaluator = Evaluator(
        load_backbone(model),
        [chosen.task(name) for name in tasks],
        limits={split: samples},
        batch_size=batch_size,
        precision=precision,
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
    record |= {"suite": chosen.name, "vectors": files_of(regimes, tasks)}
    finish(record, linearity_tables(record), linearity_figures, output, force=force, json=json)


def _both_spaces(evaluator: "Evaluator", regimes: "Regimes", tasks: Sequence[str]) -> "Iterator[Regime]":
    from taskvec.analysis.linearity import Regime
    from taskvec.evaluation.points import own_space

    for name, vectors in regimes.items():
        own = {task: vectors[task] for task in tasks}
        ordinary, tangent = evaluator.points(own), evaluator.points(own, space="tangent")
        yield Regime(name, own_space(own), ordinary, tangent)
