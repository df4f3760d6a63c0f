"""``taskvec train``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from taskvec.cli._common import Count, Force, Json, Quiet, distinct, print_json, print_table, watching

if TYPE_CHECKING:
    from taskvec.evaluation.points import Point

BASELINES = ("ascent", "random")
"""Regimes of the command alone."""


def train(
    *,
    model: Annotated[str, Parameter(name=["--model", "-m"])],
    task: Annotated[tuple[str, ...], Parameter(name=["--task", "-t"], consume_multiple=True, negative=())],
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    suite: Annotated[str | None, Parameter(name=["--suite", "-s"])] = None,
    regime: str = "full",
    lr: float = 1e-5,
    epochs: int = 1,
    steps: int | None = None,
    batch_size: int = 128,
    accumulation: int = 1,
    weight_decay: float = 0.1,
    decay_towards: Literal["zero", "pretrained"] = "zero",
    warmup: float = 0.1,
    schedule: Literal["cosine", "constant"] = "cosine",
    clip: float = 1.0,
    precision: Literal["float32", "bf16"] = "float32",
    seed: int = 0,
    limit: Count | None = None,
    like: Path | None = None,
    resume: Annotated[bool, Parameter(negative=())] = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model on a task and store the task vector.

    Example: `taskvec train -m minilm -t sst2 --lr 1e-4 --epochs 2 --batch-size 32 -o sst2.safetensors`

    Parameters
    ----------
    model
        A known name (`taskvec models`), a folder, or a hub id.
    task
        A task of the suite; several give one jointly trained vector.
    output
        The task vector, a `.safetensors` file or a folder.
    suite
        A shipped suite (`taskvec suites`) or a suite file. Default: the shipped suite that has the task.
    regime
        `full` trains every parameter of the encoder, `attention` the attention projections only; `tangent`
        and `tangent-attention` do the same in the tangent space of the pre-trained model (try twice the
        learning rate). Any other selection is a regime too, such as `mlp`, `re:PATTERN` or
        `tangent-re:PATTERN`, a regular expression that whole names of parameters match. The baselines:
        `ascent` climbs the loss, `random` draws a vector with the norms of the one in `--like`.
    lr
        Peak learning rate.
    epochs
        Passes over the training split.
    steps
        Optimizer steps, in place of epochs.
    batch_size
        Examples a step.
    accumulation
        Micro-batches that a step is cut into, to save memory.
    weight_decay
        Decoupled weight decay.
    decay_towards
        Where it pulls the weights: to `zero`, or to the `pretrained` ones, which shrinks the vector alone.
    warmup
        Share of the steps in which the learning rate rises.
    schedule
        What follows the warm-up.
    clip
        Largest global gradient norm; 0 leaves gradients alone.
    precision
        `bf16` computes matrix products in bfloat16; weights stay in float32.
    seed
        Order of the examples.
    limit
        Only the first so many training examples.
    like
        The task vector whose norms a random vector takes.
    resume
        Go on from the checkpoint that an interrupted training left beside the output.
    """
    from taskvec.errors import InputError
    from taskvec.evaluation.evaluator import Evaluator
    from taskvec.models.loading import load_backbone
    from taskvec.tasks.suite import load_suite, suite_with
    from taskvec.training.finetune import finetune
    from taskvec.training.regimes import regime_called
    from taskvec.training.settings import TrainSettings
    from taskvec.vectors import TaskVector
    from taskvec.weights.staging import check_space, check_target

    names = distinct(task, "--task")
    trained = "full" if regime in BASELINES else regime
    kind = regime_called(trained, *BASELINES)
    check_target(output, force=force)
    if (like is not None) != (regime == "random"):
        raise InputError("--like and --regime random belong together: a random vector takes another's norms")
    settings = TrainSettings.parse(
        "train",
        {
            "lr": lr,
            "epochs": epochs,
            "steps": steps,
            "batch_size": batch_size,
            "accumulation": accumulation,
            "weight_decay": weight_decay,
            "decay_towards": decay_towards,
            "warmup": warmup,
            "schedule": schedule,
            "clip": clip or None,
            "precision": precision,
            "seed": seed,
        },
    )
    chosen = load_suite(suite) if suite else suite_with(names[0])
    limits = {"train": limit} if limit else {}
    backbone = load_backbone(model)
    evaluator = Evaluator(backbone, [chosen.task(name) for name in names], limits=limits, precision=precision)
    check_space(output, sum(value.nbytes for value in evaluator.pretrained.values()))

    twin = TaskVector.load(like) if like is not None else None
    space = (twin.info.space or "ordinary") if twin else kind.space

    def at_one(vector: TaskVector) -> "Point":
        """The model that the vector makes, in the space it was trained in."""
        return evaluator.points({"vector": vector}, space=space).at({"vector": 1.0})

    checkpoint = output.with_name(f".{output.name}.training.pt")
    if not resume:
        checkpoint.unlink(missing_ok=True)
    with watching(quiet) as watch:
        if twin is not None:
            vector = TaskVector.random_like(twin, seed=seed)
        else:
            vector = finetune(
                backbone,
                [evaluator.part(name) for name in names],
                regime=trained,
                settings=settings,
                ascend=regime == "ascent",
                checkpoint=checkpoint,
                validate=lambda vector: evaluator.values(at_one(vector), names, "validation"),
                watch=watch,
            )
        scores = evaluator.scores(at_one(vector), names, "test")
    drawn: dict[str, Any] = {"task": "+".join(names), "regime": regime, "space": space} if twin else {}
    metrics = {name: found.record() for name, found in scores.items()}
    vector.save(output, force=force, metrics=metrics, **drawn)
    if json:
        print_json({"output": str(output), "norm": vector.norm(), "test": metrics})
        return
    before = evaluator.scores(evaluator.pretrained, names, "test")
    norm = f"{vector.norm():.3f}"
    rows = [
        [name, found.metric, f"{100 * before[name].value:.1f}", f"{100 * found.value:.1f}", norm]
        for name, found in scores.items()
    ]
    title = f"{output}, in tangent space" if space == "tangent" else str(output)
    print_table(title, ["task", "metric", "zero-shot", "fine-tuned", "‖τ‖"], rows)
