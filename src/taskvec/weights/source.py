"""The read-only mapping from names to tensors that every kind of checkpoint is opened as."""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
import xxhash
from torch import Tensor

from taskvec.errors import InputError
from taskvec.registry import nearest
from taskvec.weights.change import Change
from taskvec.weights.dtypes import NAMES, raw_bytes

BLOCK = 1 << 19
"""Elements that are read, computed, written and digested at a time, so that they stay in cache from one step
to the next; another number would make other fingerprints."""

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
    """Slices of the rows of about ``BLOCK`` elements; ``None`` where one block is enough.

    The rows of a tensor are its entries along all axes but the last, or along its only axis.
    """
    step = _step(shape)
    if step is None:
        yield None
        return
    rows = row_count(shape)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def rows_shape(shape: tuple[int, ...], rows: slice | None) -> tuple[int, ...]:
    """The shape of some rows of a tensor: of more than two axes, all but the last are one then."""
    if rows is None:
        return shape
    return (len(range(*rows.indices(row_count(shape)))), *shape[1:][-1:])


def rows_of(tensor: Tensor, rows: slice | None) -> Tensor:
    """Some rows of a tensor."""
    if rows is None:
        return tensor
    shape = tuple(tensor.shape)
    return (tensor.reshape(row_count(shape), row_size(shape)) if len(shape) > 2 else tensor)[rows]


def row_count(shape: tuple[int, ...]) -> int:
    """How many rows a tensor has."""
    return shape[0] if len(shape) == 1 else math.prod(shape[:-1])


def row_size(shape: tuple[int, ...]) -> int:
    """How many elements a row has."""
    return 1 if len(shape) == 1 else shape[-1]


def _step(shape: tuple[int, ...]) -> int | None:
    """How many rows a block has; ``None`` where one block is enough."""
    return None if math.prod(shape) <= BLOCK else max(1, BLOCK // row_size(shape))


def block_size(shape: tuple[int, ...], *, whole: bool = False) -> int:
    """Elements of the largest of the ``row_blocks``."""
    numel = math.prod(shape)
    return numel if whole or not shape else min(numel, max(BLOCK, row_size(shape)))


class Tally:
    """Digests of the blocks of one set of weights, gathered as they are read, in any order, by any thread."""

    def __init__(self) -> None:
        self._blocks: dict[str, tuple[TensorSpec, dict[int, bytes]]] = {}
        self._whole: dict[str, bytes] = {}

    def add(self, name: str, spec: TensorSpec, rows: slice | None, tensor: Tensor) -> None:
        """Digest what was read, if it is the whole tensor or one of its ``row_blocks``."""
        if name in self._whole:
            return
        _, known = self._blocks.setdefault(name, (spec, {}))
        if rows is None:
            for block in row_blocks(spec.shape):
                start = 0 if block is None else block.start
                if start not in known:
                    known[start] = _digest_of(rows_of(tensor, block))
        elif rows.start not in known and _is_block(spec.shape, rows):
            known[rows.start] = _digest_of(tensor)
        self._fold(name, spec, known)

    def merge(self, other: "Tally") -> None:
        """Take over the digests that another has gathered."""
        self._whole.update(other._whole)
        for name, (spec, blocks) in other._blocks.items():
            _, known = self._blocks.setdefault(name, (spec, {}))
            known.update(blocks)
            self._fold(name, spec, known)

    def digest(self, name: str) -> bytes | None:
        """The digest of a tensor, or ``None`` while blocks of it are missing."""
        return self._whole.get(name)

    def _fold(self, name: str, spec: TensorSpec, known: Mapping[int, bytes]) -> None:
        """One digest of a tensor for those of its blocks, once all are there."""
        step = _step(spec.shape)
        if len(known) == (1 if step is None else -(-row_count(spec.shape) // step)):
            header = f"{name}\0{NAMES[spec.dtype]}\0{'x'.join(map(str, spec.shape))}\0".encode()
            blocks = b"".join(known[start] for start in sorted(known))
            self._whole[name] = xxhash.xxh3_128_digest(header + blocks)
            self._blocks.pop(name, None)


def _is_block(shape: tuple[int, ...], rows: slice) -> bool:
    step = _step(shape)
    if step is None or rows.start is None or rows.step not in (None, 1):
        return False
    return bool(rows.start % step == 0 and rows.stop == min(rows.start + step, row_count(shape)))


def _digest_of(tensor: Tensor) -> bytes:
    return xxhash.xxh3_128_digest(raw_bytes(tensor))


def folded(digests: Mapping[str, bytes]) -> str:
    """The fingerprint of weights whose tensors have these digests."""
    return xxhash.xxh3_128_hexdigest(b"".join(digests[name] for name in sorted(digests)))


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
        tally: digests of what was read, while they are gathered.
        changes: how far each tensor of an edit went, once all have been written.
    """

    adapter: Path | None = None
    """The settings beside the weights, if these are no model's but the factors of an adapter."""
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
        self.tally: Tally | None = None
        self.changes: Mapping[str, Change] | None = None

    @abstractmethod
    def _read(self, name: str, rows: slice | None) -> Tensor:
        """The tensor stored under ``name``, or some of its rows."""

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """The tensor called ``name``, or some of its rows: a slice of its first axis, or of all axes but the
        last taken as one if there are more than two.

        Raises: KeyError for a name that is not there.
        """
        stored = self._stored_name(name)
        tensor = self._read(stored, rows)
        if self.tally is not None:
            self.tally.add(stored, self._specs[stored], rows, tensor)
        return tensor

    def read_with_change(self, name: str, rows: slice | None = None) -> tuple[Tensor, Change | None]:
        """As ``read``, and how far that is from what it was made of, where the weights are an edit."""
        made = self.read(name, rows)
        return made, self.change_to(name, rows, made)

    def change_to(self, name: str, rows: slice | None, made: Tensor) -> Change | None:
        """How far ``made``, which was read here before, is from what it was made of."""
        return None

    @property
    def inputs(self) -> "tuple[Weights, ...]":
        """The weights that this is computed from; itself if it is not computed."""
        return (self,)

    def prepare(self) -> None:
        """Do ahead what reading each tensor once needs, such as a pass over the whole model."""

    def working_bytes(self, name: str) -> int:
        """Bytes that reading one of the ``row_blocks`` of ``name`` takes, about."""
        spec = self.spec(name)
        return block_size(spec.shape, whole=not self.in_rows(name)) * spec.dtype.itemsize

    def spec(self, name: str) -> TensorSpec:
        """Shape and dtype of ``name``, from the header alone."""
        return self._specs[self._stored_name(name)]

    def in_rows(self, name: str) -> bool:
        """Whether reading ``name`` in pieces costs about what reading it whole does."""
        return self.by_rows

    def row_blocks(self, name: str) -> Iterator[slice | None]:
        """Slices of the rows that cover ``name`` in order; ``None`` stands for the whole."""
        return row_blocks(self.spec(name).shape) if self.in_rows(name) else iter((None,))

    def fingerprint(self) -> str:
        """Digest (xxh3-128) of names, shapes, dtypes and content; sharding and kind of file do not matter.

        Cost: one read of everything, once for an object whose content cannot change; less after
        ``fingerprint_while_reading``.
        """
        if self._fingerprint is not None:
            return self._fingerprint
        found = folded(self.digests())
        if self.frozen:
            self._fingerprint, self.tally = found, None
        return found

    def digests(self) -> dict[str, bytes]:
        """The digest of each tensor: of its name, shape, dtype and content."""
        digest = partial(self._digest, self.tally or Tally())
        with ThreadPoolExecutor(THREADS) as pool:
            return dict(zip(self._specs, pool.map(digest, self._specs), strict=True))

    def fingerprint_while_reading(self) -> None:
        """From now on digest what is read, so that a fingerprint after a pass over the weights is free."""
        if self.frozen and self._fingerprint is None and self.tally is None:
            self.tally = Tally()

    def keep_outcome(self, digests: Mapping[str, bytes], changes: Mapping[str, Change]) -> None:
        """Keep what writing all tensors has told: what changed, and with the digests the fingerprint."""
        self.changes = changes
        if self.frozen:
            self._fingerprint, self.tally = folded(digests), None

    def _digest(self, tally: Tally, name: str) -> bytes:
        spec = self._specs[name]
        found = tally.digest(name)
        if found is None:
            for rows in self.row_blocks(name):
                tally.add(name, spec, rows, self._read(name, rows))
            found = tally.digest(name)
        assert found is not None
        return found

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
        return rows_of(tensor, rows).cpu().resolve_conj().resolve_neg()


def spec_of(ref: str, name: object, value: object) -> TensorSpec:
    """The spec of a tensor in memory.

    Raises: InputError for anything that is no dense tensor, or that no safetensors file can hold.
    """
    if not isinstance(name, str):
        raise InputError(f"{ref}: name {name!r}, expected a string")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{ref}: name {name!r} holds half a character, expected text") from None
    if not isinstance(value, Tensor):
        raise InputError(f"{ref}: {name!r} is {type(value).__name__}, expected a tensor")
    if (
        value.is_nested
        or value.layout != torch.strided
        or value.device.type == "meta"
        or value.dtype not in NAMES
    ):
        kind = "nested" if value.is_nested else value.layout
        found = f"{kind}, {value.dtype}, {value.device}"
        raise InputError(f"{ref}: {name!r} is {found}, expected a dense tensor with data and a plain dtype")
    return TensorSpec(tuple(value.shape), value.dtype)


def shared_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
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
