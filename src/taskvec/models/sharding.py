"""Networks whose parameters FSDP2 shards over a group of processes, so that none holds them whole."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
import xxhash
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from taskvec.errors import InputError
from taskvec.group import current
from taskvec.models.activations import stacked
from taskvec.models.checkpoint import (
    check_described,
    config_file,
    configuration,
    in_plain_operations,
    mismatched,
    stored_names,
    unbuilt,
)
from taskvec.models.gguf import gguf_file
from taskvec.place import Precision
from taskvec.weights import Weights, open_weights
from taskvec.weights.blocks import row_count
from taskvec.weights.dtypes import raw_bytes
from taskvec.weights.network import quiet

REPLICATED = "leave out --fsdp, and every process trains a whole copy"
"""What to do with a model that cannot be sharded."""


@dataclass
class Sharding:
    """Shards a network over the processes of the default group.

    Rows are those of the first axis: process r of N holds the r-th of N equal runs, the last ones shorter. A
    block is whole on every process only while it is computed.

    Args:
        precision: "bf16" gathers parameters in bfloat16; gradients are summed in float32.

    Attributes:
        weights: the checkpoint, open for reading rows.
        stored: name in the network -> name in the checkpoint.
    """

    device: torch.device
    precision: Precision = "float32"
    weights: Weights = field(init=False)
    stored: Mapping[str, str] = field(init=False)
    _moved: bool = field(default=False, init=False)

    @cached_property
    def mesh(self) -> Any:
        """All processes in a row."""
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(self.device.type, (torch.distributed.get_world_size(),))

    def build(self, kind: Any, ref: str) -> Any:
        """A network of a transformers class in float32, of which this process reads its own rows alone.

        Raises: InputError, CorruptFile, as of loading it whole; InputError for one that cannot be sharded.
        """
        if gguf_file(ref) is not None:
            raise InputError(
                f"{ref}: a GGUF file cannot be read in shards; take the safetensors of the model, or "
                f"{REPLICATED}"
            )
        check_described(kind, ref)
        try:
            with quiet(), _without_parameters():
                network = kind.from_config(configuration(config_file(ref)), dtype=torch.float32)
        except Exception as error:  # what does not fit surfaces as any of a dozen types
            raise unbuilt(ref, error) from None
        in_plain_operations(network)
        self.weights = open_weights(ref)
        self.stored = stored_names(config_file(ref).parent, network)
        _check_fits(ref, network, self.weights, self.stored)
        current().same(ref, _sample(self.weights))
        self._shard(network, ref)
        self._fill(network)
        network.taskvec_sharding = self
        return network.eval()

    def _shard(self, network: nn.Module, ref: str) -> None:
        """Wrap the blocks, then what is around them."""
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        blocks = _blocks(network)
        if not blocks:
            raise InputError(f"{ref}: has no stack of layers to shard; {REPLICATED}")
        dtype = torch.bfloat16 if self.precision == "bf16" else None
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        for module in (*blocks, network):
            fully_shard(module, mesh=self.mesh, mp_policy=policy, reshard_after_forward=True)
            sharded = cast("FSDPModule", module)
            # Losses are divided by the examples of all processes, so that gradients are sums.
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)

    @torch.no_grad()
    def _fill(self, network: nn.Module) -> None:
        """Give the parameters memory, and read them."""
        device = self.device
        network._apply(  # type: ignore[no-untyped-call]
            lambda t: torch.empty_like(t, device=device) if t.is_meta else t.to(device)
        )
        for name, parameter in network.named_parameters():
            local = local_rows(parameter)
            if name in self.stored:
                local.copy_(self.read(name, parameter))
            else:
                local.zero_()
        for name, buffer in network.named_buffers():
            if name in self.stored:
                buffer.copy_(self.weights.read(self.stored[name]))

    def read(self, name: str, parameter: Tensor) -> Tensor:
        """What the checkpoint holds in this process's rows of a parameter of that name."""
        shape, local = parameter.shape, local_rows(parameter)
        mine = shard_rows(shape[0], self.mesh.get_local_rank(), self.mesh.size())
        per = row_count(tuple(shape)) // max(shape[0], 1)  # rows of the last axis
        rows = slice(mine.start * per, mine.stop * per)
        return self.weights.read(self.stored[name], rows).reshape(local.shape)

    def begin(self, ref: str) -> None:
        """Note that the network is being moved. Raises: InputError if it was before."""
        if self._moved:
            raise InputError(
                f"{ref}: was trained already, and training under fsdp moves the model itself; load it again"
            )
        self._moved = True

    def check_own(self, network: nn.Module, values: Mapping[str, Tensor]) -> None:
        """Refuse to compute at other values than the network has. Raises: InputError."""
        own = dict(network.named_parameters())
        for name, value in values.items():
            if name in own and local_rows(value).data_ptr() != local_rows(own[name]).data_ptr():
                raise InputError(
                    f"{name}: a sharded model is evaluated at its own weights, and these are others; "
                    f"{REPLICATED}"
                )


def local_rows(parameter: Tensor) -> Tensor:
    """The rows of a parameter that this process holds, all where it is not sharded; the memory itself."""
    return cast("Tensor", cast("Any", parameter).to_local()) if is_sharded(parameter) else parameter


def shard_rows(count: int, rank: int, size: int) -> range:
    """The rows, of so many, that a process holds."""
    each = -(-count // size)
    return range(min(rank * each, count), min((rank + 1) * each, count))


def like(parameter: Tensor, rows: Tensor) -> Tensor:
    """A tensor that is sharded as another, of which this process has these rows."""
    from torch.distributed.tensor import DTensor

    of = cast("DTensor", parameter)
    return DTensor.from_local(
        rows, of.device_mesh, of.placements, run_check=False, shape=of.shape, stride=of.stride()
    )


def is_sharded(tensor: Tensor) -> bool:
    """Whether other processes have other rows of a tensor."""
    return hasattr(tensor, "to_local")


@contextmanager
def _without_parameters() -> Iterator[None]:
    """Parameters of modules made meanwhile have a shape and no memory; buffers are computed."""

    def emptied(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(emptied)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def _blocks(network: nn.Module) -> Sequence[nn.Module]:
    """The layers that are gathered one at a time, none of which shares a parameter with what is outside."""
    names = set(getattr(network, "_no_split_modules", None) or ())
    named = [module for module in network.modules() if type(module).__name__ in names]
    blocks = stacked(network) or [module for module in named if not _inside(module, named)]
    uses: dict[int, int] = {}
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    return [block for block in dict.fromkeys(blocks) if all(uses[id(p)] == 1 for p in block.parameters())]


def _inside(module: nn.Module, others: Sequence[nn.Module]) -> bool:
    return any(module is not other and module in set(other.modules()) for other in others)


def _sample(weights: Weights) -> str:
    """A digest of names, shapes and the first row of every tensor: enough to tell apart two trainings."""
    digest = xxhash.xxh3_64()
    for name, spec in weights.specs.items():
        digest.update(f"{name} {spec}".encode())
        digest.update(raw_bytes(weights.read(name, slice(0, 1) if spec.shape else None)))
    return digest.hexdigest()


def _check_fits(ref: str, network: nn.Module, weights: Weights, stored: Mapping[str, str]) -> None:
    """Refuse a config.json of other shapes than the weights, and parameters that have no rows."""
    for name, parameter in network.named_parameters():
        if parameter.dim() == 0:
            raise InputError(f"{ref}: {name!r} is a single number, which has no rows to shard; {REPLICATED}")
        if name in stored and (found := weights.spec(stored[name]).shape) != tuple(parameter.shape):
            raise mismatched(ref, name, found, parameter.shape)
