"""What a file of statistics says about itself, and whether it belongs to a vector."""

from collections.abc import Mapping, Sequence
from typing import Literal

from taskvec._version import __version__
from taskvec.errors import InputError, KeyMismatch, and_more
from taskvec.registry import nearest
from taskvec.rules.rule import Rule
from taskvec.rules.statistics import NEEDED
from taskvec.vectors.delta import Delta
from taskvec.vectors.info import BaseInfo, HeaderInfo, VectorInfo
from taskvec.weights import Weights

KEY = "taskvec_statistics"
Kind = Literal["fisher", "gram"]

USED: Mapping[str, Kind] = {"fisher": "fisher", "regmean": "gram"}
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
    created_by: str = f"taskvec {__version__}"

    def header(self) -> dict[str, str]:
        """The entry for the metadata of a safetensors header."""
        return {KEY: self.model_dump_json(exclude_none=True)}


def read_statistics(weights: Weights) -> StatisticsInfo | None:
    """The provenance in the header of an open file; none if it holds no statistics, or says nothing of them.

    Raises: CorruptFile if it cannot be read.
    """
    return StatisticsInfo.read(weights, KEY) if KEY in weights.metadata else None


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
    kind = next((USED[step.name] for step in (rule, *rule.stages) if step.name in USED), None)
    infos = [vector.info for vector in vectors] if any(KEY in one.metadata for one in stats) else []
    for place, (one, vector) in enumerate(zip(stats, vectors, strict=True)):
        _check_kind(one, kind)
        _check_shapes(one, kind, vector)
        if KEY in one.metadata:
            _check_origin(one, vector.ref, infos, place)
    first, *others = stats
    for other in others:
        for lacking, having in ((other, first), (first, other)):
            missing = [name for name in _names(having) if name not in lacking]
            if missing:
                raise KeyMismatch(
                    f"{lacking.ref}: lacks {missing[0]!r}{and_more(missing)}, which {having.ref} has; make "
                    "all statistics in the same way"
                )


def _check_kind(one: Weights, kind: Kind | None) -> None:
    info = read_statistics(one)
    if info is None and one.files:
        raise InputError(f"{one.ref}: holds no statistics (no {KEY!r} in its header), expected {NEEDED}")
    if info is not None and kind not in (None, info.kind):
        raise InputError(f"{one.ref}: statistics of kind {info.kind!r}, expected {kind!r}")


def _check_origin(one: Weights, vector: str, infos: Sequence[VectorInfo], place: int) -> None:
    """Refuse statistics of another task or base than the vector at ``place``, or of another one's model."""
    info, own = read_statistics(one), infos[place]
    assert info is not None
    if own.task is not None and own.task != info.task:
        raise InputError(
            f"{one.ref}: statistics of task {info.task!r}, expected {own.task!r}, the task of {vector}; "
            "give them in the order of the vectors"
        )
    base = info.base
    if base and base.fingerprint and own.base.fingerprint not in (None, base.fingerprint):
        raise InputError(
            f"{one.ref}: statistics of base {base.ref} (fingerprint {base.fingerprint}), expected "
            f"{own.base.ref} (fingerprint {own.base.fingerprint}), the base of {vector}"
        )
    if info.model.ref != own.tuned and info.model.ref in [other.tuned for other in infos]:
        raise InputError(
            f"{one.ref}: statistics of {info.model.ref}, expected those of {own.tuned}; give them in the "
            "order of the vectors"
        )


def _check_shapes(one: Weights, kind: Kind | None, vector: Delta) -> None:
    for name in _names(one):
        spec = vector.specs.get(name)
        if spec is None:
            raise KeyMismatch(
                f"{one.ref}: statistics of {name!r}, which {vector.ref} lacks; {nearest(name, vector.specs)}"
            )
        found = one.spec(name).shape
        wanted = {"fisher": spec.shape, "gram": (*spec.shape[1:], *spec.shape[1:]), None: found}[kind]
        if found != wanted:
            raise KeyMismatch(f"{one.ref}: {name!r} has shape {found}, expected {wanted}")


def _names(weights: Weights) -> list[str]:
    return [*weights, *weights.tied]
