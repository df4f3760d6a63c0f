"""``taskvec train``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from taskvec.arguments import distinct
from taskvec.cli._common import (
    AllowCode,
    Count,
    Device,
    Force,
    Json,
    Model,
    Quiet,
    Suite,
    Tasks,
    assignments,
    flattened,
    print_json,
    print_table,
    say,
    watching,
)
from taskvec.cli._penalties import Penalty, References, check_references, parse_penalty
from taskvec.code import allowing_code
from taskvec.group import current
from taskvec.training.regimes import REGIMES, Regime, RegimeSettings
from taskvec.training.settings import TrainSettings

if TYPE_CHECKING:
    from taskvec.evaluation.points import Point

_BASELINES = {"ascent": "climbs the loss", "random": "draws a vector with the norms of the one in `--like`"}
"""Regimes of the command alone."""

_REGIME = (
    "{}; in tangent space begin with `--lr auto`, or 1e-3. Any other selection is a regime too, such as "
    "`re:PATTERN` or `tangent-re:PATTERN`, a regular expression that whole names of parameters match; or say "
    "what yours is with `--select` and `--space`, under any name. The baselines: {}."
).format(
    "; ".join(f"`{name}`: {regime.about}" for name, regime in REGIMES.items()),
    ", ".join(f"`{name}` {what}" for name, what in _BASELINES.items()),
)


def train(
    *,
    model: Model,
    task: Tasks,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    suite: Suite = None,
    regime: Annotated[str | None, Parameter(help=_REGIME, show_default="full")] = None,
    choice: Annotated[RegimeSettings, flattened()] = RegimeSettings(),  # noqa: B008
    settings: Annotated[TrainSettings, flattened("penalty")] = TrainSettings(),  # noqa: B008
    penalty: Penalty = (),
    references: References = (),
    combiner: str | None = None,
    combiner_param: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    limit: Count | None = None,
    like: str | None = None,
    log: Path | None = None,
    log_to: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())] = (),
    resume: Annotated[bool, Parameter(negative=())] = False,
    device: Device = "auto",
    fsdp: Annotated[bool, Parameter(negative=())] = False,
    force: Force = False,
    allow_code: AllowCode = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model on a task and store the task vector.

    Example: `taskvec train -m minilm -t sst2 --lr 1e-4 --epochs 2 --batch-size 32 -o sst2.safetensors`

    Args:
        task: A task of the suite; several give one jointly trained vector.
        combiner: Makes one gradient of the tasks', of a batch of each a step: `mean`, `pcgrad`, … (see
            docs/joint.md), or `module:function` of the Gram matrix that returns weights.
        combiner_param: `name=value` for the combiner.
        output: The task vector, a `.safetensors` file or a folder.
        limit: Only the first so many training examples, of each task.
        like: The task vector whose norms a random vector takes.
        log: A file for the figures of every step, a JSON object a line.
        log_to: Trackers that get these figures: `wandb`, `trackio`, `tensorboard`, each if it is installed.
        resume: Go on from the checkpoint that an interrupted training left beside the output.
        fsdp: Shard the model over the processes that `torchrun` started, for one that does not fit into one.
    """
    from taskvec.errors import InputError
    from taskvec.evaluation.evaluator import Evaluator
    from taskvec.models.loading import load_backbone
    from taskvec.tasks.score import shown, utility
    from taskvec.tasks.suite import load_suite, suite_with
    from taskvec.tasks.task import outputs_for
    from taskvec.training.finetune import finetune
    from taskvec.training.joint import combiner_for
    from taskvec.training.logs import check_log, recording
    from taskvec.training.rate import forget
    from taskvec.training.sharded_checkpoint import folder_of
    from taskvec.training.trackers import tracker
    from taskvec.vectors import TaskVector
    from taskvec.weights.staging import check_space, check_target
    from taskvec.writing import remove

    names = distinct(task, "--task")
    settings = settings.model_copy(update={"penalty": tuple(map(parse_penalty, penalty))})
    others = check_references(references and distinct(references, "--references"), names, settings.penalty)
    kind = choice.regime(None if regime in _BASELINES else regime, *_BASELINES)
    check_target(output, force=force)
    if log is not None:
        check_log(log, output, keep=force or resume)
    asked = _asked(combiner, combiner_param)
    if regime == "random":
        _check_random(log=log or log_to, penalty=penalty, choice=choice, combiner=asked)
    if (like is not None) != (regime == "random"):
        raise InputError("--like and --regime random belong together: a random vector takes another's norms")
    for name in log_to:
        tracker(name)
    if asked:
        combiner_for(asked, names)
    if fsdp:
        _check_sharded(like, kind, settings, combiner=asked is not None)
    with allowing_code(allow_code):
        chosen = load_suite(suite) if suite else suite_with(names[0])
    limits = {"train": limit} if limit else {}
    tasks = [chosen.task(name) for name in names]
    say(note for task in tasks for note in task.notes)
    measured = [*tasks, *map(chosen.task, others)]
    sharded = settings.precision if fsdp else None
    backbone = load_backbone(model, outputs_for(measured), device=device, fsdp=sharded)
    evaluator = Evaluator(backbone, measured, limits=limits, precision=settings.precision)
    times = 2 if fsdp else 1  # shards are put together in a file, which the output is made of
    check_space(output, times * sum(value.nbytes for value in evaluator.pretrained.values()))

    twin = TaskVector.load(like) if like is not None else None
    space = (twin.info.space or "ordinary") if twin else kind.evaluated_in

    def at_one(vector: TaskVector) -> "Point":
        """The model that the vector makes, in the space it was trained in; one in shards is there itself."""
        if fsdp:
            return evaluator.pretrained
        return evaluator.points({"vector": vector}, space=space).at({"vector": 1.0})

    def validate(vector: TaskVector) -> dict[str, float]:
        values = evaluator.values(at_one(vector), names, "validation")
        return {f"validation/{of.name}": utility(of.metric, values[of.name]) for of in tasks}

    checkpoint = output.with_name(f".{output.name}.training.pt")
    group = current()
    if not resume and group.first:
        checkpoint.unlink(missing_ok=True)
        remove(folder_of(checkpoint))
        forget(checkpoint)
    if not fsdp and group.broadcast(folder_of(checkpoint).exists()):
        raise InputError(
            f"{folder_of(checkpoint)}: the checkpoint is of a training with --fsdp; add --fsdp, or leave out "
            "--resume to start anew"
        )
    described = {"model": model, "tasks": names, "regime": regime, **settings.told()}
    described |= {"combiner": asked} if asked else {}
    written = (log, log_to) if group.first else (None, ())
    with (
        watching(quiet) as watch,
        recording(*written, folder=output.parent, name=output.stem, config=described) as figures,
    ):
        evaluator.watch = watch
        before = evaluator.scores(evaluator.pretrained, names, "test") if fsdp and not json else {}
        if twin is not None:
            vector = TaskVector.random_like(twin, seed=settings.seed)
        else:
            vector = finetune(
                backbone,
                [evaluator.part(name) for name in names],
                regime=kind,
                settings=settings,
                combiner=asked,
                ascend=regime == "ascent",
                checkpoint=checkpoint,
                validate=validate,
                references=[evaluator.part(name) for name in others],
                watch=watch,
                log=figures,
            )
        scores = evaluator.scores(at_one(vector), names, "test")
        drawn: dict[str, Any] = {"task": "+".join(names), "regime": regime, "space": space} if twin else {}
        metrics = {name: score.record() for name, score in scores.items()}
        if group.first:
            vector.save(output, force=force, metrics=metrics, **drawn)
        found = (vector.info.training or {}).get("lr_search")
        if not (json or fsdp):
            before = evaluator.scores(evaluator.pretrained, names, "test")
    if fsdp and not group.first:
        return  # the first process has the vector
    if kind.gating and not any(map(vector.terms_at, vector)):
        say(["no gate is open at the end, and the vector changes nothing; lower --strength, or raise --lr"])
    if json:
        search = {"lr_search": found} if found else {}
        print_json({"output": str(output), "norm": vector.norm(), "test": metrics, **search})
        return
    if found:
        say([f"lr {found['lr']:g}, found on validation data in {found['steps']} steps of short trainings"])
    norm = f"{vector.norm():.3f}"
    rows = [
        [name, score.metric, shown(score.metric, before[name].value), shown(score.metric, score.value), norm]
        for name, score in scores.items()
    ]
    title = f"{output}, in tangent space" if space == "tangent" else str(output)
    start = "zero-shot" if all(getattr(of, "head", None) == "zero-shot" for of in tasks) else "pre-trained"
    print_table(title, ["task", "metric", start, "fine-tuned", "‖τ‖"], rows)


def _check_random(*, log: object, penalty: object, choice: RegimeSettings, combiner: object) -> None:
    """Refuse what a vector that is drawn has no use for. Raises: InputError."""
    from taskvec.errors import InputError

    for given, complaint in (
        (log, "--log: a random vector is drawn, and there are no steps to log; leave it out"),
        (penalty, "--penalty: a random vector is drawn, and no loss is lowered; leave it out"),
        (
            choice != RegimeSettings(),
            "--regime random: draws every tensor of the vector in --like; leave out what selects",
        ),
        (combiner, "--combiner: a random vector is drawn, and has no gradients; leave it out"),
    ):
        if given:
            raise InputError(complaint)


def _check_sharded(like: str | None, regime: Regime, settings: TrainSettings, *, combiner: bool) -> None:
    """Refuse what does not go with ``--fsdp``, before the model is loaded. Raises: InputError."""
    from taskvec.errors import InputError
    from taskvec.training.sharded import check_shardable

    if like is not None:
        raise InputError("--fsdp: a random vector is drawn, and no model is trained; leave it out")
    check_shardable(regime, settings, combiner=combiner)


def _asked(combiner: str | None, params: tuple[str, ...]) -> dict[str, Any] | None:
    """The combiner and its parameters."""
    from taskvec.config import parse_yaml
    from taskvec.errors import InputError

    if combiner is None and params:
        raise InputError("--combiner-param: given without --combiner")
    given = assignments(params, "--combiner-param")
    values = {name: parse_yaml(text, f"--combiner-param {name}") for name, text in given.items()}
    return None if combiner is None else {**values, "combiner": combiner}
