"""A keyed library of task vectors: what is nearest to an input says which vectors serve it.

The pool of modulators of L2M (Schmied et al. 2023) and the router of MASS, in weight space.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from taskvec._version import __version__
from taskvec.arguments import checked
from taskvec.errors import BaseMismatch, CorruptFile, InputError, KeyMismatch, NonFinite, UnknownName
from taskvec.later import torch
from taskvec.progress import Watch, unwatched
from taskvec.reading import inside, local_path, printable, read_mapping, shown
from taskvec.registry import nearest
from taskvec.vectors.base import Base, check_bound
from taskvec.vectors.info import BaseInfo, HeaderInfo
from taskvec.vectors.vector import TaskVector
from taskvec.weights import open_weights, save_weights
from taskvec.weights.staging import MANIFEST, SUFFIX, check_target, files_in, staged
from taskvec.writing import write_json

if TYPE_CHECKING:
    from torch import Tensor

KIND: Literal["library of task vectors"] = "library of task vectors"

_NAME = re.compile(r"[\w-][\w.-]{0,99}")
_KEYS = f"keys{SUFFIX}"


class LibraryInfo(HeaderInfo):
    """The manifest of a library: what lies beside it."""

    kind: Literal["library of task vectors"]
    format: Literal[1] = 1
    names: tuple[str, ...] = Field(min_length=1, max_length=100_000)
    base: BaseInfo = BaseInfo()


class Library:
    """Named vectors of one base, each with one key or several: the features of inputs that it is for.

    Args:
        vectors: by name; of any kind. Names are letters, digits and ``_ . -``, not beginning with a dot.
        keys: by the same names, (d,) or (K, d) each, floating point; or all of them as one (T, d).
        ref: opens error messages.

    Attributes:
        vectors: as given.
        keys: by name, (K, d) each, on the CPU.

    Raises: InputError for names or shapes that do not fit, or a key of length zero; NonFinite; BaseMismatch;
        KeyMismatch.
    """

    @checked
    def __init__(
        self,
        vectors: Mapping[str, TaskVector],
        keys: "Mapping[str, Tensor] | Tensor",
        ref: str = "library",
    ) -> None:
        _check_names(ref, list(vectors))
        if isinstance(keys, torch.Tensor):
            if keys.ndim != 2 or len(keys) != len(vectors):
                raise InputError(f"{ref}: keys of shape {tuple(keys.shape)}, expected ({len(vectors)}, d)")
            keys = dict(zip(vectors, keys, strict=True))
        self.ref = ref
        self.vectors: Mapping[str, TaskVector] = dict(vectors)
        self.keys: Mapping[str, Tensor] = _checked_keys(ref, self.names, keys)
        self._zero = _sum_of_nothing(ref, self.vectors)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the vectors, in their order."""
        return tuple(self.vectors)

    @property
    def dim(self) -> int:
        """d, the numbers of a key."""
        return int(self._stacked.shape[1])

    @property
    def base(self) -> Base:
        """What all vectors lead away from."""
        return self._zero.base

    def add(self, name: str, vector: TaskVector, key: "Tensor") -> "Library":
        """A library with one more entry, the last.

        Raises: InputError for a name that is taken, or a key of another dimension; BaseMismatch.
        """
        if name in self.vectors:
            raise InputError(f"{self.ref}: holds {name!r} already; choose another name")
        return Library({**self.vectors, name: vector}, {**self.keys, name: key}, self.ref)

    def similarities(self, features: "Tensor") -> "Tensor":
        """The cosine with the nearest key of each vector, float64: (T,) for (d,), (N, T) for (N, d).

        A feature of length zero has cosine 0 with everything.
        """
        queries = self._queries(features)
        cosines = torch.nn.functional.normalize(queries, dim=-1) @ self._stacked.mT
        pieces = torch.split(cosines, [len(key) for key in self.keys.values()], dim=-1)
        return torch.stack([piece.amax(-1) for piece in pieces], dim=-1)

    @checked
    def select(self, features: "Tensor", k: int = 1, *, temperature: float = 0.1) -> "Tensor":
        """How much of each vector serves an input: weights (T,) for (d,), (N, T) for (N, d), float32.

            w = softmax(cosine / temperature) over the k nearest keys, 0 elsewhere

        With ``k = 1`` the nearest vector has weight 1. Of equals the first is nearest, so that a feature of
        length zero, which is near to nothing, takes the first.

        Raises: InputError for a k outside 1 to T, a temperature that is not positive, or features of another
            dimension than the keys; NonFinite.
        """
        if isinstance(k, bool) or not 1 <= k <= len(self.vectors):
            raise InputError(f"k: {k}, expected 1 to {len(self.vectors)}, the number of vectors")
        if not 0 < temperature < float("inf"):
            raise InputError(f"temperature: {temperature}, expected a positive number")
        near = self.similarities(features)
        height, place = near.sort(dim=-1, descending=True, stable=True)
        below = height[..., :k] - height[..., :1]  # 0 or less, so that no temperature is too small
        weights = torch.softmax(below / temperature, dim=-1)
        return torch.zeros_like(near).scatter(-1, place[..., :k], weights).float()

    def vector(self, weights: "Mapping[str, float] | Sequence[float] | Tensor") -> TaskVector:
        """The weighted sum of the vectors, lazily; weights by name or in order, as ``select`` gives them.

        Raises: InputError for another number of weights; UnknownName; NonFinite.
        """
        total = self._zero
        for name, weight in self._named(weights).items():
            total = total + float(weight) * self.vectors[name]
        return total

    def save(
        self, path: str | Path, *, force: bool = False, watch: Watch = unwatched, **options: Any
    ) -> Path:
        """Write a folder: a manifest, the keys, and every vector in a file of its own that ``load`` opens.

        Args:
            force: replace an output that exists and was written here.
            **options: of ``TaskVector.save``, such as ``form="low-rank", rank=8``.

        Returns: the path written.
        Raises: OutputExists; BaseMismatch for adapters that have no base yet; DiskFull; NonFinite.
        """
        target = local_path(path)
        files = [file for vector in self.vectors.values() for file in vector.files]
        _check_folder(target)
        check_target(target, force=force, inputs=files)
        check_bound(self.ref, self.base)
        with staged(target, folder=True, force=force, inputs=files) as work:
            for done, (name, vector) in enumerate(self.vectors.items(), 1):
                vector.save(_place(work, name), **options)
                watch(f"writing {target.name}", done, len(self.vectors))
            save_weights(self.keys, work / _KEYS)
            write_json(work / MANIFEST, {**self._manifest(), "files": files_in(work)})
        return target

    @classmethod
    @checked
    def load(cls, path: str | Path) -> "Library":
        """Open a folder that ``save`` wrote; reads keys, and headers of vectors.

        Raises: InputError if it holds no library; CorruptFile; BaseMismatch.
        """
        folder = local_path(path)
        info = _read_info(folder)
        where = folder / MANIFEST
        _check_names(str(where), list(info.names))
        vectors = {
            name: TaskVector.load(inside(folder, str(_place(Path(), name)), where)) for name in info.names
        }
        stored = open_weights(inside(folder, _KEYS, where))
        for name in info.names:
            if name not in stored:
                raise CorruptFile(f"{folder / _KEYS}: no key of {name!r}; download or write it again")
        return cls(vectors, {name: stored.read(name) for name in info.names}, str(path))

    def __repr__(self) -> str:
        return f"<library {self.ref}: {len(self.vectors)} vectors, keys of {self.dim} numbers>"

    @cached_property
    def _stacked(self) -> "Tensor":
        """All keys, one below the other, of length 1."""
        return torch.nn.functional.normalize(torch.cat(list(self.keys.values())).double(), dim=-1)

    def _queries(self, features: "Tensor") -> "Tensor":
        if features.ndim not in (1, 2) or features.shape[-1] != self.dim:
            raise InputError(
                f"features: shape {tuple(features.shape)}, expected ({self.dim},) or (N, {self.dim})"
            )
        if not bool(features.isfinite().all()):
            raise NonFinite("features: hold NaN or infinity")
        return features.detach().cpu().double()

    def _named(self, weights: "Mapping[str, float] | Sequence[float] | Tensor") -> Mapping[str, float]:
        if isinstance(weights, Mapping):
            for name in weights:
                if name not in self.vectors:
                    raise UnknownName(f"{self.ref}: no vector called {name!r}; {nearest(name, self.vectors)}")
            return weights
        shape = tuple(weights.shape) if isinstance(weights, torch.Tensor) else (len(weights),)
        if shape != (len(self.vectors),):
            raise InputError(f"weights: shape {shape}, expected ({len(self.vectors)},), one a vector")
        return dict(zip(self.vectors, map(float, weights), strict=True))

    def _manifest(self) -> dict[str, Any]:
        base = BaseInfo(ref=self.base.ref, fingerprint=self.base.fingerprint())
        info = LibraryInfo(kind=KIND, names=self.names, base=base)
        return {**info.model_dump(mode="json"), "created_by": f"taskvec {__version__}"}


def _sum_of_nothing(where: str, vectors: Mapping[str, TaskVector]) -> TaskVector:
    """The vectors times 0. Raises: BaseMismatch and KeyMismatch, naming the first that does not fit."""
    zeros = {name: 0.0 * vector for name, vector in vectors.items()}
    total, *_ = zeros.values()
    for name, zero in list(zeros.items())[1:]:
        try:
            total = total + zero
        except (BaseMismatch, KeyMismatch) as error:
            said = str(error).removeprefix("zero vector: ")
            raise type(error)(f"{where}: the vector {name!r}: {said}") from None
    return total


def _check_names(where: str, names: Sequence[str]) -> None:
    if not names:
        raise InputError(f"{where}: no vectors, expected one or more")
    alike: dict[str, str] = {}
    for name in names:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{where}: a vector is called {shown(name)}, expected up to 100 letters, digits and _ . -, "
                "the first no dot; rename it"
            )
        if name.casefold() in alike:
            raise InputError(
                f"{where}: vectors are called {alike[name.casefold()]!r} and {name!r}, which some disks take "
                "for one file; rename one"
            )
        alike[name.casefold()] = name


def _checked_keys(where: str, names: Sequence[str], keys: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Keys (K, d) in the order of the names."""
    if set(keys) != set(names):
        raise InputError(
            f"{where}: keys of {printable(', '.join(keys)) or 'nothing'}, expected one for each of "
            f"{', '.join(names)}"
        )
    made = {name: _checked_key(f"{where}: the key of {name!r}", keys[name]) for name in names}
    dims: dict[int, str] = {}
    for name, key in made.items():
        dims.setdefault(key.shape[1], name)
    if len(dims) > 1:
        (d, first), (other, second), *_ = dims.items()
        raise InputError(f"{where}: the key of {first!r} has {d} numbers and that of {second!r} {other}")
    return made


def _checked_key(where: str, key: "Tensor") -> "Tensor":
    if key.ndim not in (1, 2) or 0 in key.shape or not key.is_floating_point():
        raise InputError(
            f"{where} has shape {tuple(key.shape)} and dtype {str(key.dtype).removeprefix('torch.')}, "
            "expected (d,) or (K, d), floating point"
        )
    if not bool(key.isfinite().all()):
        raise NonFinite(f"{where} holds NaN or infinity")
    rows = key.detach().cpu().reshape(-1, key.shape[-1])
    if not bool(rows.any(-1).all()):
        raise InputError(f"{where} is zero, expected a direction")
    return rows.to(torch.promote_types(key.dtype, torch.float32))


def _check_folder(target: Path) -> None:
    if target.suffix == SUFFIX:
        raise InputError(f"{target}: a name of a file, expected a folder; leave {SUFFIX} away")


def _place(folder: Path, name: str) -> Path:
    return folder / "vectors" / f"{name}{SUFFIX}"


def _read_info(folder: Path) -> LibraryInfo:
    where = inside(folder, MANIFEST, folder)
    if not where.is_file():
        raise InputError(
            f"{folder}: no library of task vectors (it has no {MANIFEST}); make one with "
            "tv.Library(vectors, keys).save(FOLDER)"
        )
    content = read_mapping(where)
    if content.get("kind") != KIND:
        raise InputError(f"{where}: kind {shown(content.get('kind'))}, expected {KIND!r}")
    try:
        return LibraryInfo.parse(str(where), content)
    except InputError as error:
        raise CorruptFile(f"{error}; download or write it again") from None
