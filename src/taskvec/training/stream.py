"""The order in which a training reads its examples."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskvec.group import Group
from taskvec.tasks.ahead import for_device
from taskvec.tasks.objective import Batch, Prepared
from taskvec.training.settings import TrainSettings


@dataclass(frozen=True)
class Chunk:
    """Examples of one part, named by their places in its split."""

    part: int
    places: Tensor


@dataclass(frozen=True)
class Step:
    """A chunk, collated in micro-batches.

    Args:
        micros: those that this process computes.
        rows: of output, of the whole chunk.
    """

    chunk: Chunk
    micros: Sequence[Batch]
    rows: int


def total_steps(sizes: Sequence[int], settings: TrainSettings) -> int:
    """Optimizer steps that ``settings`` ask for on splits of these sizes."""
    return settings.steps or settings.epochs * sum(math.ceil(size / settings.batch_size) for size in sizes)


def portion(total: int, rounds: int, turn: int) -> range:
    """The steps of a budget that fall to a round, the first of which is 0."""
    return range(total * turn // rounds, total * (turn + 1) // rounds)


def stream(sizes: Sequence[Tensor], settings: TrainSettings) -> Iterator[Chunk]:
    """Every example once an epoch, in an order that depends on the seed and the epoch alone.

    ``sizes`` holds, for each part, what every input costs.
    """
    wanted, epoch = total_steps(list(map(len, sizes)), settings), 0
    while wanted > 0:
        order = torch.Generator().manual_seed((settings.seed << 20) + epoch)
        chunks = [
            Chunk(part, places)
            for part, of_part in enumerate(sizes)
            for places in _shuffled(of_part, settings.batch_size, order)
        ]
        mixed = torch.randperm(len(chunks), generator=order).tolist()
        yield from (chunks[i] for i in mixed[:wanted])
        wanted, epoch = wanted - len(chunks), epoch + 1


def joint_steps(sizes: Sequence[int], settings: TrainSettings) -> int:
    """Optimizer steps of a batch of every part: ``steps``, or as many as read what ``epochs`` of all read."""
    return settings.steps or math.ceil(total_steps(sizes, settings) / len(sizes))


def joint_stream(
    sizes: Sequence[Tensor], settings: TrainSettings, ahead: int | None = None
) -> Iterator[tuple[Chunk, ...]]:
    """A batch of every part a step, each as in a training on that part alone with this seed.

    Args:
        ahead: a part that gives one batch more, in an order of its own, behind the others.
    """
    steps = joint_steps(list(map(len, sizes)), settings)
    alone = settings.model_copy(update={"steps": steps})
    other = alone.model_copy(update={"seed": settings.seed ^ (1 << 11)})
    orders = [(part, alone) for part in range(len(sizes))]
    orders += [] if ahead is None else [(ahead, other)]
    streams = [_of_part(part, sizes, order) for part, order in orders]
    return zip(*streams, strict=True)


def _of_part(part: int, sizes: Sequence[Tensor], settings: TrainSettings) -> Iterator[Chunk]:
    return (Chunk(part, chunk.places) for chunk in stream([sizes[part]], settings))


def _shuffled(sizes: Tensor, batch: int, order: torch.Generator) -> Sequence[Tensor]:
    """Random batches of places whose inputs are of similar size, so that little is padded.

    Inputs are shuffled, then sorted by size inside windows of eight batches. That pads little more than if
    all were sorted, and every epoch still has batches of its own.
    """
    windows = torch.split(torch.randperm(len(sizes), generator=order), 8 * batch)
    return torch.split(torch.cat([window[sizes[window].argsort(stable=True)] for window in windows]), batch)


def collate(
    prepared: Sequence[Prepared], accumulation: int, device: torch.device, group: Group, chunk: Chunk
) -> Step:
    """A chunk in as many micro-batches as ``accumulation`` says, or more if memory is short of outputs.

    Args:
        group: of several processes, of which each collates its share; it may be none of a small chunk.
    """
    of_part, places = prepared[chunk.part], chunk.places
    mine = places[group.rank :: group.size]
    size = math.ceil(len(mine) / accumulation)
    micros = torch.split(mine, min(size, of_part.together or size)) if size else ()
    batches = [for_device(of_part.batch(micro), device) for micro in micros]
    return Step(chunk, batches, int(of_part.rows[places].sum()))
