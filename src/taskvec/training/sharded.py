"""Training of a model that lies in shards on several processes: its space, and the vector it leaves."""

import os
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from taskvec.errors import InputError, TaskvecError
from taskvec.group import current
from taskvec.models.backbone import Backbone
from taskvec.models.functional import encode
from taskvec.models.sharding import REPLICATED, Sharding, local_rows
from taskvec.training.regimes import Regime
from taskvec.training.settings import TrainSettings
from taskvec.training.space import Moved
from taskvec.weights.blocks import TensorSpec, rows_of
from taskvec.weights.dtypes import raw_bytes
from taskvec.weights.lazy import Weights
from taskvec.weights.plan import plan_shards
from taskvec.weights.stored import StoredWeights
from taskvec.writing import open_own, unwritable, write_at

Params = Mapping[str, Tensor]


def check_shardable(
    regime: Regime, settings: TrainSettings, *, combiner: bool = False, mask: bool = False
) -> None:
    """Refuse what is not known to be right on shards. Raises: InputError."""
    because = {
        "tangent": "FSDP2 has no derivatives in a direction",
        "tangent-lora": "FSDP2 has no derivatives in a direction",
        "lora": "its products are as large as the matrices that they move, and would be whole",
        "gated": "gates need the residuals of whole layers",
    }
    if regime.space in because:
        raise InputError(
            f"regime {regime.name!r}: not with fsdp: {because[regime.space]}; {REPLICATED}, or take a regime "
            "of space ordinary, such as full or attention"
        )
    for field, given, instead in (
        ("penalty", any(asked.strength for asked in settings.penalty), "leave the penalty out"),
        ("combiner", combiner, "without a combiner, each step holds the examples of one task"),
        ("mask", mask, "take a regime that selects whole tensors"),
        ("lr: auto", settings.lr == "auto", "find a rate on a smaller model, and give the number"),
        ("precision: fp16", settings.precision == "fp16", "take bf16, which needs no scaling of the loss"),
    ):
        if given:
            raise InputError(f"{field}: not with fsdp; {instead}, or {REPLICATED}")


def check_plain(*given: object) -> None:
    """Refuse spaces, starts and masks that are not known to be right on shards. Raises: InputError."""
    if any(of not in (None, "ordinary") for of in given):
        raise InputError(
            f"fsdp: trains whole tensors in ordinary space, from where the model is; {REPLICATED}"
        )


class Sharded(Moved):
    """The leaves are the parameters of the backbone, of which each process moves its rows in place.

    Raises: InputError for a backbone that was trained before: it is no longer where it began.
    """

    _pulls = {"pretrained": 1}

    def __init__(self, backbone: Backbone, start: Params) -> None:
        self.backbone, self._sharding = backbone, cast("Sharding", backbone.sharding)
        self._sharding.begin(backbone.ref)
        self._start: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}
        self._still = {}
        own = backbone.encoder_parameters()
        backbone.network.requires_grad_(False)
        self.leaves = {name: own[name].requires_grad_() for name in start}
        self._places = {name: backbone.places[name] for name in start}

    def outputs(self, batch: Mapping[str, Tensor]) -> Tensor:
        return encode(self.backbone, {}, batch)

    def tau(self) -> NoReturn:
        raise TaskvecError("a displacement in shards is nowhere whole")

    def displacement(self) -> "Gathered":
        """Each tensor is gathered when it is read, which all processes do together."""
        return Gathered(self)

    def decay(self, settings: TrainSettings, lr: float) -> None:
        if settings.decay_towards == "pretrained" and not self._start:
            self._start = {name: self.sharded_like(leaf, self.at_start(name)) for name, leaf in self.leaves.items()}
        super().decay(settings, lr)

    def at_start(self, name: str) -> Tensor:
        """This process's rows of a leaf, as the checkpoint has them; read anew."""
        leaf = self.leaves[name]
        return self._sharding.read(self._places[name], leaf).to(local_rows(leaf))

    def sharded_like(self, leaf: Tensor, rows: Tensor) -> Tensor:
        """A tensor of which every process has these rows."""
        from torch.distributed.tensor import DTensor

        like = cast("DTensor", leaf)
        return DTensor.from_local(
            rows, like.device_mesh, like.placements, run_check=False, shape=leaf.shape, stride=leaf.stride()
        )


class Gathered(Weights):
    """How far a sharded model has moved, float32, as it is at the moment of reading.

    Reading a tensor is a work of all processes, which read the same ones in the same order.
    """

    frozen = False

    def __init__(self, moved: Sharded) -> None:
        specs = {name: TensorSpec(tuple(leaf.shape), leaf.dtype) for name, leaf in moved.leaves.items()}
        super().__init__("deltas in shards", specs, ("gathered", id(moved)))
        self._moved = moved

    def _read(self, name: str, rows: slice | None) -> Tensor:
        leaf = self._moved.leaves[name].detach()
        shift = self._moved.sharded_like(leaf, local_rows(leaf) - self._moved.at_start(name))
        whole: Tensor = cast("Any", shift).full_tensor()
        return rows_of(whole, rows).cpu()


class Elsewhere(Weights):
    """What another process has, of which only names and shapes are known here."""

    def _read(self, name: str, rows: slice | None) -> NoReturn:
        raise TaskvecError(f"{self.ref}: only process 0 of the group holds the vector; read and save it there")


def write_gathered(deltas: Gathered, beside: Path | None) -> Weights:
    """Write deltas tensor by tensor into a file of the first process, which lasts as long as what is returned.

    Args:
        beside: a path in the folder for the file; by default that of temporary files.

    Returns: the file, opened; in the other processes what has names and shapes alone.
    """
    if not current().first:
        for name in deltas:
            deltas.read(name)
        return Elsewhere(deltas.ref, deltas.specs, deltas.identity)
    folder = Path(tempfile.gettempdir()) if beside is None else beside.parent
    path = folder / f".{f'taskvec-{os.getpid()}' if beside is None else beside.stem.lstrip('.')}.deltas.safetensors"
    [plan] = plan_shards(deltas, None, {})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open_own(path, fresh=True)
        try:
            write_at(handle, memoryview(plan.header), 0)
            for name, place in plan.places.items():
                write_at(handle, raw_bytes(deltas.read(name)), place)
        finally:
            os.close(handle)
    except OSError as error:
        raise unwritable(path, error, "make room and --resume") from error
    written = StoredWeights(path, ref=deltas.ref)
    weakref.finalize(written, path.unlink, missing_ok=True)
    return written


def checksums(params: Params) -> dict[str, int]:
    """Sums of the bits of sharded parameters, by name: the same however many processes have them."""
    if not params:
        return {}
    sums = torch.stack([local_rows(value).view(torch.int32).sum(dtype=torch.int64) for value in params.values()])
    current().sum_(sums)
    return dict(zip(params, sums.tolist(), strict=True))
