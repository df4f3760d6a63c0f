"""The loop: parameters and a stream of batches in, a displacement out."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from taskvec.errors import InputError
from taskvec.group import current
from taskvec.models.backbone import Backbone
from taskvec.models.sharding import is_sharded
from taskvec.progress import Watch, unwatched
from taskvec.tasks.ahead import ahead
from taskvec.training.checkpoint import Checkpoint
from taskvec.training.gradients import bind_penalties
from taskvec.training.joint import Joint
from taskvec.training.masks import Masks, digest_of, fitted
from taskvec.training.moments import Moments
from taskvec.training.parts import Part, check_parts, others_of
from taskvec.training.penalties.factors import told_of_files
from taskvec.training.penalties.penalty import Given
from taskvec.training.penalties.settings import files_of
from taskvec.training.regimes import Gates, Lora, Space
from taskvec.training.settings import TrainSettings
from taskvec.training.sharded import Sharded, check_plain, checksums, write_deltas
from taskvec.training.sharded_checkpoint import ShardedCheckpoint
from taskvec.training.sharing import check_same
from taskvec.training.space import Moved, move
from taskvec.training.steps import Steps
from taskvec.training.stream import Chunk, Step, collate, joint_steps, joint_stream, stream, total_steps

Params = Mapping[str, Tensor]


def train(
    backbone: Backbone,
    start: Params,
    parts: Sequence[Part],
    settings: TrainSettings,
    *,
    space: Space = "ordinary",
    lora: Lora | None = None,
    gates: Gates | None = None,
    joint: Joint | None = None,
    sign: float = 1.0,
    checkpoint: Path | None = None,
    validate: Callable[[Params], Mapping[str, float]] | None = None,
    references: Sequence[Part] = (),
    keep: Path | None = None,
    seed: int | None = None,
    displaced: Params | None = None,
    portion: range | None = None,
    moments: Moments | None = None,
    mask: Masks | None = None,
    watch: Watch = unwatched,
    label: str = "training",
) -> Params:
    """Fine-tune ``start`` on the union of ``parts``; every step holds one task's examples only, but with
    ``joint`` a batch of every task.

    Args:
        backbone: the network, on the device that computes; weights outside ``start`` are its own, frozen. Not
            modified.
        start: the parameters to train, by checkpoint name, on any device; copied, never written.
        space: ``tangent`` trains tau in ``f(start) + J(start) tau``; start stays where it is.
        lora: factors in the place of matrices; what else is in ``start`` stays where it is.
        gates: of layers, each of which changes while its gate is open, in ordinary space.
        joint: how the gradients of the tasks become one.
        sign: +1 descends the loss, -1 ascends it (the gradient-ascent baseline).
        checkpoint: where the state is kept every 20 seconds or so, for resuming after a kill; the file is
            removed when training ends. Resuming gives the same bits as never having stopped.
        validate: figures to report on the way, called with the displacement ``settings.validations`` times.
        references: other tasks, of which penalties may use the inputs; those of ``parts`` are left out.
        keep: a folder for what penalties measure once and other trainings may use too.
        seed: of what is measured so; by default that of the settings.
        displaced: how far from ``start`` the training begins; tangent spaces stay those at ``start``.
        portion: the steps to take, of those that the settings ask for, in their order and schedule; all of
            them by default.
        moments: what the optimizer goes on with; replaced by what it is at the end.
        mask: the only entries, or rows, that move; a tensor that it lacks stays as it is.
        watch: told after every step; its facts are the loss, the penalties if there are some, the learning
            rate, the norm of the gradient before clipping, how much a second is read, the share of open
            layers where there are gates, and the figures of ``validate``.

    Returns: the displacement from where it began, float32, same names, on the CPU; of factors their
        products, for matrices alone, multiplied as they are read.
    Raises: InputError for an empty split or a label outside the head's classes; TrainingDiverged when the
        loss is no longer finite; OutOfMemory.
    """
    check_parts(backbone, parts)
    check_precision(settings.precision, space)
    inside = None if mask is None else fitted(mask, start)
    start = start if inside is None else {name: start[name] for name in start if name in inside}
    group = current()
    if backbone.sharding is not None:
        check_plain(space, lora, gates, displaced, mask)
        moved: Moved = Sharded(backbone, start)
    else:
        moved = move(backbone, start, space, lora, settings.seed, gates, displaced)
    if inside is not None:
        moved.confine(inside)
    others, names = others_of(parts, references), [part.name for part in parts]
    penalties = bind_penalties(Given(backbone, moved, others, settings, keep, watch, names, seed))
    prepared = [part.objective.prepare(backbone, part.split) for part in parts]
    sizes = [of_part.sizes for of_part in prepared]
    total, order = _order(sizes, settings, joint)
    asked = [part.objective.on(backbone.device) for part in parts]
    steps = Steps(moved, asked, [*penalties, *moved.terms(total)], settings, total, joint, sign, label)
    if moments is not None:
        moments.into(steps.optimizer)
    used = others if penalties else []
    signature = _signature(parts, settings, space, lora or gates, sign, start, used, joint, inside)
    if not group.alone:
        check_same(group, _told_apart(backbone, parts, signature))
    signature = _continued(signature, displaced, portion, moments)
    kind = Checkpoint if backbone.sharding is None else ShardedCheckpoint
    state = kind(checkpoint, moved.leaves, steps.optimizer, signature, steps.scale)
    taking = portion or range(total)
    done = max(taking.start, state.restore())
    ready = partial(_ready, partial(collate, prepared, settings.accumulation, backbone.device, group))
    collated = ahead(ready, islice(order, done, taking.stop), backbone.device)
    for number, given in enumerate(collated, start=done):
        began = perf_counter()
        figures = steps.take(number, given)
        if figures is None:
            break  # ascent may diverge: the last finite weights are its result
        read = torch.cat([sizes[of.chunk.part][of.chunk.places] for of in given])
        figures |= _rates(read, perf_counter() - began)
        state.save_if_due(number + 1)
        due = (number + 1) * settings.validations // total > number * settings.validations // total
        if validate and due:
            figures |= validate(moved.displacement())
        watch(label, number + 1 - taking.start, len(taking), **figures)
    found = write_deltas(moved, checkpoint) if isinstance(moved, Sharded) else moved.displacement()
    state.remove()
    if moments is not None:
        moments.take(steps.optimizer)
    return found


def _order(
    sizes: Sequence[Tensor], settings: TrainSettings, joint: Joint | None
) -> tuple[int, Iterator[tuple[Chunk, ...]]]:
    """How many steps there are, and the examples of each."""
    counts = list(map(len, sizes))
    if joint is None:
        return total_steps(counts, settings), ((chunk,) for chunk in stream(sizes, settings))
    return joint_steps(counts, settings), joint_stream(sizes, settings, joint.ahead)


def _ready(collated: Callable[[Chunk], Step], chunks: Sequence[Chunk]) -> list[Step]:
    return [collated(chunk) for chunk in chunks]


def _rates(sizes: Tensor, seconds: float) -> dict[str, float]:
    """What a step took, and read a second: examples and, where inputs differ in size, tokens."""
    rates = {"seconds": seconds, "examples_per_second": len(sizes) / seconds}
    return rates | ({"tokens_per_second": int(sizes.sum()) / seconds} if int(sizes.max()) > 1 else {})


def check_precision(precision: str, space: Space) -> None:
    """Refuse what would lose most of a displacement. Raises: InputError."""
    if (precision, space) == ("fp16", "tangent"):
        raise InputError(
            "precision: fp16 in tangent space, where displacements are too small for its range; "
            "take bf16 or float32"
        )


def _signature(
    parts: Sequence[Part],
    settings: TrainSettings,
    space: Space,
    parted: Lora | Gates | None,
    sign: float,
    start: Params,
    references: Sequence[Part],
    joint: Joint | None,
    mask: Masks | None,
) -> str:
    """What a checkpoint must agree with to be resumed: every setting, the data, the start."""
    return json.dumps(
        {
            "settings": settings.told(but={"validations", "checkpoint_activations"}),
            "parts": [[*_told(part), part.objective.fingerprint()] for part in parts],
            "space": space,
            **({} if parted is None else {type(parted).__name__.lower(): asdict(parted)}),
            **({"references": [_told(part) for part in references]} if references else {}),
            **({"statistics": told_of_files(files)} if (files := files_of(settings.penalty)) else {}),
            **({} if joint is None else {"joint": dict(joint.said)}),
            **({} if mask is None else {"mask": digest_of(mask)}),
            "sign": sign,
            "start": sums(start),
        },
        sort_keys=True,
    )


def _told_apart(backbone: Backbone, parts: Sequence[Part], signature: str) -> dict[str, object]:
    """What must be the same in all processes; heads that two devices made differ by rounding."""
    said = {name: held for name, held in json.loads(signature).items() if name not in ("parts", "start")}
    data = {f"data of {part.name}": _told(part) for part in parts}
    return {"model": sums(backbone.encoder_parameters()), **data, **said}


def _told(part: Part) -> list[object]:
    return [part.name, part.fingerprint, len(part.split)]


def _continued(
    signature: str, displaced: Params | None, portion: range | None, moments: Moments | None
) -> str:
    """The signature of a training that goes on from another one."""
    before = {
        **({} if displaced is None else {"displaced": sums(displaced)}),
        **({} if portion is None else {"portion": [portion.start, portion.stop]}),
        **({} if moments is None else {"moments": moments.digest()}),
    }
    return json.dumps({**json.loads(signature), **before}, sort_keys=True) if before else signature


def sums(params: Params) -> Mapping[str, float]:
    """By name, for the signatures of checkpoints."""
    if any(map(is_sharded, params.values())):
        return checksums(params)
    return {name: float(value.detach().cpu().double().sum()) for name, value in params.items()}
