"""The loop: parameters and a stream of batches in, a displacement out."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from taskvec.errors import InputError, TrainingDiverged
from taskvec.models.activations import recomputed
from taskvec.models.backbone import Backbone
from taskvec.place import enough_memory
from taskvec.progress import Watch, unwatched
from taskvec.tasks.ahead import ahead
from taskvec.training.checkpoint import Checkpoint
from taskvec.training.gradients import Terms, add_gradients, bind_penalties
from taskvec.training.joint import Joint
from taskvec.training.masks import Masks, digest_of, fitted
from taskvec.training.moments import Moments
from taskvec.training.parts import Part, check_parts, others_of
from taskvec.training.penalties.factors import told_of_files
from taskvec.training.penalties.penalty import Given
from taskvec.training.penalties.settings import files_of
from taskvec.training.regimes import Gates, Lora, Space
from taskvec.training.scaling import LossScale
from taskvec.training.settings import TrainSettings
from taskvec.training.space import Moved, move
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
    device, scale = backbone.device, LossScale.of(settings.precision)
    inside = None if mask is None else fitted(mask, start)
    start = start if inside is None else {name: start[name] for name in start if name in inside}
    moved = move(backbone, start, space, lora, settings.seed, gates, displaced)
    if inside is not None:
        moved.confine(inside)
    leaves = moved.leaves
    clipped = {name: leaf for name, leaf in leaves.items() if name not in moved.rates}
    optimizer = _optimizer(settings, moved)
    if moments is not None:
        moments.into(optimizer)
    asked = [part.objective.on(device) for part in parts]
    others = others_of(parts, references)
    names = [part.name for part in parts]
    penalties = bind_penalties(Given(backbone, moved, others, settings, keep, watch, names, seed))
    prepared = [part.objective.prepare(backbone, part.split) for part in parts]
    sizes = [of_part.sizes for of_part in prepared]
    steps, order = _order(sizes, settings, joint)
    used = others if penalties else []
    signature = _signature(parts, settings, space, lora or gates, sign, start, used, joint, inside)
    signature = _continued(signature, displaced, portion, moments)
    penalties += moved.terms(steps)
    state = Checkpoint(checkpoint, leaves, optimizer, signature, scale)
    loss = math.nan
    taking = portion or range(steps)
    done = max(taking.start, state.restore())
    ready = partial(_ready, partial(collate, prepared, settings.accumulation, device))
    collated = ahead(ready, islice(order, done, taking.stop), device)
    for step, given in enumerate(collated, start=done):
        began, factor = perf_counter(), _schedule(step, steps, settings)
        lr = settings.rate * factor
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        read = torch.cat([sizes[of.chunk.part][of.chunk.places] for of in given])
        at_once = f"a training step of {len(read)} examples"
        with enough_memory(device, at_once, _remedy(settings, joint)), activations(backbone, settings):
            terms = add_gradients(
                moved,
                asked,
                penalties,
                given,
                step,
                settings,
                joint=joint,
                lr=lr,
                sign=sign,
                scale=scale.factor,
            )
        taken = scale.unscale(leaves.values())
        loss, penalty, norm = _read(terms, _clip(clipped, settings.clip))
        if not math.isfinite(loss + penalty) or (taken and not math.isfinite(norm)):
            if sign < 0:
                break  # ascent may diverge: the last finite weights are its result
            found = f"the gradient's norm is {norm}"
            for term, value in (("penalty", penalty), ("loss", loss)):
                found = found if math.isfinite(value) else f"the {term} is {value}"
            raise TrainingDiverged(
                f"{label}: {found} at step {step + 1} of {steps}; lower the learning rate "
                f"(now {settings.rate:g}) or train in float32"
            )
        if taken:
            if settings.optimizer == "adamw":
                moved.decay(settings, lr)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rates = _rates(read, perf_counter() - began)
        state.save_if_due(step + 1)
        due = (step + 1) * settings.validations // steps > step * settings.validations // steps
        facts = {**({"penalty": penalty} if penalties else {}), **terms.facts, **moved.facts()}
        facts |= validate(moved.displacement()) if validate and due else {}
        at = step + 1 - taking.start
        watch(label, at, len(taking), loss=loss, lr=lr, gradient_norm=norm, **rates, **facts)
    state.remove()
    if moments is not None:
        moments.take(optimizer)
    return moved.displacement()


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


def _read(terms: Terms, norm: Tensor) -> tuple[float, float, float]:
    """Loss, penalties and norm of the gradient, read together when all is queued: a device stands still for
    it."""
    values = [value.to(norm.dtype) for value in (*terms.losses, *terms.penalties)]
    *read, size = torch.stack([*values, norm]).tolist()
    count = len(terms.losses)
    return sum(read[:count]), sum(read[count:]), size


def check_precision(precision: str, space: Space) -> None:
    """Refuse what would lose most of a displacement. Raises: InputError."""
    if (precision, space) == ("fp16", "tangent"):
        raise InputError(
            "precision: fp16 in tangent space, where displacements are too small for its range; "
            "take bf16 or float32"
        )


def _remedy(settings: TrainSettings, joint: Joint | None) -> str:
    """What takes less memory, the first of which leaves the result as it is."""
    twice = "" if settings.checkpoint_activations else ", set checkpoint_activations"
    narrower = ", take precision bf16" if settings.precision == "float32" else ""
    fewer = "" if joint is None else f", set combiner_memory (now {joint.room / 1e9:.3g} GB)"
    return (
        f"raise accumulation (now {settings.accumulation}), which computes the same step in smaller pieces"
        f"{twice}{narrower}{fewer}, or lower batch_size (now {settings.batch_size})"
    )


def activations(backbone: Backbone, settings: TrainSettings) -> AbstractContextManager[None]:
    """Activations kept or computed twice, as the settings say."""
    return recomputed(backbone.network, backbone.ref) if settings.checkpoint_activations else nullcontext()


def _clip(leaves: Params, most: float | None) -> Tensor:
    """Clip the gradients to a global norm, if there is one; the norm before."""
    if most is not None:
        return torch.nn.utils.clip_grad_norm_(leaves.values(), most)
    return torch.nn.utils.get_total_norm([leaf.grad for leaf in leaves.values() if leaf.grad is not None])


def _rates(sizes: Tensor, seconds: float) -> dict[str, float]:
    """What a step took, and read a second: examples and, where inputs differ in size, tokens."""
    rates = {"seconds": seconds, "examples_per_second": len(sizes) / seconds}
    return rates | ({"tokens_per_second": int(sizes.sum()) / seconds} if int(sizes.max()) > 1 else {})


def _schedule(step: int, steps: int, settings: TrainSettings) -> float:
    """The learning rate's factor: linear warm-up, then cosine to zero or constant."""
    warm = round(settings.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _optimizer(settings: TrainSettings, moved: Moved) -> torch.optim.Optimizer:
    """Leaves in the order of the space; ``peak`` is the largest learning rate of a group."""
    usual = [leaf for name, leaf in moved.leaves.items() if name not in moved.rates]
    own = [{"params": [moved.leaves[name]], "peak": rate} for name, rate in moved.rates.items()]
    groups = [{"params": usual, "peak": settings.rate}, *own]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.rate)
    return torch.optim.AdamW(groups, lr=settings.rate, weight_decay=0.0)  # the decay is the space's


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
            "start": _sums(start),
        },
        sort_keys=True,
    )


def _told(part: Part) -> list[object]:
    return [part.name, part.fingerprint, len(part.split)]


def _continued(
    signature: str, displaced: Params | None, portion: range | None, moments: Moments | None
) -> str:
    """The signature of a training that goes on from another one."""
    before = {
        **({} if displaced is None else {"displaced": _sums(displaced)}),
        **({} if portion is None else {"portion": [portion.start, portion.stop]}),
        **({} if moments is None else {"moments": moments.digest()}),
    }
    return json.dumps({**json.loads(signature), **before}, sort_keys=True) if before else signature


def _sums(params: Params) -> dict[str, float]:
    return {name: float(value.cpu().double().sum()) for name, value in params.items()}
