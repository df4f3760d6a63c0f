"""Weights in memory: those of a module or a mapping."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from taskvec.errors import InputError
from taskvec.later import torch
from taskvec.weights.blocks import TensorSpec, rows_of
from taskvec.weights.dtypes import code_of
from taskvec.weights.lazy import Weights

if TYPE_CHECKING:
    from torch import Tensor


class MemoryWeights(Weights):
    """Tensors of a mapping or a module, as they are at the moment of reading."""

    frozen = False

    def __init__(
        self,
        ref: str,
        tensors: "Mapping[str, Tensor]",
        identity: Hashable = None,
        *,
        folder: Path | None = None,
        files: tuple[Path, ...] = (),
    ) -> None:
        specs = {name: _spec_of(ref, name, value) for name, value in tensors.items()}
        tied = _shared_names(tensors)
        # The tensors are kept alive here, so their addresses belong to nobody else.
        places = ((name, value.data_ptr(), specs[name]) for name, value in tensors.items())
        identity = identity or ("memory", hash(tuple(places)))
        stored = {name: spec for name, spec in specs.items() if name not in tied}
        super().__init__(ref, stored, identity, tied=tied, folder=folder, files=files)
        self._tensors = tensors

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        tensor = self._tensors[name].detach()
        return rows_of(tensor, rows).cpu().resolve_conj().resolve_neg()


def _spec_of(ref: str, name: object, value: object) -> TensorSpec:
    """The spec of a tensor in memory.

    Raises: InputError for anything that is no dense tensor, or that no safetensors file can hold.
    """
    if not isinstance(name, str):
        raise InputError(f"{ref}: name {name!r}, expected a string")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{ref}: name {name!r} holds half a character, expected text") from None
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{ref}: {name!r} is {type(value).__name__}, expected a tensor")
    if (
        value.is_nested
        or value.layout != torch.strided
        or value.device.type == "meta"
        or code_of(value.dtype) is None
    ):
        layout = "nested" if value.is_nested else value.layout
        raise InputError(
            f"{ref}: {name!r} is {layout}, {value.dtype}, {value.device}, expected a dense tensor with data "
            "and a plain dtype"
        )
    return TensorSpec(tuple(value.shape), value.dtype)


def _shared_names(tensors: "Mapping[str, Tensor]") -> dict[str, str]:
    """Names of the very same memory: alias -> the first name. Partly overlapping views do not count."""
    first: dict[Hashable, str] = {}
    aliases: dict[str, str] = {}
    for name, value in tensors.items():
        if value.numel() == 0:
            continue
        view = (tuple(value.shape), value.stride(), value.is_conj(), value.is_neg())
        key = (value.device, value.data_ptr(), value.dtype, *view)
        if first.setdefault(key, name) != name:
            aliases[name] = first[key]
    return aliases
