"""The options of commands that write tensors, and writing by them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from taskvec.cli._common import Force, Json, Quiet, watching
from taskvec.cli._editing import Memory, ShardSize, bound

if TYPE_CHECKING:
    import torch

    from taskvec.weights import Weights

Dtype = Annotated[
    Literal["float32", "float64", "bfloat16", "float16"] | None,
    Parameter(help="Element type of what is stored; float32 by default, float64 for float64 models."),
]


@dataclass(frozen=True, kw_only=True)
class Writing:
    """Where and how tensors are written; flattened into options (``flattened``)."""

    output: Annotated[Path, Parameter(name=["--output", "-o"])]
    """A .safetensors file, or a folder."""
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
            path = save(
                self.output,
                force=self.force,
                max_shard_size=self.max_shard_gb * 1e9,
                memory=memory,
                watch=watch,
                **more,
            )
        return open_weights(path)


def element_type(dtype: Dtype) -> "torch.dtype | None":
    """The element type that an option names."""
    import torch

    return getattr(torch, dtype) if dtype else None
