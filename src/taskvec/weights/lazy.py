"""The read-only mapping from names to tensors that every kind of checkpoint is opened as."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from taskvec.registry import nearest
from taskvec.weights.blocks import TensorSpec, block_size, row_blocks
from taskvec.weights.change import Change
from taskvec.weights.tally import Tally, folded

THREADS = 4
"""That take digests; more would wait for the disk or the memory."""


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
