"""``taskvec prune-layers``."""

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from taskvec.cli._common import (
    AllowCode,
    Count,
    Device,
    Force,
    Json,
    Model,
    Quiet,
    Suite,
    print_json,
    print_table,
    watching,
)
from taskvec.cli._editing import Output
from taskvec.code import allowing_code
from taskvec.names import Grouping
from taskvec.place import Precision

if TYPE_CHECKING:
    from taskvec.evaluation.pruning import Pruned

_SHOWN = 5
"""Layers that the table shows; the JSON has all."""


def prune_layers(
    vector: str,
    /,
    *,
    model: Model,
    output: Output,
    task: Annotated[str | None, Parameter(name=["--task", "-t"])] = None,
    suite: Suite = None,
    by: Literal["loss", "first-order"] = "loss",
    tolerance: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.01,
    gates: Grouping = "layer",
    space: Literal["ordinary", "tangent"] | None = None,
    limit: Count | None = None,
    batch_size: Count = 64,
    precision: Precision = "float32",
    device: Device = "auto",
    force: Force = False,
    allow_code: AllowCode = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Keep the fewest layers of a task vector that hold its validation score, and store those alone.

    Example: `taskvec prune-layers sst2.safetensors -m minilm -s text8 -o few.safetensors`. Labels of the
    validation split are read; test data are measured at the end.

    Args:
        vector: A task vector: a file, a folder, or PATH#TASK of masked ones.
        output: The pruned vector, a `.safetensors` file or a folder.
        task: The task to measure; by default the one that the vector says.
        by: What ranks layers. `loss`: how much the validation loss rises without the change of each, a pass a
            layer. `first-order`: |<gradient of that loss, change>|, one pass.
        tolerance: The share of the whole vector's validation score that may be lost.
        gates: What goes together: a `layer`, which is a weight with its bias, each `tensor`, or a `block`.
        space: `ordinary` adds the vector to the weights, `tangent` evaluates the model linearized at it. By
            default the space that it was trained in.
        limit: Only the first so many examples of each split.
        batch_size: Examples a forward pass.
        precision: `bf16` and `fp16` compute matrix products in bfloat16 and float16.
    """
    from taskvec.cli._editing import check_vectors
    from taskvec.errors import InputError
    from taskvec.evaluation.evaluator import Evaluator
    from taskvec.evaluation.pruning import prune_layers
    from taskvec.models.loading import load_backbone
    from taskvec.tasks.suite import load_suite, suite_with
    from taskvec.tasks.task import outputs_for
    from taskvec.vectors import TaskVector
    from taskvec.weights.staging import check_target

    loaded = TaskVector.load(vector)
    check_vectors({"": loaded}, output)
    check_target(output, force=force, inputs=loaded.files)
    name = task or loaded.info.task
    if name is None:
        raise InputError(f"{vector}: does not say its task; name it with --task")
    with allowing_code(allow_code):
        if not task and "+" in name and not (suite and name in load_suite(suite).tasks):
            raise InputError(f"{vector}: is of the tasks {name}; name the one to measure with --task")
        chosen = (load_suite(suite) if suite else suite_with(name)).task(name)
    evaluator = Evaluator(
        load_backbone(model, outputs_for([chosen]), device=device),
        [chosen],
        limits={"validation": limit, "test": limit} if limit else {},
        batch_size=batch_size,
        precision=precision,
    )
    with watching(quiet) as watch:
        evaluator.watch = watch
        pruned = prune_layers(evaluator, loaded, name, tolerance=tolerance, by=by, gates=gates, space=space)
    pruned.vector.save(output, force=force, task=name)
    if json:
        print_json({"output": str(output), "task": name, "by": by, "tolerance": tolerance, **_facts(pruned)})
    else:
        _print(pruned, str(output), chosen.metric)


def _facts(pruned: "Pruned") -> dict[str, object]:
    layers, size = pruned.shares(pruned.cut)
    return {
        "kept": list(pruned.kept),
        "layers": len(pruned.kept),
        "layers_changed_before": len(pruned.importance),
        "layers_of_the_model": len(pruned.layers),
        "share_of_layers": layers,
        "share_of_bytes": size,
        "validation": {"whole": pruned.whole.value, "pruned": pruned.cut.value},
        "test": dict(pruned.test),
        "validation_labels": pruned.examples,
        "importance": dict(pruned.importance),
        "curve": [vars(cut) for cut in pruned.curve],
    }


def _print(pruned: "Pruned", output: str, metric: str) -> None:
    from taskvec.tasks.score import shown, utility

    rows = []
    for label, cut in (("pretrained", pruned.curve[0]), ("whole", pruned.whole), ("pruned", pruned.cut)):
        shares = [f"{100 * share:.1f}" for share in pruned.shares(cut)]
        values = [shown(metric, utility(metric, value)) for value in (cut.value, pruned.test[label])]
        rows.append([label, f"{cut.layers} of {len(pruned.layers)}", *shares, *values])
    columns = ["vector", "layers", "% of layers", "% of bytes", "validation", "test"]
    note = f"{metric}; layers and bytes of the encoder; {pruned.examples} validation labels were read"
    print_table(output, columns, rows, note)
    most = list(pruned.importance.items())[:_SHOWN]
    print_table(None, ["most important layers", ""], [(name, f"{value:.4g}") for name, value in most])
