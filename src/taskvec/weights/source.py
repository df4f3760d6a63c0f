"""The read-only mapping from names to tensors that every kind of checkpoint is opened as."""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
import xxhash
from torch import Tensor

from taskvec.errors import InputError
from taskvec.registry import nearest
from taskvec.weights.dtypes import NAMES, raw_bytes

BLOCK = 1 << 20
"""Elements read at a time: float32 blocks of 4 MiB stay in cache through a whole expression."""

THREADS = 4


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a header says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """How many elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size in bytes when stored densely."""
        return self.numel * self.dtype.itemsize


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice | None]:
    """Slices of the first axis of about ``BLOCK`` elements; ``None`` where one is enough."""
    numel = math.prod(shape)
    if numel <= BLOCK:
        yield None
        return
    step = max(1, BLOCK * shape[0] // numel)
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


class Direction:
    """A mapping of tensors that is a direction, not a point: ``open_weights`` refuses it."""


class Weights(Mapping[str, Tensor], ABC):
    """A point in weight space: tensors by name, read when asked for.

    Iteration gives every tensor once, in file order, under its first name; reading an alias of a
    tied tensor works too. All tensors are on the CPU. Those of a module or a mapping are the tensors
    themselves, so copy before writing into one.

    Attributes:
        ref: what the user called it; opens error messages.
        identity: equal for two openings of the same unchanged files.
        tied: alias -> the name under which the tensor is stored.
        folder: where the config and tokenizer files lie, if anywhere.
        metadata: the free text of a safetensors header.
        files: what is read from disk, and so must not be written to.
    """

    by_rows = True
    """Whether reading a tensor in pieces costs about what reading it whole does."""
    frozen = True
    """Whether the content cannot change behind our back, so that its fingerprint may be kept."""

    def __init__(
        self,
        ref: str,
        specs: Mapping[str, TensorSpec],
        identity: Hashable,
        *,
        tied: Mapping[str, str] | None = None,
        folder: Path | None = None,
        metadata: Mapping[str, str] | None = None,
        files: tuple[Path, ...] = (),
    ) -> None:
        self.ref = ref
        self.identity = identity
        self.tied: Mapping[str, str] = dict(tied or {})
        self.folder = folder
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.files = files
        self._specs = specs
        self._fingerprint: str | None = None

    @abstractmethod
    def _read(self, name: str, rows: slice | None) -> Tensor:
        """The tensor stored under ``name``, or some of its rows."""

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """The tensor called ``name``, or the slice ``rows`` of its first axis.

        Raises: KeyError for a name that is not there.
        """
        return self._read(self._stored_name(name), rows)

    def spec(self, name: str) -> TensorSpec:
        """Shape and dtype of ``name``, from the header alone."""
        return self._specs[self._stored_name(name)]

    def row_blocks(self, name: str) -> Iterator[slice | None]:
        """Slices of the first axis that cover ``name`` in order; ``None`` stands for the whole."""
        return row_blocks(self.spec(name).shape) if self.by_rows else iter((None,))

    def fingerprint(self) -> str:
        """Digest (xxh3-128) of names, shapes, dtypes and content; sharding and kind of file do not matter.

        Cost: one read of everything, once for an object whose content cannot change.
        """
        if self._fingerprint is not None:
            return self._fingerprint
        with ThreadPoolExecutor(THREADS) as pool:
            digests = pool.map(self._digest, sorted(self._specs))
            folded = xxhash.xxh3_128(b"".join(digests)).hexdigest()
        if self.frozen:
            self._fingerprint = folded
        return folded

    def _digest(self, name: str) -> bytes:
        spec = self._specs[name]
        shape = "x".join(map(str, spec.shape))
        digest = xxhash.xxh3_128(f"{name}\0{NAMES[spec.dtype]}\0{shape}\0".encode())
        for rows in self.row_blocks(name):
            digest.update(raw_bytes(self._read(name, rows)))
        return digest.digest()

    def close(self) -> None:
        """Let go of open files. Tensors read before stay valid."""

    def _stored_name(self, name: str) -> str:
        stored = self.tied.get(name, name)
        if stored not in self._specs:
            raise KeyError(f"{self.ref}: no tensor called {name!r}; {nearest(name, self._specs)}")
        return stored

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._specs or name in self.tied

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<weights {self.ref}: {len(self)} tensors>"

    # Identity, not content: comparing two checkpoints tensor by tensor must be asked for by name.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __add__(self, other: object) -> "Weights":
        if isinstance(other, Weights):
            raise TypeError("weights + weights has no meaning; add a task vector, or use TaskVector.between")
        return NotImplemented

    def __sub__(self, other: object) -> "Weights":
        if isinstance(other, Weights):
            raise TypeError("weights - weights is a task vector; write TaskVector.between(base, tuned)")
        return NotImplemented


class MemoryWeights(Weights):
    """Tensors of a mapping or a module, as they are at the moment of reading."""

    frozen = False

    def __init__(
        self,
        ref: str,
        tensors: Mapping[str, Tensor],
        identity: Hashable = None,
        *,
        folder: Path | None = None,
        files: tuple[Path, ...] = (),
    ) -> None:
        specs = {name: spec_of(ref, name, value) for name, value in tensors.items()}
        tied = shared_names(tensors)
        # The tensors are kept alive here, so their addresses belong to nobody else.
        places = ((name, value.data_ptr(), specs[name]) for name, value in tensors.items())
        identity = identity or ("memory", hash(tuple(places)))
        stored = {name: spec for name, spec in specs.items() if name not in tied}
        super().__init__(ref, stored, identity, tied=tied, folder=folder, files=files)
        self._tensors = tensors

    def _read(self, name: str, rows: slice | None) -> Tensor:
        tensor = self._tensors[name].detach()
        return (tensor if rows is None else tensor[rows]).cpu()


def spec_of(ref: str, name: object, value: object) -> TensorSpec:
    """The spec of a tensor in memory.

    Raises: InputError for anything that is no dense tensor, or that no safetensors file can hold.
    """
    if not isinstance(name, str):
        raise InputError(f"{ref}: name {name!r}, expected a string")
    if not isinstance(value, Tensor):
        raise InputError(f"{ref}: {name!r} is {type(value).__name__}, expected a tensor")
    if value.layout != torch.strided or value.device.type == "meta" or value.dtype not in NAMES:
        found = f"{value.layout}, {value.dtype}, {value.device}"
        raise InputError(f"{ref}: {name!r} is {found}, expected a dense tensor with data and a plain dtype")
    return TensorSpec(tuple(value.shape), value.dtype)


def shared_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of the very same memory: alias -> the first name. Partly overlapping views do not count."""
    first: dict[Hashable, str] = {}
    aliases: dict[str, str] = {}
    for name, value in tensors.items():
        if value.numel() == 0:
            continue
        key = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if first.setdefault(key, name) != name:
            aliases[name] = first[key]
    return aliases
