"""``taskvec adapt``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from taskvec.cli._common import (
    AllowCode,
    Device,
    Force,
    Json,
    Quiet,
    Suite,
    assignments,
    flattened,
    print_json,
    print_table,
    say,
    watching,
)
from taskvec.cli._editing import Vectors
from taskvec.cli._learning import Changes, check_beside, print_learned, write_beside
from taskvec.code import allowing_code
from taskvec.coefficients.presets import few_shot
from taskvec.errors import InputError
from taskvec.place import Precision
from taskvec.training.regimes import Space

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskvec.evaluation.evaluator import Evaluator
    from taskvec.vectors import TaskVector

_COMPOSED = Annotated[tuple[str, ...], Parameter(name=["--expression", "-e"], negative=())]


def adapt(
    model: str,
    *,
    task: Annotated[str, Parameter(name=["--task", "-t"])],
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    pool: Path | None = None,
    vector: Vectors = (),
    expression: _COMPOSED = (),
    shots: Annotated[int, Parameter(validator=Number(gte=0))] = 4,
    suite: Suite = None,
    settings: Annotated[Changes, flattened("signal", "allow_test_inputs")] = Changes(),  # noqa: B008
    space: Space | None = None,
    seed: Annotated[int, Parameter(validator=Number(gte=0, lt=2**32))] = 0,
    precision: Precision = "float32",
    resume: Annotated[bool, Parameter(negative=())] = False,
    device: Device = "auto",
    force: Force = False,
    allow_code: AllowCode = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve a new task from a few labelled examples, by the coefficients of a pool of task vectors.

    Example: `taskvec adapt builtin --pool vectors -t gabor --shots 4 -o gabor.safetensors`, where the folder
    `vectors` holds those of other tasks.

    Model and vectors stay as they are; coefficients of the vectors are learned from the shots. Beside the
    merged vector, which is applied with coefficient 1, lie its coefficients, a recipe that makes the same
    model and, with matplotlib, a map of them, as `taskvec learn` writes them.

    Args:
        model: What the vectors are of: a known name (`taskvec models`), a folder, a hub id, or
            `file.py:function`, which gives a model of your own.
        task: The new task.
        output: The merged vector, a `.safetensors` file or a folder.
        pool: A library of vectors, or a folder with a `.safetensors` file for each.
        vector: `name=PATH` of a further vector, as often as there are some.
        expression: `name=EXPRESSION` over the vectors, such as `turn="a - b"`, which takes the place of those
            that it names; as often as there are some.
        shots: Labelled examples of each class, drawn by the seed; of a task without classes, in all.
        space: Where vectors are added; by default that in which they were trained.
        seed: Of the draw, of the batches, and of a random partition.
        precision: `bf16` and `fp16` compute matrix products in bfloat16 and float16.
        resume: Go on from the checkpoint that an interrupted run left beside the output.
    """
    from taskvec.coefficients.adapting import adapt
    from taskvec.coefficients.pool import composed
    from taskvec.evaluation.evaluator import Evaluator
    from taskvec.evaluation.points import own_space
    from taskvec.models.loading import load_backbone
    from taskvec.tasks.suite import load_suite, suite_with
    from taskvec.weights.staging import check_target

    chosen = few_shot(settings.model_dump(exclude_unset=True))
    check_target(output, force=force)
    check_beside(output, force=force)
    with allowing_code(allow_code):
        asked = (load_suite(suite) if suite else suite_with(task)).task(task)
    say(asked.notes)
    paths = _paths(pool, vector)
    vectors = composed(_loaded(paths, asked.name), assignments(expression, "--expression"))
    backbone = load_backbone(model, asked.needs, device=device)
    evaluator = Evaluator(backbone, [asked], precision=precision)
    checkpoint = output.with_name(f".{output.name}.learning.pt")
    if not resume:
        checkpoint.unlink(missing_ok=True)
    space = space or own_space(vectors)
    with watching(quiet) as watch:
        found = adapt(
            evaluator,
            vectors,
            task,
            shots,
            settings=chosen,
            space=space,
            seed=seed,
            checkpoint=checkpoint,
            watch=watch,
        )
    found.vector.save(output, force=force, task=task, space=space, training=found.record())
    written = [output, *write_beside(output, found, backbone, paths, space)]
    test = _measured(evaluator, found.vector, task, space)
    if json:
        print_json({"written": list(map(str, written)), "test": test, **found.record()})
        return
    print_learned(found)
    print_table(
        task, ["metric", "before", "adapted"], [[asked.metric, *(f"{of:.4g}" for of in test.values())]]
    )
    say(f"wrote {path}" for path in written)


def _paths(pool: Path | None, vectors: tuple[str, ...]) -> dict[str, str]:
    """Of all vectors, by name. Raises: InputError for none, or a name that stands twice."""
    from taskvec.coefficients.pool import pool_paths

    of_pool = {} if pool is None else {name: str(path) for name, path in pool_paths(pool).items()}
    given = assignments(vectors, "--vector")
    for name in of_pool.keys() & given.keys():
        raise InputError(f"--vector: the name {name!r} is in {pool} already; choose another")
    if not of_pool and not given:
        raise InputError("no vectors; give a folder (--pool FOLDER), or name=PATH of each (-v)")
    return {**of_pool, **given}


def _loaded(paths: "Mapping[str, str]", task: str) -> "dict[str, TaskVector]":
    from taskvec.vectors import TaskVector

    vectors = {name: TaskVector.load(path) for name, path in paths.items()}
    say(
        f"{name}: was trained on {task} itself, with more of its labels than the shots; leave it out to "
        "adapt from other tasks"
        for name, vector in vectors.items()
        if task in _trained_on(vector)
    )
    return vectors


def _trained_on(vector: "TaskVector") -> "list[object]":
    """The tasks that a vector says it was trained on."""
    named = (vector.info.training or {}).get("tasks")
    return [vector.info.task, *(named if isinstance(named, dict | list) else ())]


def _measured(evaluator: "Evaluator", vector: "TaskVector", task: str, space: Space) -> dict[str, float]:
    """The task's metric on test data, before and after."""
    adapted = evaluator.points({"vector": vector}, space=space).at({"vector": 1.0})
    return {
        "before": evaluator.score(evaluator.pretrained, task, "test").value,
        "after": evaluator.score(adapted, task, "test").value,
    }
