"""Training of a model that lies in shards on several processes: its space, and the vector it leaves."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, NoReturn, cast

import torch
import torch.distributed as dist
from torch import Tensor

from taskvec.errors import InputError, TaskvecError
from taskvec.group import current
from taskvec.models.backbone import Backbone
from taskvec.models.functional import encode
from taskvec.models.sharding import REPLICATED, Sharding, like, local_rows, shard_rows
from taskvec.training.regimes import Regime
from taskvec.training.settings import TrainSettings
from taskvec.training.space import Moved
from taskvec.vectors.stored.shards import ShardedDeltas, write_rows

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

    _pulls: ClassVar[Mapping[str, float]] = {"pretrained": 1}

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
        """(R, d), differentiable in the leaves."""
        return encode(self.backbone, {}, batch)

    def keep_pace(self, passes: int) -> None:
        """Before a step of so many passes: compute on nothing, for each pass that others have more, since all
        gather the parameters together."""
        for _ in range(max(current().gather(passes)) - passes):
            outputs = self.outputs(self.backbone.example())
            torch.autograd.backward(outputs, torch.zeros_like(outputs))

    def tau(self) -> NoReturn:
        """Nothing: it would be whole. Raises: TaskvecError."""
        raise TaskvecError("fsdp: a displacement in shards is nowhere whole")

    def displacement(self) -> ShardedDeltas:
        """Names and shapes: the deltas are whole nowhere but in the file of :func:`write_deltas`."""
        return ShardedDeltas(self.leaves)

    def moved_rows(self, name: str) -> Tensor:
        """How far this process's rows of a leaf have moved."""
        return local_rows(self.leaves[name].detach()) - self.at_start(name)

    def decay(self, settings: TrainSettings, lr: float) -> None:
        """Decoupled weight decay, of the own rows."""
        if settings.decay_towards == "pretrained" and not self._start:
            self._start = {name: like(leaf, self.at_start(name)) for name, leaf in self.leaves.items()}
        super().decay(settings, lr)

    def at_start(self, name: str) -> Tensor:
        """This process's rows of a leaf, as the checkpoint has them; read anew."""
        leaf = self.leaves[name]
        return self._sharding.read(self._places[name], leaf).to(local_rows(leaf))


def write_deltas(moved: Sharded, beside: Path | None) -> Params:
    """Write how far a sharded model has moved into a file of the first process, tensor by tensor.

    The other processes send it their rows, so that none holds more than its own and those of one other.

    Args:
        beside: a path in the folder for the file; by default that of temporary files.

    Returns: the file, opened, which lasts as long as that; in the other processes names and shapes alone.
    """
    deltas = moved.displacement()
    if current().first:
        return write_rows(deltas, _file_beside(beside), partial(_received, moved))
    for name in deltas:
        dist.send(moved.moved_rows(name).contiguous(), 0)
    return deltas


def _file_beside(beside: Path | None) -> Path:
    if beside is None:
        return Path(tempfile.gettempdir()) / f".taskvec-{os.getpid()}.deltas.safetensors"
    return beside.with_suffix(".deltas.safetensors")


def _received(moved: Sharded, name: str) -> Iterator[Tensor]:
    """The rows of each process, in their order."""
    leaf, mine = moved.leaves[name], moved.moved_rows(name)
    yield mine
    for rank in range(1, current().size):
        rows = mine.new_empty(len(shard_rows(len(leaf), rank, current().size)), *leaf.shape[1:])
        dist.recv(rows, rank)
        yield rows


def checksums(params: Params) -> dict[str, int]:
    """Sums of the bits of sharded parameters, by name: the same however many processes have them."""
    bits = [local_rows(value).detach().view(torch.int32) for value in params.values()]
    sums = torch.stack([of.sum(dtype=torch.int64) for of in bits])
    current().sum_(sums)
    return dict(zip(params, sums.tolist(), strict=True))
