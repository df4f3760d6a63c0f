"""``taskvec learn``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from taskvec.arguments import distinct
from taskvec.cli._common import (
    AllowCode,
    Count,
    Device,
    Force,
    Json,
    Quiet,
    Suite,
    Tasks,
    assignments,
    flattened,
    print_json,
    say,
    watching,
)
from taskvec.cli._editing import Vectors, load_vectors
from taskvec.cli._learning import Changes, check_beside, print_learned, write_beside
from taskvec.code import allowing_code
from taskvec.coefficients.presets import PRESETS, preset
from taskvec.coefficients.settings import CoefficientSettings
from taskvec.errors import InputError
from taskvec.place import Precision
from taskvec.training.regimes import Space

if TYPE_CHECKING:
    from taskvec.tasks.suite import Suite as Loaded
    from taskvec.tasks.task import Task

_PRESET = f"A method by name, of which options change single settings: {', '.join(PRESETS)}."


def learn(
    model: str,
    *,
    vector: Vectors,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    suite: Suite = None,
    task: Tasks = (),
    preset: Annotated[str | None, Parameter(help=_PRESET, show_default=False)] = None,
    settings: Annotated[Changes, flattened()] = Changes(),  # noqa: B008
    space: Space | None = None,
    seed: Annotated[int, Parameter(validator=Number(gte=0, lt=2**32))] = 0,
    limit: Count | None = None,
    precision: Precision = "float32",
    log: Path | None = None,
    resume: Annotated[bool, Parameter(negative=())] = False,
    device: Device = "auto",
    force: Force = False,
    allow_code: AllowCode = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn the coefficients of a sum of task vectors by gradient, from inputs or from labels of tasks.

    Examples: `taskvec learn minilm -v a=sst2.safetensors -v b=trec6.safetensors -s text8 -t sst2 trec6
    --preset adamerging-layer --steps 100 --lr 1e-2 -o merged.safetensors`, and from a few labels
    `taskvec learn minilm -v a=sst2.safetensors -v b=trec6.safetensors -t sst2 --preset supervised
    --limit 32 -o merged.safetensors`.

    Beside the merged vector, which is applied with coefficient 1, lie its coefficients
    (`merged.coefficients.json`), a recipe that makes the same model (`merged.recipe.yaml`) and, with
    matplotlib, a map of them (`merged.png`).

    Args:
        model: What the vectors are of: a known name (`taskvec models`), a folder, a hub id, or
            `file.py:function`, which gives a model of your own.
        vector: `name=PATH` of a task vector, as often as there are some.
        output: The merged vector, a `.safetensors` file or a folder.
        task: The tasks whose examples are learned from; all of the suite by default.
        space: Where vectors are added; by default that in which they were trained.
        seed: Of the batches, and of a random partition.
        limit: Only the first so many examples of the split of each task.
        precision: `bf16` and `fp16` compute matrix products in bfloat16 and float16.
        log: A file for the figures of every step, a JSON object a line.
        resume: Go on from the checkpoint that an interrupted run left beside the output.
    """
    from taskvec.coefficients.learning import learn_coefficients
    from taskvec.evaluation.evaluator import Evaluator
    from taskvec.evaluation.points import own_space
    from taskvec.models.loading import load_backbone
    from taskvec.tasks.task import outputs_for
    from taskvec.training.logs import check_log, recording
    from taskvec.weights.staging import check_target

    chosen = _settings(preset, settings)
    check_target(output, force=force)
    check_beside(output, force=force)
    if log is not None:
        check_log(log, output, keep=force or resume)
    with allowing_code(allow_code):
        tasks = _tasks(suite, task)
    vectors = load_vectors(vector)
    backbone = load_backbone(model, outputs_for(tasks), device=device)
    limits: dict[str, int] = {chosen.split: limit} if limit else {}
    evaluator = Evaluator(backbone, tasks, limits=limits, precision=precision)
    checkpoint = output.with_name(f".{output.name}.learning.pt")
    if not resume:
        checkpoint.unlink(missing_ok=True)
    names, space = list(evaluator.tasks), space or own_space(vectors)
    described = {"model": model, "tasks": names, **chosen.model_dump()}
    with (
        watching(quiet) as watch,
        recording(log, (), folder=output.parent, name=output.stem, config=described) as figures,
    ):
        learned = learn_coefficients(
            evaluator,
            vectors,
            names,
            chosen,
            space=space,
            seed=seed,
            checkpoint=checkpoint,
            watch=watch,
            log=figures,
        )
    learned.vector.save(output, force=force, task="+".join(names), space=space, training=learned.record())
    written = [output, *write_beside(output, learned, backbone, assignments(vector, "--vector"), space)]
    if json:
        print_json({"written": list(map(str, written)), **learned.record()})
        return
    print_learned(learned)
    say(f"wrote {path}" for path in written)


def _settings(name: str | None, changes: Changes) -> CoefficientSettings:
    given = changes.model_dump(exclude_unset=True)
    return CoefficientSettings.parse("", given) if name is None else preset(name, given)


def _tasks(suite: str | None, names: tuple[str, ...]) -> "list[Task]":
    """Those named, or all of the suite. Raises: InputError."""
    from taskvec.tasks.suite import load_suite, suite_with

    if suite is None and not names:
        raise InputError("nothing to learn from; give tasks (-t TASK), a suite (-s SUITE), or both")
    loaded: Loaded = load_suite(suite) if suite else suite_with(names[0])
    tasks = [loaded.task(name) for name in distinct(names or list(loaded.tasks), "--task")]
    say(note for task in tasks for note in task.notes)
    return tasks
