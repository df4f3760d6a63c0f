"""What is read lazily, tensor by tensor; weights, the mapping that every kind of checkpoint is opened as."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from numpy.typing import NDArray

from taskvec.errors import CorruptFile
from taskvec.later import torch
from taskvec.reading import shown
from taskvec.registry import nearest
from taskvec.weights.blocks import TensorSpec, block_size, block_step, row_blocks
from taskvec.weights.change import Change
from taskvec.weights.dtypes import array_of
from taskvec.weights.tally import Tally, folded

if TYPE_CHECKING:
    from torch import Tensor

THREADS = 4
"""Threads that take digests; more of them would only wait for the disk or the memory."""


class Lazy(ABC):
    """What is read by the names of tensors and made, when it is read, of parts that are lazy themselves.

    What reading takes, and what may be expected of it, follows from the parts; a class says only what it is
    made of (``parts``, ``made_of``) and what it adds to that (``splits``, ``own_files``, ``own_bytes``).
    """

    parts: Sequence["Lazy"] = ()
    """What it is made of; nothing if it lies in files or in memory."""
    splits: bool = True
    """Whether some rows of a tensor are made of the same rows of the parts alone."""
    own_files: tuple[Path, ...] = ()
    """What is read from disk beside the files of the parts."""

    @abstractmethod
    def __contains__(self, name: object) -> bool: ...

    def made_of(self, name: str) -> Sequence[tuple["Lazy", str]]:
        """The parts that ``name`` is made of, each with the name that the tensor has there."""
        return [(part, name) for part in self.parts if name in part]

    def own_bytes(self, name: str) -> int:
        """Bytes that making one of the ``row_blocks`` of ``name`` takes beside reading the parts, about."""
        return 0

    def working_bytes(self, name: str) -> int:
        """Bytes that reading one of the ``row_blocks`` of ``name`` takes, about."""
        if not self.parts:
            return self.own_bytes(name)
        return self.own_bytes(name) + sum(part.working_bytes(there) for part, there in self.made_of(name))

    def in_rows(self, name: str) -> bool:
        """Whether reading ``name`` in pieces costs about what reading it whole does."""
        if not self.parts:
            return self.splits
        return self.splits and all(part.in_rows(there) for part, there in self.made_of(name))

    def block_size(self, name: str, shape: tuple[int, ...]) -> int:
        """Elements of the largest of the ``row_blocks`` of ``name``, which has this shape."""
        # Of small tensors, of which there may be many thousand, nothing need be asked.
        return block_size(shape, whole=block_step(shape) is None or not self.in_rows(name))

    @property
    def by_rows(self) -> bool:
        """Whether ``in_rows`` holds for every tensor."""
        return self.splits and all(part.by_rows for part in self.parts)

    @property
    def frozen(self) -> bool:
        """Whether the content cannot change behind our back, so that its fingerprint may be kept."""
        return all(part.frozen for part in self.parts)

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read from disk, and so must not be written to."""
        return tuple(dict.fromkeys([*self.own_files, *(file for part in self.parts for file in part.files)]))

    @property
    def inputs(self) -> "tuple[Weights, ...]":
        """The weights, themselves not computed, that this is computed from."""
        return tuple(dict.fromkeys(weights for part in self.parts for weights in part.inputs))

    def prepare(self, precision: "torch.dtype | None" = None) -> None:
        """Take the passes over the model that reading needs; else the first read does.

        Args:
            precision: of computing, float32 by default.
        """
        for part in self.parts:
            part.prepare(precision)


class Site(NamedTuple):
    """Where some of the weights of a model lie.

    Attributes:
        prefix: what the names of its tensors begin with.
        folder: from the folder of the model; empty for that itself.
        file: the name of the file, or of the index, that was opened.
        chosen: whether the user named that file, rather than the folder.
    """

    prefix: str = ""
    folder: str = ""
    file: str = ""
    chosen: bool = False


class Direction:
    """A mapping of tensors that is a direction, not a point: ``open_weights`` refuses it."""


class Weights(Lazy, Mapping[str, "Tensor"]):
    """A point in weight space: tensors by name, read when asked for.

    Iteration gives every tensor once, in file order, under its first name; reading an alias of a
    tied tensor works too. All tensors are on the CPU. Those of a module or a mapping are the tensors
    themselves, so copy before writing into one.

    Attributes:
        ref: what the user called it; opens error messages.
        identity: equal for two openings of the same unchanged files.
        tied: alias -> the name under which the tensor is stored.
        folder: where the config and tokenizer files lie, if anywhere; by default that of the first part.
        metadata: the free text of a safetensors header; by default that of the first part.
        tally: digests of what was read, while they are gathered.
        changes: how far each tensor of an edit went, once all have been written.
        sites: where they lie in their folder; by default as those of the first part.
        texts: name -> text of files of the folder that do not describe these weights as they lie there; by
            default those of the first part.
        makes: name -> what gives the text of a file that the folder lacks and a model needs; nothing is
            written for an empty one. By default those of the first part.
    """

    stated: Callable[[], str | None] | None = None
    """Gives the fingerprint that weights elsewhere have to have, if the manifest beside them states one."""
    adapter: Path | None = None
    """The settings beside the weights, if these are no model's but the factors of an adapter."""

    def __init__(
        self,
        ref: str,
        specs: Mapping[str, TensorSpec],
        identity: Hashable,
        *,
        parts: Sequence[Lazy] = (),
        tied: Mapping[str, str] | None = None,
        folder: Path | None = None,
        metadata: Mapping[str, str] | None = None,
        files: tuple[Path, ...] = (),
    ) -> None:
        first = next(iter(parts), None)
        like = first if isinstance(first, Weights) else None
        self.ref = ref
        self.identity = identity
        self.parts = tuple(parts)
        self.tied: Mapping[str, str] = dict(tied or {})
        self.folder: Path | None = folder or (None if like is None else like.folder)
        self.metadata: Mapping[str, str] = dict(metadata or ({} if like is None else like.metadata))
        self.own_files = files
        self._specs = specs
        self._fingerprint: str | None = None
        self.tally: Tally | None = None
        self.changes: Mapping[str, Change] | None = None
        self.sites: tuple[Site, ...] = () if like is None else like.sites
        self.texts: Mapping[str, str] = {} if like is None else like.texts
        self.makes: Mapping[str, Callable[[], str]] = {} if like is None else like.makes

    @abstractmethod
    def _read(self, name: str, rows: slice | None) -> "Tensor":
        """The tensor stored under ``name``, or some of its rows."""

    def read(self, name: str, rows: slice | None = None) -> "Tensor":
        """The tensor called ``name``, or some of its rows: a slice of its first axis, or of all axes but the
        last taken as one if there are more than two.

        Raises: KeyError for a name that is not there.
        """
        stored = self._stored_name(name)
        tensor = self._read(stored, rows)
        if self.tally is not None:
            self.tally.add(stored, self._specs[stored], rows, tensor)
        return tensor

    def _read_array(self, name: str, rows: slice | None) -> NDArray[Any]:
        """As ``_read``, for ``read_array``; without torch where it can be."""
        return array_of(self._read(name, rows))

    def read_array(self, name: str, rows: slice | None = None) -> NDArray[Any]:
        """As ``read``, as an array, which files give without torch: bits of bfloat16 and 8-bit floats.

        Raises: KeyError for a name that is not there.
        """
        stored = self._stored_name(name)
        array = self._read_array(stored, rows)
        if self.tally is not None:
            self.tally.add(stored, self._specs[stored], rows, array)
        return array

    def read_with_change(self, name: str, rows: slice | None = None) -> "tuple[Tensor, Change | None]":
        """As ``read``, and how far that is from what it was made of, where the weights are an edit."""
        made = self.read(name, rows)
        return made, self.change_to(name, rows, made)

    def array_with_change(self, name: str, rows: slice | None = None) -> tuple[NDArray[Any], Change | None]:
        """As ``read_with_change``, as ``read_array``."""
        made, changed = self.read_with_change(name, rows)
        return array_of(made), changed

    def change_to(self, name: str, rows: slice | None, made: "Tensor") -> Change | None:
        """How far ``made``, which was read here before, is from what it was made of."""
        return None

    @property
    def inputs(self) -> "tuple[Weights, ...]":
        """The weights that this is computed from; itself if it is not computed."""
        return super().inputs or (self,)

    def own_bytes(self, name: str) -> int:
        """Bytes of one of the ``row_blocks`` of ``name``."""
        spec = self.spec(name)
        return self.block_size(name, spec.shape) * spec.itemsize

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Shape and dtype of every tensor, in file order."""
        return self._specs

    def spec(self, name: str) -> TensorSpec:
        """Shape and dtype of ``name``, from the header alone."""
        return self._specs[self._stored_name(name)]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.nbytes for spec in self._specs.values())

    def row_blocks(self, name: str) -> Iterator[slice | None]:
        """Slices of the rows that cover ``name`` in order; ``None`` stands for the whole."""
        shape = self.spec(name).shape
        return row_blocks(shape) if block_step(shape) and self.in_rows(name) else iter((None,))

    def fingerprint(self) -> str:
        """Digest (xxh3-128) of names, shapes, dtypes and content; sharding and kind of file do not matter.

        Cost: one read of everything, once for an object whose content cannot change; less after
        ``fingerprint_while_reading``.

        Raises: CorruptFile for weights elsewhere whose manifest states another.
        """
        if self._fingerprint is not None:
            return self._fingerprint
        fingerprint = self._as_stated(folded(self.digests()))
        if self.frozen:
            self._fingerprint, self.tally = fingerprint, None
        return fingerprint

    def _as_stated(self, fingerprint: str) -> str:
        stated = None if self.stated is None else self.stated()
        if stated not in (None, fingerprint):
            raise CorruptFile(
                f"{self.ref}: what was read has the fingerprint {fingerprint}, its taskvec.json states "
                f"{shown(stated)}; upload it again, or without that file if it was changed on purpose"
            )
        return fingerprint

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
            self._fingerprint, self.tally = self._as_stated(folded(digests)), None

    def _digest(self, tally: Tally, name: str) -> bytes:
        spec = self._specs[name]
        digest = tally.digest(name)
        if digest is None:
            for rows in self.row_blocks(name):
                tally.add(name, spec, rows, self._read_array(name, rows))
            digest = tally.digest(name)
        assert digest is not None
        return digest

    def close(self) -> None:
        """Let go of open files. Tensors read before stay valid."""
        for part in self.parts:
            if isinstance(part, Weights):
                part.close()

    def _stored_name(self, name: str) -> str:
        stored = self.tied.get(name, name)
        if stored not in self._specs:
            raise KeyError(f"{self.ref}: no tensor called {name!r}; {nearest(name, self._specs)}")
        return stored

    def __getitem__(self, name: str) -> "Tensor":
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
