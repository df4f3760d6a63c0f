"""``taskvec mask``."""

from typing import Annotated, Any, Literal

from cyclopts import Parameter

from taskvec.cli._common import Force, Json, Quiet, assignments, print_json, print_table, say, watching
from taskvec.cli._editing import Dtype, Memory, Output, ShardSize, Vectors, bound, check_vectors, load_vectors
from taskvec.errors import InputError


def mask(
    *,
    vector: Vectors,
    output: Output,
    method: Literal["emr", "tall"] = "emr",
    rescaler: Literal["global", "tensor_mean"] | None = None,
    lam: Annotated[tuple[str, ...], Parameter(name="--lam", negative=())] = (),
    dtype: Dtype | None = None,
    max_shard_gb: ShardSize = 5.0,
    memory: Memory = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Store the vectors of many tasks as one, with a mask of one bit an entry for each task.

    Example: `taskvec mask -v a=A -v b=B -o both.safetensors`; then
    `taskvec apply BASE -v v=both.safetensors#a -o OUT` writes the model for task `a`. Whoever uses it has to
    know the task: this is no merge.

    Parameters
    ----------
    vector
        `task=PATH` of a task vector, once for each.
    output
        A .safetensors file, or a folder.
    method
        emr elects signs, masks by sign and rescales; tall masks the sum of all vectors.
    rescaler
        Of emr: the L1 norm of the whole vector is kept (global, the default), or that of a mean over tensors.
    lam
        Of tall, 0.4 by default: a task needs an entry if its own is so many times larger than the sum of the
        others'. One number, or `task=NUMBER` once for each.
    dtype
        Element type of the vector that is shared; float32 by default, float64 for float64 models.
    """
    import torch

    from taskvec.vectors.stored.masked import emr, masking_needs, tall_masks
    from taskvec.weights import open_weights

    if method == "emr" and lam:
        raise InputError("--lam: given with --method emr, expected with tall")
    if method == "tall" and rescaler:
        raise InputError("--rescaler: given with --method tall, expected with emr")
    lams = _lams(lam)
    named = load_vectors(vector)
    say(check_vectors(named, output))
    size = bound(memory, masking_needs(named))
    masked = emr(named, rescaler=rescaler or "global") if method == "emr" else tall_masks(named, lam=lams)
    with watching(quiet) as watch:
        path = masked.save(
            output,
            dtype=getattr(torch, dtype) if dtype else None,
            force=force,
            max_shard_size=max_shard_gb * 1e9,
            memory=size,
            watch=watch,
        )
    written = open_weights(path)
    facts: dict[str, Any] = {
        "path": str(path),
        "method": method,
        **masked.info.settings,
        "bytes": sum(written.spec(name).nbytes for name in written),
        "factors": masked.info.factors,
    }
    if json:
        print_json(facts)
        return
    factors = [(task, f"{path}#{task}", f"{factor:.6g}") for task, factor in facts.pop("factors").items()]
    print_table(None, ["masked task vectors", str(facts.pop("path"))], list(facts.items()))
    print_table(None, ["task", "vector", "factor"], factors)


def _lams(given: tuple[str, ...]) -> float | dict[str, float]:
    """One number, or one for each task.

    Raises: InputError for anything else.
    """
    try:
        if len(given) == 1 and "=" not in given[0]:
            return float(given[0])
        return {task: float(text) for task, text in assignments(given, "--lam").items()} if given else 0.4
    except ValueError:
        raise InputError(f"--lam: {' '.join(given)!r}, expected a number, or task=NUMBER for each") from None
