"""``taskvec eval``."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, cast

from cyclopts import Parameter
from cyclopts.validators import Number

from taskvec.arguments import distinct
from taskvec.cli._common import (
    AllowCode,
    Count,
    Device,
    Json,
    Quiet,
    Tasks,
    print_json,
    print_table,
    watching,
)
from taskvec.cli._editing import Expression, Vectors, load_vectors
from taskvec.cli._harness import asked_of_harness, print_harnessed
from taskvec.code import allowing_code
from taskvec.errors import InputError
from taskvec.group import current
from taskvec.place import Precision
from taskvec.training.regimes import Space

if TYPE_CHECKING:
    from taskvec.evaluation.evaluator import Evaluator
    from taskvec.evaluation.points import Point
    from taskvec.tasks.score import Score
    from taskvec.tasks.task import Task
    from taskvec.training.loop import Params
    from taskvec.vectors import TaskVector

Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())]


def eval(
    model: str,
    *,
    suite: Annotated[str | None, Parameter(name=["--suite", "-s"])] = None,
    task: Tasks = (),
    vector: Vectors = (),
    expression: Expression = None,
    space: Space | None = None,
    heads_from: str | None = None,
    split: Literal["train", "validation", "test"] = "test",
    limit: Count | None = None,
    batch_size: Count | None = None,
    lm_eval: Names = (),
    lm_eval_include: str | None = None,
    lm_eval_fewshot: Annotated[int | None, Parameter(validator=Number(gte=0))] = None,
    precision: Precision = "float32",
    device: Device = "auto",
    allow_code: AllowCode = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model, edited or not, on the tasks of a suite or of lm-evaluation-harness.

    Examples: `taskvec eval minilm -s text8 -t sst2 trec6`, an edit without writing it
    `taskvec eval minilm -s text8 -v a=sst2.safetensors -e "0.8*a"`, and a written one
    `taskvec eval ./edited -s text8 --heads-from minilm`. A language model on tasks of the harness:
    `taskvec eval ./llama -v a=chat.safetensors --lm-eval arc_easy,hellaswag --limit 200`.

    Args:
        model: A known name (`taskvec models`), a folder, or a hub id.
        suite: A shipped suite (`taskvec suites`) or a suite file.
        task: Some tasks of the suite; all by default.
        vector: `name=PATH` of a task vector, for the expression.
        expression: What to add to the model, such as `"0.4*a - 0.3*b"`. One vector needs none.
        space: `ordinary` adds the edit to the weights, `tangent` evaluates the model linearized at it; a
            vector of one space may be looked at in the other. By default the space that the vectors were
            trained in.
        heads_from: The model whose text tower makes the frozen heads: the pre-trained one, when MODEL is an
            edited copy of it. By default the heads are MODEL's own. For tasks with `head: own`, the
            classifier that lends its trained head.
        split: Which split to measure on. Choose coefficients on validation, report test.
        limit: Only the first so many examples.
        batch_size: Examples a forward pass; 64 by default, 8 for `--lm-eval`.
        lm_eval: Tasks, groups or patterns of lm-evaluation-harness, with commas or spaces between them; needs
            `pip install 'taskvec[lm-eval]'`.
        lm_eval_include: A folder with task files of your own for `--lm-eval`. They may name code, which runs.
        lm_eval_fewshot: Solved examples in front of each question; by default as the task says.
        precision: `bf16` and `fp16` compute matrix products in bfloat16 and float16.
    """
    from taskvec.evaluation.evaluator import Evaluator
    from taskvec.evaluation.harness import harness
    from taskvec.evaluation.points import own_space, values_of
    from taskvec.models.loading import load_backbone
    from taskvec.tasks.task import outputs_for

    asked = asked_of_harness(lm_eval, lm_eval_include, lm_eval_fewshot, limit, batch_size)
    if suite is None and asked is None:
        raise InputError("nothing to measure; give a suite (-s SUITE), tasks of lm-eval (--lm-eval), or both")
    if expression is None and len(vector) > 1:
        raise InputError('several vectors need an expression, such as -e "0.5*a + 0.5*b"')
    if expression is not None and not vector:
        raise InputError("--expression: names vectors that no --vector gives; give each as -v name=PATH")
    if space is not None and not vector:
        raise InputError("--space: without a --vector there is one model in both spaces; leave it out")
    loaded = load_vectors(vector) if vector else {}
    space = space or own_space(loaded)
    if asked is not None and loaded and space == "tangent":
        raise InputError(
            "--lm-eval: runs a model with its weights, and in tangent space there is none; give "
            "--space ordinary"
        )
    with allowing_code(allow_code):
        tasks = _chosen(suite, task)
    outputs = "tokens" if asked is not None else outputs_for(tasks)
    if heads_from is not None and outputs == "classifier":
        tasks, heads_from = _borrowing(tasks, heads_from), None
    backbone = load_backbone(heads_from or model, outputs, device=device)
    evaluator = Evaluator(
        backbone,
        tasks,
        limits={split: limit} if limit else {},
        batch_size=batch_size or 64,
        precision=precision,
    )
    start = evaluator.pretrained
    if heads_from is not None:
        edited = load_backbone(model, outputs, device=device)
        if edited.names.keys() != backbone.names.keys():
            raise InputError(f"{model}: its encoder has other parameters than {heads_from!r}")
        start = values_of(edited, backbone)
    _check_same(evaluator, start)
    point = _edited(evaluator, loaded, expression, start, space) if loaded else start
    scores = {}
    with watching(quiet) as watch:
        evaluator.watch = watch
        for done, name in enumerate(evaluator.tasks, start=1):
            scores[name] = evaluator.score(point, name, split)
            watch("evaluating", done, len(tasks))
    harnessed = {}
    if asked is not None:
        show = sys.stderr.isatty() and not quiet
        harnessed = harness(backbone, asked, cast("Params", point), precision=precision, show=show)
    if json:
        where = {**({"space": space} if loaded else {}), "device": str(backbone.device)}
        found = {name: score.record() for name, score in scores.items()}
        print_json(
            {
                **({"split": split} if tasks else {}),
                **where,
                **({"scores": found} if tasks else {}),
                **({"lm_eval": {name: score.record() for name, score in harnessed.items()}} if asked else {}),
            }
        )
        return
    manner = f", edited in {space} space" if loaded else ""
    if tasks:
        _print_scores(f"{model}, {split}{manner}", scores)
    if asked:
        print_harnessed(f"{model}, lm-eval{manner}", harnessed)


def _check_same(evaluator: "Evaluator", start: "Params") -> None:
    """Refuse processes that would measure different models or data. Raises: InputError."""
    from taskvec.training.loop import sums
    from taskvec.training.sharing import check_same

    if not (group := current()).alone:
        data = {f"data of {name}": task.fingerprint for name, task in evaluator.tasks.items()}
        check_same(group, {"model": sums(start), **data})


def _chosen(suite: str | None, task: Sequence[str]) -> "list[Task]":
    """The tasks of a suite that are measured."""
    from taskvec.tasks.suite import load_suite

    if suite is None:
        if task:
            raise InputError("--task: names tasks of a suite, and none is given; add -s SUITE")
        return []
    measured = load_suite(suite)
    return [measured.task(name) for name in distinct(task or list(measured.tasks), "--task")]


def _borrowing(tasks: "Sequence[Task]", lender: str) -> "list[Task]":
    """Tasks with ``head: own``, whose head another model lends. Raises: InputError for other heads."""
    from taskvec.reading import exists, local_path

    place = local_path(lender)
    name = str(place.absolute()) if exists(place) else lender
    for task in tasks:
        if task.needs != "classifier":
            raise InputError(
                f"--heads-from: {lender} lends its trained head to tasks with head: own, and {task.name!r} "
                f"has head: {task.head}; leave it out with --task"
            )
    return [task.borrowing(name) for task in tasks]


def _edited(
    evaluator: "Evaluator",
    vectors: "Mapping[str, TaskVector]",
    expression: str | None,
    start: "Params",
    space: Space,
) -> "Point":
    """The edited model.

    Raises: InputError for an edit that cannot be, with the name of the vector that is to blame.
    """
    from taskvec.vectors import parse_expression

    edit = parse_expression(next(iter(vectors)) if expression is None else expression, vectors)
    try:
        return evaluator.points({"edit": edit}, start=start, space=space).at({"edit": 1.0})
    except InputError:
        for name, vector in vectors.items():
            evaluator.points({name: vector}, start=start, space=space)
        raise


def _print_scores(title: str, scores: "Mapping[str, Score]") -> None:
    from taskvec.evaluation.metrics import absolute
    from taskvec.tasks.kinds.classification import ClassScore
    from taskvec.tasks.score import shown

    more = list(dict.fromkeys(name for score in scores.values() for name in score.beside))
    rows = [
        [
            name,
            score.metric,
            shown(score.metric, score.value),
            "–".join(shown(score.metric, end) for end in score.value_interval or ()),
            *(score.beside.get(figure, "") for figure in more),
            score.examples,
        ]
        for name, score in scores.items()
    ]
    if all(isinstance(score, ClassScore) for score in scores.values()):
        mean = f"{100 * absolute({name: score.value for name, score in scores.items()}):.1f}"
        rows.append(["mean", "", mean, "", *("" for _ in more), ""])
    print_table(title, ["task", "metric", "value", "95 % interval", *more, "examples"], rows)
