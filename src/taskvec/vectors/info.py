"""What a task-vector file says about itself."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, NonNegativeFloat

from taskvec._version import __version__
from taskvec.config import Config
from taskvec.errors import CorruptFile, InputError
from taskvec.reading import parse_json, shown
from taskvec.registry import nearest
from taskvec.weights import Weights
from taskvec.weights.adapters import find_adapter

_FORMAT = 2
KEY = "taskvec"


def _shape(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if min(sizes, default=0) < 0 or math.prod(max(1, size) for size in sizes) >= 1 << 60:
        raise ValueError("no shape of a tensor")
    return sizes


Shape = Annotated[tuple[int, ...], AfterValidator(_shape)]


class HeaderInfo(Config):
    """What the header of a file says under one of our keys. What later versions say beyond it is ignored."""

    model_config = ConfigDict(extra="ignore")

    @classmethod
    def read(cls, weights: Weights, key: str) -> Self:
        """What an open file says under ``key``.

        Raises: CorruptFile if it cannot be read.
        """
        where = f"{weights.ref}: {key!r} in the header"
        content = parse_json(weights.metadata[key], where)
        if not isinstance(content, dict):
            raise CorruptFile(f"{where} is {shown(content)}, expected a mapping; download or write it again")
        try:
            return cls.parse(where, content)
        except InputError as error:
            raise CorruptFile(f"{error}; download or write it again") from None


class BaseInfo(HeaderInfo):
    """The base that a vector was taken from. A fingerprint that is not known is ``None``, never guessed."""

    ref: str | None = None
    fingerprint: Annotated[str, Field(max_length=64)] | None = None


class CompactInfo(HeaderInfo):
    """What a file says of the form that its tensors are stored in."""

    form: str
    settings: dict[str, Any] = Field(default_factory=dict)
    error: NonNegativeFloat
    """What the form lost, as a share of the norm of the vector."""
    errors: dict[str, NonNegativeFloat]
    """The same for every tensor that is stored, in their order."""
    coded: dict[str, Shape] = Field(default_factory=dict)
    """The tensors that are stored in parts, with their shapes; the others are stored as they are."""


class MaskInfo(HeaderInfo):
    """What a file says of the masks that it holds beside a unified vector."""

    method: str
    settings: dict[str, Any] = Field(default_factory=dict)
    factors: dict[str, float]
    """What the unified vector, masked, is multiplied by for each task."""


class VectorInfo(HeaderInfo):
    """Provenance of a task vector, stored in the header of its file."""

    format: Literal[1, 2] = 1
    """2 where tensors are stored in parts, or masks beside them, so that readers of 1 refuse the file."""
    base: BaseInfo = BaseInfo()
    tuned: str | None = None
    """The fine-tuned weights, or the expression over vectors."""
    task: str | None = None
    regime: str | None = None
    space: Literal["ordinary", "tangent"] | None = None
    """The space it was trained in, where that is known: of the model itself, or of its linearization."""
    dtype: str | None = None
    """The element type of the stored deltas, where it is one for all."""
    created_by: str = f"taskvec {__version__}"
    rule: dict[str, Any] | None = None
    """The combination rule that made it, with every parameter."""
    training: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    compact: CompactInfo | None = None
    masks: MaskInfo | None = None
    unchanged: dict[str, Shape] = Field(default_factory=dict)
    """Tensors that fine-tuning left alone, with their shapes; no zeros are stored for them."""

    def header(self) -> dict[str, str]:
        """The entry for the metadata of a safetensors header."""
        return {KEY: self.model_dump_json(exclude_none=True)}


class _Version(HeaderInfo):
    """What is read first: whether the rest can be."""

    format: int = 1


OPEN_FIELDS = frozenset({"tuned", "task", "regime", "space", "training", "metrics"})
"""What whoever makes a vector may say of it; the rest is known."""


def check_fields(fields: Mapping[str, object]) -> None:
    """Refuse keyword arguments that are no fields of the provenance.

    Raises: TypeError with the nearest name.
    """
    for name in fields:
        if name not in OPEN_FIELDS:
            raise TypeError(f"unexpected keyword argument {name!r}; {nearest(name, OPEN_FIELDS)}")


def has_info(weights: Weights) -> bool:
    """Whether the file says that it holds a task vector."""
    return KEY in weights.metadata


def read_info(weights: Weights) -> VectorInfo:
    """The provenance in the header of an open file.

    Raises: InputError if it is no task vector, or of a later format; CorruptFile if it cannot be read.
    """
    if not has_info(weights):
        adapter = find_adapter(weights.folder)
        way = (
            "extract one with: taskvec diff BASE TUNED -o VECTOR"
            if adapter is None
            else f"for the adapter beside them name its file: {adapter}"
        )
        raise InputError(
            f"{weights.ref}: holds weights, expected a task vector (no {KEY!r} in its header); {way}"
        )
    version = _Version.read(weights, KEY).format
    if version > _FORMAT:
        raise InputError(
            f"{weights.ref}: format {shown(version)}, expected 1 to {_FORMAT}; "
            "a later taskvec wrote it, upgrade"
        )
    return VectorInfo.read(weights, KEY)
