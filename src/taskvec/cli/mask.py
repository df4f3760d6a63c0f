"""``taskvec mask``."""

from typing import Annotated, Literal

from cyclopts import Parameter

from taskvec.cli._common import assignments, flattened, print_facts, print_table, say
from taskvec.cli._editing import Vectors, check_vectors, load_vectors
from taskvec.cli._writing import Dtype, Writing, element_type
from taskvec.errors import InputError


def mask(
    *,
    vector: Vectors,
    method: Literal["emr", "tall"] = "emr",
    rescaler: Literal["global", "tensor_mean"] | None = None,
    lam: Annotated[tuple[str, ...], Parameter(name="--lam", negative=())] = (),
    dtype: Dtype = None,
    writing: Annotated[Writing, flattened()],
) -> None:
    """Store the vectors of many tasks as one, with a mask of one bit an entry for each task.

    Example: `taskvec mask -v a=A -v b=B -o both.safetensors`; then
    `taskvec apply BASE -v v=both.safetensors#a -o OUT` writes the model for task `a`. Whoever uses it has to
    know the task: this is no merge.

    Args:
        vector: `task=PATH` of a task vector, once for each.
        method: emr elects signs, masks by sign and rescales; tall masks the sum of all vectors.
        rescaler: Of emr: the L1 norm of the whole vector is kept (global, the default), or that of a mean
            over tensors.
        lam: Of tall, 0.4 by default: a task needs an entry if its own is so many times larger than the sum of
            the others'. One number, or `task=NUMBER` once for each.
    """
    from taskvec.vectors.stored.masked import emr, masking_needs, tall_masks

    if method == "emr" and lam:
        raise InputError("--lam: given with --method emr, expected with tall")
    if method == "tall" and rescaler:
        raise InputError("--rescaler: given with --method tall, expected with emr")
    lams = _parse_lams(lam)
    named = load_vectors(vector)
    say(check_vectors(named, writing.output))
    memory = writing.bound(masking_needs(named))
    masked = emr(named, rescaler=rescaler or "global") if method == "emr" else tall_masks(named, lam=lams)
    written = writing.write(masked.save, memory, dtype=element_type(dtype))
    facts = {"path": written.ref, "method": method, **masked.info.settings, "bytes": written.nbytes}
    factors = masked.info.factors
    print_facts("masked task vectors", facts, json=writing.json, details={"factors": factors})
    if not writing.json:
        rows = [(task, f"{written.ref}#{task}", f"{factor:.6g}") for task, factor in factors.items()]
        print_table(None, ["task", "vector", "factor"], rows)


def _parse_lams(texts: tuple[str, ...]) -> float | dict[str, float]:
    """One number, or one for each task.

    Raises: InputError for anything else.
    """
    try:
        if len(texts) == 1 and "=" not in texts[0]:
            return float(texts[0])
        return {task: float(text) for task, text in assignments(texts, "--lam").items()} if texts else 0.4
    except ValueError:
        raise InputError(f"--lam: {' '.join(texts)!r}, expected a number, or task=NUMBER for each") from None
