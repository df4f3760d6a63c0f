"""What a file of statistics says about itself, and whether it belongs to a vector."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from taskvec._version import __version__
from taskvec.errors import InputError, KeyMismatch, and_more
from taskvec.registry import nearest
from taskvec.rules.rule import Rule
from taskvec.rules.statistics import NEEDED
from taskvec.vectors.delta import Delta
from taskvec.vectors.info import BaseInfo, HeaderInfo, VectorInfo
from taskvec.weights import Weights, open_weights, save_weights

if TYPE_CHECKING:
    from torch import Tensor

KEY = "taskvec_statistics"
Kind = Literal["fisher", "gram", "kfac", "ekfac", "ggn"]

_USED: Mapping[str, Kind] = {"fisher": "fisher", "regmean": "gram"}
"""The kind that a rule uses, by its name."""


class StatisticsInfo(HeaderInfo):
    """Provenance of statistics, stored in the header of their file."""

    format: Literal[1] = 1
    kind: Kind
    model: BaseInfo
    """The model whose statistics they are, usually a fine-tuned one."""
    base: BaseInfo | None = None
    """The pre-trained model that the head comes from, if it is not the model itself."""
    task: str
    data: str
    """The task's fingerprint."""
    split: str
    examples: int
    seed: int
    labels: Literal["all", "sampled"] | None = None
    """Of Fisher information: the sum over all classes, or one class drawn for each example."""
    available: int | None = None
    """Of curvature: the examples that were drawn from, by which tasks are weighed."""
    probes: int | None = None
    """Of curvature: random directions of each example's outputs."""
    created_by: str = f"taskvec {__version__}"

    def header(self) -> dict[str, str]:
        """The entry for the metadata of a safetensors header."""
        return {KEY: self.model_dump_json(exclude_none=True)}


def read_statistics(weights: Weights) -> StatisticsInfo | None:
    """The provenance in the header of an open file; none if it holds no statistics, or says nothing of them.

    Raises: CorruptFile if it cannot be read.
    """
    return StatisticsInfo.read(weights, KEY) if KEY in weights.metadata else None


Opened = Weights
"""An open file of statistics."""


def open_statistics(ref: str | Path) -> Opened:
    """A file of statistics, to be checked by whoever reads it."""
    return open_weights(ref)


def save_statistics(tensors: "Mapping[str, Tensor]", path: Path, info: StatisticsInfo) -> None:
    """Write a file of statistics, in the place of one that is there."""
    save_weights(tensors, path, force=True, metadata=info.header())


def measured_at(source: Any) -> BaseInfo:
    """What statistics say of the model they are measured at, from what ``open_weights`` takes for it."""
    weights = open_weights(source)
    return BaseInfo(ref=weights.ref, fingerprint=weights.fingerprint())


def check_statistics(rule: Rule, vectors: Sequence[Delta], stats: Sequence[Weights] | None) -> None:
    """Refuse statistics that are not those of the vectors, from headers alone.

    What was given in memory has no header and is believed to be of the right kind and task.

    Raises: InputError, one line, for a rule that needs statistics and gets none, or gets them and uses none;
        for another number, kind, task or model; KeyMismatch for tensors that do not fit.
    """
    if (stats is not None) != ("_stats" in rule.keywords):
        what = f"needs {NEEDED}" if stats is None else "uses no statistics; leave them out"
        raise InputError(f"rule {rule.name!r} {what}")
    if stats is None:
        return
    if len(stats) != len(vectors):
        raise InputError(f"statistics: {len(stats)} files, expected {len(vectors)}, one for each task vector")
    kind = kind_used(rule)
    infos = [vector.info for vector in vectors] if any(KEY in given.metadata for given in stats) else []
    for place, (given, vector) in enumerate(zip(stats, vectors, strict=True)):
        _check_kind(given, kind)
        _check_shapes(given, kind, vector)
        if KEY in given.metadata:
            _check_origin(given, vector.ref, infos, place)
    first, *others = stats
    for other in others:
        for lacking, having in ((other, first), (first, other)):
            missing = [name for name in _names(having) if name not in lacking]
            if missing:
                raise KeyMismatch(
                    f"{lacking.ref}: lacks {missing[0]!r}{and_more(missing)}, which {having.ref} has; make "
                    "all statistics in the same way"
                )


def kind_used(rule: Rule) -> Kind | None:
    """The kind of statistics that a rule or one of its steps uses; none for rules that are not ours."""
    return next((_USED[step.name] for step in (rule, *rule.stages) if step.name in _USED), None)


def _check_kind(stats: Weights, kind: Kind | None) -> None:
    info = read_statistics(stats)
    if info is None and stats.files:
        raise InputError(f"{stats.ref}: holds no statistics (no {KEY!r} in its header), expected {NEEDED}")
    if info is not None and kind not in (None, info.kind):
        raise InputError(f"{stats.ref}: statistics of kind {info.kind!r}, expected {kind!r}")


def _check_origin(stats: Weights, vector: str, infos: Sequence[VectorInfo], place: int) -> None:
    """Refuse statistics of another task or base than the vector at ``place``, or of another one's model."""
    info, wanted = read_statistics(stats), infos[place]
    assert info is not None
    if wanted.task is not None and wanted.task != info.task:
        raise InputError(
            f"{stats.ref}: statistics of task {info.task!r}, expected {wanted.task!r}, the task of {vector}; "
            "give them in the order of the vectors"
        )
    base = info.base
    if base and base.fingerprint and wanted.base.fingerprint not in (None, base.fingerprint):
        raise InputError(
            f"{stats.ref}: statistics of base {base.ref} (fingerprint {base.fingerprint}), expected "
            f"{wanted.base.ref} (fingerprint {wanted.base.fingerprint}), the base of {vector}"
        )
    if info.model.ref != wanted.tuned and info.model.ref in [other.tuned for other in infos]:
        raise InputError(
            f"{stats.ref}: statistics of {info.model.ref}, expected those of {wanted.tuned}; give them in "
            "the order of the vectors"
        )


def _check_shapes(stats: Weights, kind: Kind | None, vector: Delta) -> None:
    for name in _names(stats):
        spec = vector.specs.get(name)
        if spec is None:
            raise KeyMismatch(
                f"{stats.ref}: statistics of {name!r}, which {vector.ref} lacks; "
                f"{nearest(name, vector.specs)}"
            )
        shape = stats.spec(name).shape
        wanted = {"fisher": spec.shape, "gram": (*spec.shape[1:], *spec.shape[1:]), None: shape}[kind]
        if shape != wanted:
            raise KeyMismatch(f"{stats.ref}: {name!r} has shape {shape}, expected {wanted}")


def _names(weights: Weights) -> list[str]:
    return [*weights, *weights.tied]
