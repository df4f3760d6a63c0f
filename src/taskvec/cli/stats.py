"""``taskvec stats``."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from taskvec.cli._common import (
    AllowCode,
    Count,
    Device,
    Force,
    Json,
    Quiet,
    Suite,
    print_json,
    print_table,
    watching,
)
from taskvec.cli._editing import Output, open_model
from taskvec.code import allowing_code
from taskvec.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.models.backbone import Backbone
    from taskvec.models.heads import Head
    from taskvec.tasks.task import Task
    from taskvec.vectors import BaseInfo, TaskVector
    from taskvec.vectors.statistics import Kind


def stats(
    model: str,
    /,
    *,
    task: Annotated[str, Parameter(name=["--task", "-t"])],
    output: Output,
    suite: Suite = None,
    vector: Annotated[str | None, Parameter(name=["--vector", "-v"])] = None,
    heads_from: str | None = None,
    kind: Literal["fisher", "gram", "both", "kfac", "ekfac", "ggn"] = "both",
    examples: Count = 256,
    labels: Literal["all", "sampled"] = "all",
    split: Literal["train", "validation", "test"] = "train",
    seed: int = 0,
    device: Device = "auto",
    force: Force = False,
    allow_code: AllowCode = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure what a model does with the inputs of a task, for the rules `fisher` and `regmean` and the
    penalties `tak` and `diagonal`.

    Examples: `taskvec stats minilm -v sst2.safetensors -t sst2 -o stats/sst2` for a model and a task vector
    of it, `taskvec stats ./tuned --heads-from minilm -t sst2 -o stats/sst2` for a fine-tuned model,
    `taskvec stats minilm -t sst2 --kind kfac -o sst2.safetensors` for a penalty. Labels of the examples are
    not used.

    Args:
        model: A known name (`taskvec models`), a folder, or a hub id.
        task: The task whose inputs the model is given: the one it was fine-tuned on.
        output: A folder, which gets fisher.safetensors and gram.safetensors, or for one kind a .safetensors
            file.
        vector: A task vector that is added to MODEL first, whose heads stay those of MODEL.
        heads_from: The pre-trained model whose text tower makes the frozen head, when MODEL is a fine-tuned
            copy of it.
        kind: `fisher`, the diagonal Fisher information of every parameter; `gram`, the second moments of what
            every linear layer is given; or `both`. Of the curvature of the outputs: `kfac`, Kronecker factors
            of every layer; `ekfac`, the same with exact values along their eigenvectors; `ggn`, the diagonal.
        examples: How many inputs, drawn by the seed.
        labels: `all` takes the Fisher information over all classes, a backward pass each; `sampled` draws one
            class for each input from the model's prediction.
        split: Where the inputs are from.
        seed: Draws the inputs, and sampled labels or directions.
    """
    from taskvec.statistics.curvature import curvature
    from taskvec.statistics.fisher import fisher
    from taskvec.statistics.gram import gram
    from taskvec.studies.analysis import load_vector_of
    from taskvec.tasks.suite import load_suite, suite_with
    from taskvec.vectors.statistics import StatisticsInfo
    from taskvec.weights import save_weights
    from taskvec.weights.staging import check_target

    if vector is not None and heads_from is not None:
        raise InputError("--heads-from: given together with --vector, whose heads are those of MODEL")
    if labels != "all" and kind in ("kfac", "ekfac", "ggn"):
        raise InputError(
            f"--labels: of Fisher information, which --kind {kind} does not measure; leave it out"
        )
    places = _places(output, kind)
    for place in places.values():
        check_target(place, force=force)
    with allowing_code(allow_code):
        chosen = (load_suite(suite) if suite else suite_with(task)).task(task)
    direction = None if vector is None else load_vector_of(vector, task)
    headed = kind in ("fisher", "gram", "both")
    backbone, head = _load(model, chosen, direction, heads_from, device, headed)
    measured, base = _origin(model, direction, heads_from)
    rows = []
    for name, place in places.items():
        with watching(quiet) as watch:
            measure: Callable[..., dict[str, Tensor]] = gram
            if name == "fisher":
                measure = partial(fisher, head=head, labels=labels)
            elif name != "gram":
                measure = partial(curvature, kind=name)
            tensors = measure(backbone, chosen, examples, split=split, seed=seed, watch=watch)
        info = StatisticsInfo(
            kind=name,
            model=measured,
            base=base,
            task=task,
            data=chosen.fingerprint,
            split=split,
            examples=min(examples, len(chosen.split(split))),
            seed=seed,
            labels=labels if name == "fisher" else None,
            available=None if headed else len(chosen.split(split)),
            probes=None if headed else 1,
        )
        save_weights(tensors, place, force=force, metadata=info.header())
        facts = {"path": str(place), "kind": name, "task": task, "model": info.model.ref}
        sizes = {"examples": info.examples, "tensors": len(tensors), "bytes": place.stat().st_size}
        rows.append(facts | sizes)
    if json:
        print_json(rows)
    else:
        print_table(None, list(rows[0]), [list(row.values()) for row in rows])


def _places(output: Path, kind: "Kind | Literal['both']") -> "dict[Kind, Path]":
    """The file of each kind."""
    from taskvec.weights.staging import check_suffix

    check_suffix(output)
    kinds: list[Kind] = ["fisher", "gram"] if kind == "both" else [kind]
    if output.suffix != ".safetensors":
        if output.is_file():
            raise InputError(f"--output: {output} is a file, expected a folder or a .safetensors file")
        return {name: output / f"{name}.safetensors" for name in kinds}
    if len(kinds) > 1:
        raise InputError(f"--output: {output} is one file, for one --kind; name a folder for both")
    return {kinds[0]: output}


def _load(
    model: str,
    task: "Task",
    vector: "TaskVector | None",
    heads_from: str | None,
    device: str,
    headed: bool,
) -> "tuple[Backbone, Head | None]":
    """The model that is measured, and the head of the pre-trained one where it is ``headed``."""
    from taskvec.evaluation.evaluator import Evaluator
    from taskvec.evaluation.points import add_vector
    from taskvec.models.loading import load_backbone
    from taskvec.tasks.task import outputs_for

    outputs = outputs_for([task])
    backbone = load_backbone(model, outputs, device=device)
    pretrained = load_backbone(heads_from, outputs, device=device) if heads_from else backbone
    head = Evaluator(pretrained, [task]).head(task.name) if headed else None
    if _shapes(pretrained) != _shapes(backbone):
        raise InputError(f"{model}: its encoder has other parameters than {heads_from!r}")
    return (backbone if vector is None else add_vector(backbone, vector)), head


def _shapes(backbone: "Backbone") -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in backbone.encoder_parameters().items()}


def _origin(
    model: str, vector: "TaskVector | None", heads_from: str | None
) -> "tuple[BaseInfo, BaseInfo | None]":
    """What is measured, and the pre-trained model if that is another."""
    from taskvec.vectors import BaseInfo, apply

    start = open_model(model)
    info = BaseInfo(ref=start.ref, fingerprint=start.fingerprint())
    if vector is not None:
        moved = apply(start, vector).fingerprint()
        return BaseInfo(ref=f"{start.ref} + {vector.ref}", fingerprint=moved), info
    if heads_from is None:
        return info, None
    base = open_model(heads_from)
    return info, BaseInfo(ref=base.ref, fingerprint=base.fingerprint())
