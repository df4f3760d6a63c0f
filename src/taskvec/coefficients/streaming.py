"""Task vectors as a step reads them: a block of one tensor of one vector at a time."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from taskvec.vectors import TaskVector
from taskvec.vectors.delta import Reading
from taskvec.vectors.linear import total
from taskvec.weights.blocks import block_step, row_blocks, rows_of


class Stream:
    """What vectors change among some tensors of a model, read anew each time.

    Args:
        vectors: by label; sums run over them in the order of the labels, whatever theirs.
        model: the tensors, which say shapes, precision and device; those that no vector changes are left out.
    """

    def __init__(self, vectors: Mapping[str, TaskVector], model: Mapping[str, Tensor]) -> None:
        self.labels = sorted(vectors)
        self._vectors = [vectors[label] for label in self.labels]
        self._model = model
        changed = {
            name: [place for place, of in enumerate(self._vectors) if name in of and of.terms_at(name)]
            for name in model
        }
        self.changed: Mapping[str, Sequence[int]] = {name: by for name, by in changed.items() if by}
        """Tensor -> places in ``labels`` of the vectors that change it."""

    def blocks(self, name: str) -> Iterator[slice | None]:
        """Slices of rows of a tensor that are read at a time; a device that is not the CPU takes it whole."""
        shape, vectors = tuple(self._model[name].shape), [self._vectors[t] for t in self.changed[name]]
        splits = self._model[name].device.type == "cpu" and block_step(shape) is not None
        return row_blocks(shape) if splits and all(v.in_rows(name) for v in vectors) else iter((None,))

    def deltas(self, name: str, rows: slice | None) -> Iterator[tuple[int, Tensor]]:
        """Place and delta of each vector that changes a tensor, on its device; not to be written into."""
        for place, factor, delta in self.as_read(name, rows):
            yield place, delta if factor == 1 else factor * delta

    def as_read(self, name: str, rows: slice | None) -> Iterator[tuple[int, float, Tensor]]:
        """The same, with a factor that the delta is still to be multiplied by."""
        like = self._model[name]
        for place in self.changed[name]:
            vector = self._vectors[place]
            operands = Reading(name, rows, like.dtype).operands(vector.terms_at(name))
            if len(operands) == 1 and operands[0].start is None:  # as it was read, without a copy
                factor, delta = operands[0].factor, operands[0].end
            else:
                factor, delta = 1.0, total(operands, like.dtype)
            yield place, factor, delta.to(like.device)


@torch.no_grad()
def add_scaled(stream: Stream, name: str, into: Tensor, factors: Tensor, parts: Tensor | None = None) -> None:
    """Add each vector's delta of a tensor, times its factor.

    Args:
        into: contiguous.
        factors: (vector, part), on the CPU.
        parts: the part of each entry; none if there is one part only.
    """
    plain, by_part = factors[:, 0].tolist(), factors.to(into)
    for rows in stream.blocks(name):
        target = rows_of(into, rows)
        which = None if parts is None else rows_of(parts, rows).reshape(-1).to(into.device, torch.int32)
        for place, factor, delta in stream.as_read(name, rows):
            if which is None:
                target.add_(delta, alpha=factor * plain[place])
            else:
                target.addcmul_(delta, by_part[place].index_select(0, which).view_as(delta), value=factor)


@torch.no_grad()
def products(
    stream: Stream, name: str, gradient: Tensor, parts: Tensor | None = None, count: int = 1
) -> Tensor:
    """Inner products (vector, part), float64, of a gradient with each vector's delta of a tensor."""
    sums = torch.zeros(len(stream.labels), count, dtype=torch.float64)
    for rows in stream.blocks(name):
        along = rows_of(gradient, rows).reshape(-1)
        which = None if parts is None else rows_of(parts, rows).reshape(-1).to(gradient.device, torch.int64)
        for place, factor, delta in stream.as_read(name, rows):
            flat = delta.reshape(-1)
            if which is None:
                sums[place] += factor * float(torch.dot(along, flat))
            else:
                sums[place] += factor * torch.bincount(which, along * flat, count).cpu()
    return sums
