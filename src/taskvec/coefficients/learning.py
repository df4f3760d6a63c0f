"""The loop: numbers of a merge, a stream of batches, and an optimizer."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from taskvec.arguments import checked, distinct
from taskvec.coefficients.adarank import Ranked
from taskvec.coefficients.agreement import agreement_signal
from taskvec.coefficients.best import Best
from taskvec.coefficients.learned import Learned
from taskvec.coefficients.merge import Merge
from taskvec.coefficients.numbers import Numbers
from taskvec.coefficients.passes import Passes, held_out, splits_of
from taskvec.coefficients.presets import preset
from taskvec.coefficients.scopes import Groups, groups_of
from taskvec.coefficients.settings import CoefficientSettings
from taskvec.coefficients.signals import SIGNALS, Signal
from taskvec.coefficients.streaming import Stream, add_scaled
from taskvec.coefficients.tangent import InTangent, Kept
from taskvec.coefficients.trimming import trimmed
from taskvec.coefficients.weighted import Weighted
from taskvec.errors import InputError, TaskvecError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.points import beside_encoder, own_space
from taskvec.progress import Watch, unwatched
from taskvec.training.checkpoint import Checkpoint
from taskvec.training.logs import Log, logged
from taskvec.training.regimes import Space
from taskvec.vectors import TaskVector, apply
from taskvec.weights import Weights, open_weights


@checked
def learn_coefficients(
    evaluator: Evaluator,
    vectors: Mapping[str, TaskVector],
    tasks: Sequence[str],
    settings: CoefficientSettings | str = "adamerging",
    *,
    space: Space | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    watch: Watch = unwatched,
    log: Log | None = None,
) -> Learned:
    """The sum of task vectors with the coefficients that serve some tasks best, found by gradient.

        theta(a) = theta_0 + sum_t a[t, g] tau_t,    dL/da[t, g] = <dL/dtheta, tau_t> over the group g

    A step is a pass over the tasks' batches through one model and its gradient, and inner products with
    vectors that are read a tensor at a time: memory does not grow with their number.

    Args:
        vectors: under any labels; of the evaluator's model, and trained on any tasks.
        tasks: of the evaluator, whose examples are learned from.
        settings: or the name of a preset.
        space: where vectors are added; by default that in which they were trained. In ``tangent`` space
            outputs are computed once, and no step needs the network; the loss of labels behind a head that
            does not normalise is convex, and its global minimum is found by L-BFGS on all examples.
        seed: of the batches, and of a random partition.
        checkpoint: where the state is kept every 20 seconds or so; a killed call goes on to the same bits.
        watch: told of the objective after each step.

    Raises: InputError for settings, tasks or vectors that do not fit; TaskvecError where the objective is no
        longer finite.
    Source: Yang et al. 2024 (arXiv:2310.02575); Zhang et al. 2024 (arXiv:2407.02880).
    """
    chosen = preset(settings) if isinstance(settings, str) else settings
    space = own_space(vectors) if space is None else space
    if space == "tangent" and chosen.scope == "rank":
        raise InputError("scope: rank goes with ordinary space, and these vectors are added in tangent space")
    base = _base(evaluator, vectors, tasks, space)
    signal = _signal(evaluator, vectors, tasks, chosen, space)
    vectors = vectors if chosen.trim is None else trimmed(vectors, chosen.trim)
    stream = Stream(vectors, base)
    if not stream.changed:
        raise InputError(f"{', '.join(vectors)}: change nothing in the model's encoder; take other vectors")
    groups = groups_of(_changed(vectors, base), chosen, seed)
    kind = partial(Kept, vectors=vectors, groups=groups) if space == "tangent" else Passes
    splits, held = splits_of(evaluator, tasks, chosen), None
    if chosen.keep == "best":
        splits, rest = held_out(splits)
        held = kind(evaluator, rest, chosen, signal, seed)
    passes = kind(evaluator, splits, chosen, signal, seed)
    with ExitStack() as scratch:
        merge = _merge(base, stream, groups, chosen, scratch, space)
        if isinstance(passes, Kept) and passes.is_convex():
            trace = passes.minimum(merge)
        else:
            signature = _signature(merge, passes, chosen, seed) if checkpoint else ""
            trace = descend(merge, passes, chosen, checkpoint, signature, logged(watch, log), held=held)
        vector = _vector(merge, vectors, groups, open_weights(evaluator.backbone.source))
    found = merge.coefficients().detach()
    return Learned(
        vector,
        {
            label: dict(zip(groups.names, row, strict=True))
            for label, row in zip(stream.labels, found.tolist(), strict=True)
        },
        tuple(trace),
        sum(leaf.numel() for leaf in merge.leaves.values()),
        tuple(tasks),
        chosen,
        merge.kept() if isinstance(merge, Ranked) else {},
        passes.guided,
    )


def descend(
    merge: Merge,
    passes: Passes,
    settings: CoefficientSettings,
    checkpoint: Path | None = None,
    signature: str = "",
    watch: Watch = unwatched,
    label: str = "learning coefficients",
    held: Passes | None = None,
) -> list[float]:
    """Move the numbers of a merge, step by step, to where the objective is smaller; it, before each step.

    Args:
        checkpoint: where the state is kept, for the same ``signature`` to go on.
        held: of examples that are held out; at the end the numbers are those that were best there.

    Raises: TaskvecError when the objective or its gradient is no longer finite.
    """
    leaves, steps = list(merge.leaves.values()), settings.steps
    optimizer = _optimizer(settings, leaves)
    trace = torch.zeros(steps, dtype=torch.float64)
    best = Best(merge, held, steps)
    kept = {**merge.leaves, "trace": trace, **best.state}
    state = Checkpoint(checkpoint, kept, optimizer, signature)
    for step in range(state.restore(), steps):
        optimizer.zero_grad()
        merge.write()
        best.look(step)
        values = passes.backward(merge.model, step)
        merge.pull()
        objective = sum(values.values()) + merge.penalty()
        norm = _clip(leaves, settings.clip)
        if not (math.isfinite(objective) and math.isfinite(norm)):
            raise TaskvecError(
                f"{label}: the objective is {objective}, its gradient {norm}, at step {step + 1} of {steps}; "
                f"{_remedy(settings, step)}"
            )
        optimizer.step()
        merge.settle()
        trace[step] = objective
        state.save_if_due(step + 1)
        watch(label, step + 1, steps, objective=objective, gradient_norm=norm)
    best.settle()
    state.remove()
    return trace.tolist()


def _signal(
    evaluator: Evaluator,
    vectors: Mapping[str, TaskVector],
    tasks: Sequence[str],
    settings: CoefficientSettings,
    space: Space,
) -> Signal:
    if settings.signal == "agreement":
        return agreement_signal(evaluator, vectors, tasks, settings.split, space)
    return SIGNALS[settings.signal]


def _merge(
    base: Mapping[str, Tensor],
    stream: Stream,
    groups: Groups,
    settings: CoefficientSettings,
    held: ExitStack,
    space: Space,
) -> Numbers:
    """The merge that scope and space ask for; what it keeps in files stays as long as ``held``."""
    if space == "tangent":
        return InTangent(stream.labels, groups, settings)
    if settings.scope != "rank":
        return Weighted(base, stream, groups, settings)
    scratch = Path(held.enter_context(TemporaryDirectory(prefix="taskvec-")))
    return Ranked(base, stream, groups, settings, scratch)


def _vector(merge: Numbers, vectors: Mapping[str, TaskVector], groups: Groups, base: Weights) -> TaskVector:
    found = merge.coefficients().detach()
    if isinstance(merge, Ranked):
        return merged(vectors, groups, merge.besides(found)) + merge.matrices(base)
    return merged(vectors, groups, found)


def merged(vectors: Mapping[str, TaskVector], groups: Groups, found: Tensor) -> TaskVector:
    """The sum of vectors with these coefficients (vector, group): a linear form of theirs."""
    if groups.parts > 1:
        return _in_parts(vectors, groups, found)
    scaled = (_scaled(vectors[label], groups, row) for label, row in zip(sorted(vectors), found, strict=True))
    first = next(scaled)
    return sum(scaled, start=first)


def _scaled(vector: TaskVector, groups: Groups, row: Tensor) -> TaskVector:
    """A vector with a coefficient (group,) on each group."""
    if len(groups.names) == 1:
        return row.item() * vector
    return vector.scaled({name: row[place].item() for name, place in groups.places.items() if name in vector})


def _in_parts(vectors: Mapping[str, TaskVector], groups: Groups, found: Tensor) -> TaskVector:
    """The sum where entries of a tensor have coefficients of their own: no linear form, so it is computed."""
    specs = {
        name: spec for of in vectors.values() for name, spec in of.specs.items() if name in groups.places
    }
    deltas = {name: torch.zeros(spec.shape, dtype=spec.dtype) for name, spec in specs.items()}
    stream = Stream(vectors, deltas)
    for name, delta in deltas.items():
        add_scaled(stream, name, delta, found[:, groups.of(name)], groups.partition(delta.shape))
    return TaskVector.from_tensors(deltas, base=next(iter(vectors.values())).base.weights)


def _optimizer(settings: CoefficientSettings, leaves: Sequence[Tensor]) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(leaves, lr=settings.lr, weight_decay=settings.weight_decay)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(leaves, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)


def _remedy(settings: CoefficientSettings, step: int) -> str:
    """What helps against an objective that is not finite; before the first step no rate is to blame."""
    if step:
        return f"lower the learning rate (now {settings.lr:g})"
    return f"take vectors without NaN or infinity, or a smaller start (now {settings.start:g})"


def _clip(leaves: Sequence[Tensor], most: float | None) -> float:
    """Clip the gradients to a global norm, if there is one; the norm before."""
    return float(torch.nn.utils.clip_grad_norm_(leaves, most or math.inf))


def _base(
    evaluator: Evaluator, vectors: Mapping[str, TaskVector], tasks: Sequence[str], space: Space
) -> dict[str, Tensor]:
    """The tensors that vectors may move, in float32 or more.

    Raises: InputError for no vector or task; BaseMismatch if a vector is of another model.
    """
    distinct(tasks, "tasks")
    distinct(list(vectors), "vectors")
    weights = open_weights(evaluator.backbone.source)
    for vector in vectors.values():
        apply(weights, vector)  # lazy: only refuses a vector of another base
    beside = {} if space == "tangent" else beside_encoder(evaluator.backbone)
    held = {**beside, **evaluator.pretrained}
    return {
        name: value.detach().to(torch.promote_types(value.dtype, torch.float32))
        for name, value in held.items()
    }


def _changed(vectors: Mapping[str, TaskVector], base: Mapping[str, Tensor]) -> list[str]:
    """Names of all tensors that vectors change: those of the encoder first, in its order."""
    names = {name for of in vectors.values() for name in of if of.terms_at(name)}
    return [name for name in base if name in names] + sorted(names - base.keys())


def _signature(merge: Merge, passes: Passes, settings: CoefficientSettings, seed: int) -> str:
    """What a checkpoint must agree with to be resumed: every setting, the data, what is merged."""
    merge.write()
    sums = {name: value.double().sum().item() for name, value in merge.model.items()}
    said = {"settings": settings.model_dump(), "seed": seed, "tasks": passes.fingerprints(), "model": sums}
    return json.dumps(said, sort_keys=True)
