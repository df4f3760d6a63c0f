"""Adapters that commands write: options, and what is printed of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from taskvec.cli._common import Count, print_facts, print_table, say, watching
from taskvec.cli._writing import Writing
from taskvec.errors import InputError, first_few

if TYPE_CHECKING:
    import torch

    from taskvec.edits.adapters import Edit
    from taskvec.vectors import Extraction, TaskVector


@dataclass(frozen=True, kw_only=True)
class AsAdapter:
    """Whether an edit is written as a LoRA adapter; flattened into options (``flattened``)."""

    as_adapter: Annotated[bool, Parameter(negative=())] = False
    """Write a LoRA adapter that PEFT loads, instead of a model: of a weighted sum of adapters exactly."""
    rank: Count | None = None
    """With --as-adapter, of this rank: the nearest matrix for each linear layer, with the error."""
    only: str | None = None
    """With --as-adapter, which matrices: `attention`, `mlp` or `re:PATTERN`; all by default."""

    def check(self, others: Mapping[str, object]) -> None:
        """Refuse options that have no meaning together.

        Args:
            others: options of models that are written, which an adapter has no use for, with their values.

        Raises: InputError.
        """
        if not self.as_adapter:
            for option, value in (("--rank", self.rank), ("--only", self.only)):
                if value is not None:
                    raise InputError(f"{option}: given without --as-adapter")
        elif unused := [option for option, value in others.items() if value]:
            raise InputError(f"{unused[0]}: given with --as-adapter, which has no use for it; leave it out")


AS_MODEL = AsAdapter()


def write_edit(edit: "Edit", options: AsAdapter, writing: Writing) -> None:
    """Write an edit as an adapter; notes go to standard error."""
    from taskvec.edits.inputs import check_outside

    check_outside(writing.output, edit.inputs.values())
    say(edit.notes)
    record = {"recipe": edit.record.get("recipe")}
    write_adapter(edit.vector, writing, options.rank, options.only, dtype=edit.dtype, record=record)


def write_adapter(
    vector: "TaskVector",
    writing: Writing,
    rank: int | None,
    only: str | None,
    *,
    dtype: "torch.dtype | None",
    task: str | None = None,
    record: Mapping[str, object] | None = None,
) -> None:
    """Write a vector as an adapter, and print what it holds."""
    from taskvec.vectors import save_adapter
    from taskvec.vectors.lora.writing import working_bytes

    writing.bound(working_bytes(vector, rank, only or "all"))
    with watching(writing.quiet) as watch:
        made = save_adapter(
            vector,
            writing.output,
            rank=rank,
            only=only or "all",
            force=writing.force,
            watch=watch,
            task=task,
            dtype=dtype,
            record=record,
        )
    say(made.notes)
    _print(made, writing.json)


def _print(made: "Extraction", json: bool) -> None:
    errors = {
        "relative error of the matrices": made.matrices_error,
        "relative error of the task vector": made.error,
    }
    facts = {"path": str(made.path), "rank": made.rank, "matrices": len(made.errors), **errors}
    words = {name: f"{error:.4g}" for name, error in errors.items()}
    words["left out"] = first_few(list(made.left_out)) or "nothing"
    details = {"relative errors": dict(made.errors), "left out": dict(made.left_out)}
    print_facts("LoRA adapter", facts, json=json, words=words, details=details)
    if not json:
        rows = [(name, f"{error:.4g}") for name, error in made.errors.items()]
        print_table(None, ["matrix", "relative error"], rows)
