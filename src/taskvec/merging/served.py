"""Vectors stored small, one for each task: whoever serves the model has to name the task."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import getdoc
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from taskvec.config import Config
from taskvec.evaluation.points import Point
from taskvec.merging.keys import bound_to
from taskvec.merging.method import Bench, Consumed, Method, Model, Plain, named
from taskvec.tasks.source import SplitName
from taskvec.vectors import TaskVector
from taskvec.vectors.lora.lowrank import leading
from taskvec.vectors.stored.masked import MaskedVectors, Rescaler, emr, tall_masks
from taskvec.weights import open_weights
from taskvec.weights.dtypes import compute_code, size_of

LAMS = (0.2, 0.3, 0.4, 0.5, 0.6)
"""What a TALL mask's threshold is chosen from."""

Vectors = Mapping[str, TaskVector]


@dataclass(frozen=True)
class Storage:
    """Bytes that vectors take: what all tasks share, what each adds, and what its own vector would take."""

    shared: int
    by_task: Mapping[str, int]
    whole: Mapping[str, int]

    def facts(self) -> Plain:
        """With ``share``, what tasks add relative to their own vectors."""
        own = sum(self.whole.values())
        return {
            "bytes_shared": self.shared,
            "bytes_by_task": dict(self.by_task),
            "bytes_of_vectors": dict(self.whole),
            "share": sum(self.by_task.values()) / own if own else None,
        }


class Served(Model):
    """A vector for each task, in what it was stored as."""

    def __init__(
        self, bench: Bench, vectors: Vectors, storage: Storage, chosen: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(bench)
        self.coefficients = len(chosen or {})
        self.storage, self._chosen = storage, dict(chosen or {})
        self._points = bench.evaluator.points(vectors, space=bench.space)

    def point(self, task: str, alpha: float) -> Point:
        return self._points.at({task: alpha})

    def facts(self) -> Plain:
        return {**self.storage.facts(), **({"lam": self._chosen} if self._chosen else {})}


class EmrSettings(Config, use_attribute_docstrings=True):
    """Serve each task by its mask and scale of one elected vector."""

    rescaler: Rescaler = "global"
    """What a task's scale keeps: the L1 norm of its whole vector, or of the means of its tensors."""


class TallSettings(Config, use_attribute_docstrings=True):
    """Serve each task by its mask of the summed vector."""

    lam: Annotated[float, Field(ge=0)] | Literal["validation"] = 0.4
    """One threshold for all tasks; or for each the best of 0.2 to 0.6 on its validation data."""


class TsvSettings(Config, use_attribute_docstrings=True):
    """Serve each task by the leading singular components of its own matrices."""

    components: Annotated[float, Field(gt=0, le=1)] | None = None
    """The fraction of a matrix's rank that is kept; 1/T by default."""


@dataclass(frozen=True)
class ServedMethod(Method):
    """One vector a task, at coefficient 1."""

    name: str
    options: Config
    build: Callable[[Bench, Vectors, Config], Model] = field(compare=False, repr=False)
    coefficient: float | None = None
    family: ClassVar[str] = "served"

    @property
    def about(self) -> str:
        return (getdoc(type(self.options)) or "").rstrip(".")

    def consumes(self, split: SplitName) -> tuple[Consumed, ...]:
        chosen = getattr(self.options, "lam", None) == "validation"
        return ("validation labels", "task id") if chosen else ("task id",)

    def settings(self) -> Plain:
        return {"served": self.name.split(" (")[0], **self.options.model_dump()}

    def make(self, bench: Bench) -> Model:
        return self.build(bench, bound_to(bench.evaluator, bench.vectors), self.options)


def emr_method(given: Mapping[str, object]) -> ServedMethod:
    """EMR's masks and rescalers, see :func:`taskvec.emr`. Raises: InputError."""
    return _served("emr (task id)", EmrSettings.parse("emr (task id)", given), _serve_emr)


def tall_method(given: Mapping[str, object]) -> ServedMethod:
    """TALL masks, see :func:`taskvec.tall_masks`. Raises: InputError."""
    return _served("tall", TallSettings.parse("tall", given), _serve_tall)


def tsv_method(given: Mapping[str, object]) -> ServedMethod:
    """TSV-Compress, see :func:`compress`. Raises: InputError."""
    return _served("tsv-compress", TsvSettings.parse("tsv-compress", given), _serve_compressed)


def _served(name: str, options: Config, build: Callable[[Bench, Vectors, Config], Model]) -> ServedMethod:
    return ServedMethod(named(name, options.model_dump(exclude_defaults=True)), options, build)


def _serve_emr(bench: Bench, vectors: Vectors, options: Config) -> Model:
    assert isinstance(options, EmrSettings)
    made = emr(vectors, rescaler=options.rescaler)
    return Served(bench, {task: made.vector(task) for task in vectors}, _masked_bytes(made, vectors))


def _serve_tall(bench: Bench, vectors: Vectors, options: Config) -> Model:
    assert isinstance(options, TallSettings)
    searched = options.lam == "validation"
    lams = {task: _best_lam(bench, vectors, task) if searched else float(options.lam) for task in vectors}
    made = tall_masks(vectors, lam=lams)
    storage = _masked_bytes(made, vectors)
    return Served(bench, {task: made.vector(task) for task in vectors}, storage, lams if searched else None)


def _best_lam(bench: Bench, vectors: Vectors, task: str) -> float:
    """The threshold of the best validation value; of equal ones the smallest, which keeps most."""

    def value(lam: float) -> float:
        vector = tall_masks(vectors, lam=lam).vector(task)
        point = bench.evaluator.points({task: vector}, space=bench.space).at({task: 1.0})
        return bench.evaluator.values(point, [task], "validation")[task]

    return max(LAMS, key=lambda lam: (value(lam), -lam))


def _serve_compressed(bench: Bench, vectors: Vectors, options: Config) -> Model:
    assert isinstance(options, TsvSettings)
    share = options.components or 1 / len(vectors)
    base = open_weights(bench.evaluator.backbone.source)
    kept, sizes = {}, {}
    for task, vector in vectors.items():
        tensors, sizes[task] = compress(vector, share)
        kept[task] = TaskVector.from_tensors(tensors, base, task=task)
    return Served(bench, kept, Storage(0, sizes, _whole_bytes(vectors)))


def compress(vector: TaskVector, share: float) -> tuple[dict[str, Tensor], int]:
    """The leading components of each matrix, ``share`` of its rank but one at least, and bytes of factors.

    Tensors that are no matrices, and matrices that factors would take more bytes for, are kept whole.

    Source: TSV-Compress (Gargiulo et al. 2024, arXiv:2412.00081): with 1/T about 10 % of the bytes at T = 20.
    """
    tensors, size = {}, 0
    for name, spec in vector.specs.items():
        if not vector.terms_at(name):
            continue
        whole = vector[name]
        rank = max(1, math.floor(share * min(spec.shape) + 1e-9)) if len(spec.shape) == 2 else 0
        if rank and rank * sum(spec.shape) < spec.numel:
            left, right = leading(whole, rank)
            tensors[name], size = left @ right, size + left.nbytes + right.nbytes
        else:
            tensors[name], size = whole, size + whole.nbytes
    return tensors, size


def _masked_bytes(made: MaskedVectors, vectors: Vectors) -> Storage:
    """A bit an entry and a factor for each task, beside the vector that they share."""
    [shared] = _whole_bytes({"unified": made.unified}).values()
    changed = [spec.numel for name, spec in made.unified.specs.items() if made.unified.terms_at(name)]
    bits = sum(-(-numel // 8) for numel in changed)
    return Storage(shared, dict.fromkeys(vectors, bits + 8), _whole_bytes(vectors))


def _whole_bytes(vectors: Vectors) -> dict[str, int]:
    return {
        task: sum(
            spec.numel * size_of(compute_code(spec.code))
            for name, spec in vector.specs.items()
            if vector.terms_at(name)
        )
        for task, vector in vectors.items()
    }
