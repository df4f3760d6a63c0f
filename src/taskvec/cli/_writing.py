"""The options of commands that write tensors, and writing by them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from taskvec.cli._common import Force, Json, Quiet, watching
from taskvec.cli._editing import Memory, ShardSize, bound

if TYPE_CHECKING:
    import torch
    from cyclopts import Token

    from taskvec.weights import Weights

Dtype = Annotated[
    Literal["float32", "float64", "bfloat16", "float16"] | None,
    Parameter(help="Element type of what is stored; float32 by default, float64 for float64 models."),
]


def _to_target(_: object, tokens: Sequence["Token"]) -> Path | str:
    from taskvec.urls import is_url

    text = tokens[0].value
    return text if is_url(text) else Path(text)


Target = Annotated[Path | str, Parameter(name=["--output", "-o"], converter=_to_target)]
"""Where an output goes: a path, or the URL of a bucket or the like."""


def check_place(target: Path | str, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse an output that must not be written, as far as this machine knows.

    Raises: InputError; OutputExists.
    """
    from taskvec.urls import check_takes_files, said
    from taskvec.weights.staging import check_suffix, check_target

    if isinstance(target, str):
        check_takes_files(target)
        check_suffix(Path(said(target)), said(target))
    else:
        check_target(target, force=force, inputs=inputs)


@dataclass(frozen=True, kw_only=True)
class Writing:
    """Where and how tensors are written; flattened into options (``flattened``)."""

    output: Target
    """A .safetensors file, or a folder; or the URL of one, such as s3://bucket/model."""
    max_shard_gb: ShardSize = 5.0
    memory: Memory = None
    force: Force = False
    json: Json = False
    quiet: Quiet = False

    def bound(self, needs: Iterable[tuple[str, int]]) -> float:
        """Bytes that blocks may take: see ``taskvec.cli._editing.bound``."""
        return bound(self.memory, needs)

    def write(self, save: Callable[..., Path], memory: float, **more: object) -> "Weights":
        """What ``save``, of a vector or of weights, writes with these options and ``more``."""
        from taskvec.weights import open_weights

        with watching(self.quiet) as watch:
            path: Path | str = save(
                self.output,
                force=self.force,
                max_shard_size=self.max_shard_gb * 1e9,
                memory=memory,
                watch=watch,
                **more,
            )
        return open_weights(self.output if isinstance(self.output, str) else path)


def element_type(dtype: Dtype) -> "torch.dtype | None":
    """The element type that an option names."""
    if dtype is None:  # the usual case, which needs no torch
        return None
    import torch

    return getattr(torch, dtype)  # type: ignore[no-any-return]
