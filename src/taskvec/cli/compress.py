"""``taskvec compress``."""

from typing import Annotated, Literal

from taskvec.cli._common import Count, flattened, print_facts, print_table
from taskvec.cli._editing import check_vectors
from taskvec.cli._writing import Dtype, Writing, element_type

_WORST = 5
"""Tensors whose errors the table shows; the JSON has all."""


def compress(
    vector: str,
    /,
    *,
    form: Literal["bf16", "sparse", "low-rank", "int8", "1-bit"],
    density: float | None = None,
    rank: Count | None = None,
    group: Count | None = None,
    dtype: Dtype = None,
    writing: Annotated[Writing, flattened()],
) -> None:
    """Store a task vector in fewer bytes, and say what is lost.

    Examples: `taskvec compress a.safetensors --form sparse --density 0.1 -o small.safetensors` and
    `taskvec compress a.safetensors --form int8 -o small.safetensors`. What is written is a task vector like
    any other; a tensor that would not get smaller is kept as it is.

    Args:
        vector: A task vector: a file, a folder, or PATH#TASK of masked ones.
        form: bf16 rounds; sparse keeps the largest entries of each tensor; low-rank keeps the leading
            singular vectors of each matrix; int8 and 1-bit keep integers and signs, with a scale for a group
            of entries. Only sparse and low-rank take a `--dtype`.
        density: Of sparse: the fraction of entries kept, above 0 to 1.
        rank: Of low-rank: the number of singular vectors kept.
        group: Of int8 (128 by default) and 1-bit (512): the number of entries that share a scale.
    """
    from taskvec.vectors import TaskVector
    from taskvec.vectors.stored.compact.encoding import working_bytes
    from taskvec.vectors.stored.files import choose_form

    values = {"density": density, "rank": rank, "group": group}
    settings = {name: value for name, value in values.items() if value is not None}
    element = element_type(dtype)
    loaded = TaskVector.load(vector)
    check_vectors({"": loaded}, writing.output)
    chosen = choose_form(form, settings, element)
    needs = ((name, working_bytes(loaded, chosen, name)) for name in loaded)
    written = writing.write(loaded.save, writing.bound(needs), form=form, dtype=element, **settings)
    stored = TaskVector.opened(written)
    compact = stored.info.compact
    assert compact is not None  # it was saved in a form
    before = sum(stored.specs[name].nbytes for name in compact.errors)
    coded = len(compact.errors if form == "bf16" else compact.coded)
    facts = {
        "path": written.ref,
        "form": form,
        **compact.settings,
        "tensors in the form": coded,
        "tensors kept as they are": len(compact.errors) - coded,
        "bytes": written.nbytes,
        "bytes before": before,
        "ratio": round(before / written.nbytes, 2) if written.nbytes else 1.0,
        "relative error": compact.error,
    }
    print_facts("task vector", facts, json=writing.json, details={"errors": compact.errors})
    if not writing.json:
        worst = sorted(compact.errors.items(), key=lambda error: -error[1])[:_WORST]
        print_table(None, ["largest errors", "relative"], [(name, f"{error:.4g}") for name, error in worst])
