"""Curvature on other tasks: measured once, kept in files, read with care."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory

import torch
import xxhash
from torch import Tensor

from taskvec.errors import BaseMismatch, CorruptFile, InputError, KeyMismatch
from taskvec.statistics.blocks import Block, blocks
from taskvec.statistics.curvature import Curvature, measure
from taskvec.statistics.probes import Probing
from taskvec.tasks.loaders import in_batches
from taskvec.training.parts import Part, check_outputs
from taskvec.training.penalties.penalty import Given
from taskvec.training.penalties.settings import Curved, Diagonal, PenaltySettings, Tak
from taskvec.turns import alone
from taskvec.vectors.statistics import (
    Opened,
    StatisticsInfo,
    measured_at,
    open_statistics,
    read_statistics,
    save_statistics,
)

PARTS: Mapping[Curvature, Sequence[str]] = {"kfac": ("A", "B"), "ekfac": ("UA", "UB", "D"), "ggn": ()}
"""What a file of a kind holds of a block, behind ``#``."""

_TOLERANCE = 1e-3
"""Of rounding, relative to the largest entry."""


_MAKE = "taskvec stats MODEL -t TASK --kind KIND -o FILE"


@dataclass(frozen=True)
class Known:
    """Curvature on one task.

    Args:
        size: examples of the task, by which tasks are weighed.
        read: gives the tensors by name, checked, on the CPU.
    """

    size: int
    read: Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Source:
    """Where the curvature on the other tasks comes from."""

    kind: Curvature
    settings: Tak | Diagonal
    given: Given

    def check(self) -> None:
        """Refuse to begin without other tasks. Raises: InputError."""
        if not (self.settings.files or self.given.references):
            raise InputError(
                f"penalty {self.settings.kind}: no references, expected other tasks, whose inputs "
                "it measures; name some in references, give files of taskvec stats, or leave the penalty out"
            )

    def blocks(self) -> list[Block]:
        """Those whose factors are known: of all parameters in files, of those that move where it measures."""
        parameters = self.given.backbone.encoder_parameters()
        names = list(parameters) if self.settings.files else list(self.given.moved.tau())
        return [] if self.kind == "ggn" else blocks(self.given.backbone, names)

    def known(self) -> list[Known]:
        """Task by task, in an order of its own, so that theirs does not matter.

        Raises: InputError for a file of another kind or damaged; BaseMismatch for one of another model;
            KeyMismatch for one of other shapes.
        """
        if not self.settings.files:
            parts = sorted(self.given.references, key=lambda part: part.name)
            return [Known(len(part.split), partial(self._of_part, part)) for part in parts]
        infos = {ref: self._check_file(open_statistics(ref)) for ref in sorted(set(self.settings.files))}
        used = {ref: info for ref, info in infos.items() if info.task not in self.given.trained}
        self._check_tasks(used)
        return [Known(_size(info), partial(self._of_file, ref)) for ref, info in used.items()]

    def _check_tasks(self, infos: Mapping[str, StatisticsInfo]) -> None:
        """Refuse to count a task twice, or none. Raises: InputError."""
        kind, first = self.settings.kind, dict[tuple[str, str], str]()
        for ref, info in infos.items():
            if (other := first.setdefault((info.task, info.data), ref)) != ref:
                raise InputError(
                    f"penalty {kind}: files: {other} and {ref} are both of task {info.task!r}, expected one "
                    "a task; leave one of them out"
                )
        if not infos:
            raise InputError(
                f"penalty {kind}: files: all are of tasks that are trained ({', '.join(self.given.trained)})"
                ", expected some of others; give theirs, or leave the penalty out"
            )

    def _of_file(self, ref: str | Path) -> Mapping[str, Tensor]:
        with open_statistics(ref) as weights:
            self._check_file(weights)
            return self._read(weights)

    def _of_part(self, part: Part) -> Mapping[str, Tensor]:
        """Measured on the inputs of a task, or read where that was done before."""
        check_outputs(self.given.backbone, part.name, part.objective)
        keep = self.given.keep
        if keep is None or part.fingerprint is None:
            return self._measured(part)
        info = self._info(part)
        place = keep / _filename(info, sorted(self.given.moved.tau()), len(part.split))
        with alone(place.name, place):
            if not place.exists():
                keep.mkdir(parents=True, exist_ok=True)
                # Another run may be at the same: each writes a file of its own, and the last one stays.
                own = place.with_name(f"{place.stem}.{token_hex(4)}.safetensors")
                save_statistics(self._measured(part), own, info)
                own.replace(place)
        try:
            return self._of_file(place)
        except InputError as error:
            found, _, _ = str(error).partition("; ")
            raise CorruptFile(f"{found}; remove {place.name}, and what it held is measured again") from None

    def _measured(self, part: Part) -> dict[str, Tensor]:
        backbone, seed = self.given.backbone, self.given.measuring_seed
        drawn = part.split.draw(self.settings.examples, seed)
        inputs = in_batches(part.objective.prepare(backbone, drawn), 64)
        names, label = list(self.given.moved.tau()), f"curvature of {part.name}"
        how, watch = Probing(seed=seed), self.given.watch
        return measure(backbone, inputs, names, self.kind, how, watch=watch, label=label)

    def _info(self, part: Part) -> StatisticsInfo:
        return StatisticsInfo(
            kind=self.kind,
            model=measured_at(self.given.backbone.source),
            task=part.name,
            data=part.fingerprint or "",
            split="train",
            examples=min(self.settings.examples, len(part.split)),
            available=len(part.split),
            seed=self.given.measuring_seed,
            probes=1,
        )

    def _check_file(self, weights: Opened) -> StatisticsInfo:
        """What a file says of itself, from its header alone."""
        info = read_statistics(weights)
        if info is None or info.kind != self.kind:
            found = "no statistics" if info is None else f"statistics of kind {info.kind!r}"
            raise InputError(
                f"{weights.ref}: holds {found}, expected kind {self.kind!r}; make them with: "
                f"{_MAKE.replace('KIND', self.kind)}"
            )
        if _size(info) < 1:
            raise CorruptFile(
                f"{weights.ref}: measured on {_size(info)} examples, as it says, expected 1 or more; measure "
                "it again with taskvec stats"
            )
        base = measured_at(self.given.backbone.source)
        if info.model.fingerprint != base.fingerprint:
            raise BaseMismatch(
                f"{weights.ref}: curvature at {info.model.ref} (fingerprint {info.model.fingerprint}), "
                f"expected {base.ref} (fingerprint {base.fingerprint}), the model that is trained; measure "
                "it there with taskvec stats"
            )
        wanted = self._shapes()
        for name in (*weights, *weights.tied):
            if name in wanted and weights.spec(name).shape != wanted[name]:
                shape = weights.spec(name).shape
                raise KeyMismatch(f"{weights.ref}: {name!r} has shape {shape}, expected {wanted[name]}")
        for block in self.blocks():
            names = [f"{block.weight}#{part}" for part in PARTS[self.kind]]
            missing = [name for name in names if name not in weights]
            if missing and len(missing) < len(names):
                raise KeyMismatch(
                    f"{weights.ref}: lacks {missing[0]!r}, expected it beside the other factors; measure it "
                    "again with taskvec stats"
                )
        return info

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors that may be read."""
        parameters = self.given.backbone.encoder_parameters()
        shapes: dict[str, tuple[int, ...]] = {name: tuple(value.shape) for name, value in parameters.items()}
        for block in self.blocks():
            rows, columns = block.sides
            sides = {"A": (columns, columns), "B": (rows, rows), "D": (rows, columns)}
            shapes |= {f"{block.weight}#{part}": sides[part.removeprefix("U")] for part in PARTS[self.kind]}
        return shapes

    def _read(self, weights: Opened) -> dict[str, Tensor]:
        """The tensors of a file, checked.

        Raises: CorruptFile for numbers that no curvature has.
        """
        tensors = {}
        for name in (name for name in self._shapes() if name in weights):
            tensors[name] = weights[name].float()
            if fault := _fault(name, tensors[name]):
                raise CorruptFile(f"{weights.ref}: {name!r} {fault}; measure it again with taskvec stats")
        return tensors


def told_of_files(refs: Sequence[str]) -> dict[str, dict[str, object]]:
    """What files of statistics are and hold, by file; a digest of their numbers included.

    Raises: InputError for a file that holds no statistics.
    """
    told: dict[str, dict[str, object]] = {}
    for ref in refs:
        with open_statistics(ref) as weights:
            info = read_statistics(weights)
            if info is None:
                raise InputError(f"{ref}: holds no statistics; make them with: {_MAKE}")
            told[ref] = {
                "kind": info.kind,
                "task": info.task,
                "data": info.data,
                "split": info.split,
                "examples": _size(info),
                "fingerprint": weights.fingerprint(),
            }
    return told


@contextmanager
def kept(keep: Path | None, penalties: Sequence[PenaltySettings]) -> Iterator[Path | None]:
    """A folder for what trainings with these penalties measure, while they last if there is no other."""
    if keep is not None or not any(isinstance(penalty, Curved) and penalty.reads for penalty in penalties):
        yield keep
    else:
        with TemporaryDirectory(prefix="taskvec-") as folder:
            yield Path(folder)


def _size(info: StatisticsInfo) -> int:
    """Examples of the task, by which it is weighed."""
    return info.examples if info.available is None else info.available


def _fault(name: str, value: Tensor) -> str | None:
    """What keeps a tensor from being part of a curvature."""
    part = name.rpartition("#")[2] if "#" in name else ""
    if not value.isfinite().all():
        return "holds NaN or infinity, expected numbers"
    if part in ("A", "B"):
        return None if _is_curved(value) else "has negative directions, or is not symmetric, expected neither"
    if part in ("UA", "UB"):
        off = value.mT @ value - torch.eye(len(value))
        return None if off.abs().max() < _TOLERANCE * 10 else "has columns that are not orthonormal"
    return "holds negative numbers, expected squares" if value.numel() and value.min() < 0 else None


def _is_curved(value: Tensor) -> bool:
    """Whether a matrix is symmetric and positive semi-definite, up to rounding."""
    size = float(value.abs().max())
    if size == 0:
        return True
    unit = value / size
    if float((unit - unit.mT).abs().max()) > _TOLERANCE:
        return False
    raised = unit.diagonal_scatter(unit.diagonal() + _TOLERANCE)
    return not int(torch.linalg.cholesky_ex(raised).info)


def _filename(info: StatisticsInfo, names: Sequence[str], size: int) -> str:
    """What tells factors in a folder apart: the model, the data, the draw and the parameters."""
    told = [info.model.fingerprint, info.data, size, info.examples, info.seed, *names]
    digest = xxhash.xxh3_64_hexdigest("/".join(map(str, told)).encode())
    name = info.task if re.fullmatch(r"[\w-]{1,80}", info.task) else "task"
    return f"{info.kind}-{name}-{digest}.safetensors"
