"""Task vectors from training: single-task regimes and the baselines they are compared with."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from taskvec.arguments import checked
from taskvec.group import current
from taskvec.models.backbone import Backbone
from taskvec.models.selection import selected
from taskvec.place import describe_device
from taskvec.progress import Watch, unwatched
from taskvec.training.joint import Asked, joint_by
from taskvec.training.logs import Log, logged
from taskvec.training.loop import train
from taskvec.training.masks import Masks, digest_of
from taskvec.training.parts import Part, others_of
from taskvec.training.penalties.factors import kept, told_of_files
from taskvec.training.penalties.settings import PenaltySettings, files_of, foreign
from taskvec.training.rate import forget, recorded, telling, with_rate
from taskvec.training.regimes import Regime, regime_called
from taskvec.training.settings import TrainSettings
from taskvec.training.sharded import check_shardable
from taskvec.vectors import TaskVector


@checked
def finetune(
    backbone: Backbone,
    parts: Part | Sequence[Part],
    *,
    regime: str | Regime = "full",
    settings: TrainSettings | None = None,
    combiner: Asked | None = None,
    ascend: bool = False,
    checkpoint: Path | None = None,
    validate: Callable[[TaskVector], Mapping[str, float]] | None = None,
    references: Sequence[Part] = (),
    keep: Path | None = None,
    mask: Masks | None = None,
    watch: Watch = unwatched,
    log: Log | None = None,
) -> TaskVector:
    """Fine-tune the backbone's encoder and return what changed, a vector on the backbone's own checkpoint.

    Args:
        parts: one task; or several, for joint training: each step holds one task's examples or, with a
            combiner, a batch of every task.
        regime: a ``Regime``, or the name of one: a key of :data:`taskvec.training.regimes.REGIMES`, or any
            selection of :mod:`taskvec.names`, such as ``mlp`` or ``re:PATTERN``, in ordinary space or in that
            of which it has the prefix (``tangent-``, ``lora-``, ``tangent-lora-``, ``gated-``).
        combiner: makes one gradient of the tasks', see :mod:`taskvec.combiners`: a name, a function of the
            Gram matrix that returns weights, or a mapping, ``{"combiner": "cagrad", "c": 0.4}``.
        ascend: climb the loss instead (the gradient-ascent baseline of negation).
        validate: figures to report on the way, of the task vector as it is then.
        mask: the only entries of tensors, or rows, that move, see :func:`taskvec.mask_vote`; of regimes that
            train whole tensors.
        references: other tasks, of which penalties in the settings may use the inputs, and no labels; those
            of ``parts`` are left out.
        checkpoint, keep, watch: see :func:`taskvec.training.loop.train`. A search for the learning rate keeps
            its losses beside the checkpoint until training ends.
        log: called with the number of every step and its figures, see :data:`taskvec.training.logs.Log`.

    Returns: float32 deltas under the checkpoint's names, of LoRA as factors; unselected tensors, and those of
        closed gates, read as zero and are not stored. A sharded backbone is moved itself; of its vector,
        process 0 alone can read the tensors, and ``validate`` only the names.
    Raises: InputError if the regime selects nothing, a split is empty or a label lies outside its head.
    """
    chosen = [parts] if isinstance(parts, Part) else list(parts)
    kind = regime_called(regime)
    recipe = settings or TrainSettings()
    if backbone.sharding is not None:
        check_shardable(kind, recipe, combiner=combiner is not None, mask=mask is not None)
    joint = None if combiner is None else joint_by(combiner, chosen, recipe, backbone.device)
    others = others_of(chosen, references) if foreign(recipe.penalty) else []
    more, by = {} if joint is None else joint.told(), "" if joint is None else f" by {joint.combiner.name}"
    more |= read(others, recipe.penalty, [part.name for part in chosen])
    start, label = selected(backbone, kind.selection), f"{kind.name} {joined(chosen)}{by}"
    with kept(keep, recipe.penalty) if recipe.lr == "auto" else nullcontext(keep) as folder:
        recipe, search = with_rate(
            *(backbone, start, chosen, recipe, kind),
            joint=joint,
            references=others,
            keep=folder,
            mask=mask,
            checkpoint=checkpoint,
            watch=watch,
            label=label,
        )
        more |= recorded(search)
        more |= {} if mask is None else {"mask": digest_of(mask)}
        more |= {} if backbone.sharding is None else {"fsdp": {"processes": current().size}}

        def vector(deltas: Mapping[str, Tensor]) -> TaskVector:
            variant = "gradient ascent" if ascend else None
            return as_vector(
                backbone, deltas, regime=kind, variant=variant, settings=recipe, parts=chosen, **more
            )

        deltas = train(
            *(backbone, start, chosen, recipe),
            space=kind.evaluated_in,
            lora=kind.lora,
            gates=kind.gating,
            joint=joint,
            sign=-1.0 if ascend else 1.0,
            checkpoint=checkpoint,
            validate=None if validate is None else lambda deltas: validate(vector(deltas)),
            references=others,
            keep=folder,
            mask=mask,
            watch=telling(logged(watch, log), search),
            label=f"ascent {joined(chosen)}{by}" if ascend else label,
        )
    forget(checkpoint)
    return vector(deltas)


def as_vector(
    backbone: Backbone,
    deltas: Mapping[str, Tensor],
    *,
    regime: Regime,
    settings: TrainSettings,
    parts: Sequence[Part],
    variant: str | None = None,
    **more: object,
) -> TaskVector:
    """Deltas as a task vector of the backbone's checkpoint, with the settings that made them."""
    training = {
        **settings.told(),
        **regime.details(),
        "examples": {part.name: len(part.split) for part in parts},
        "tasks": {part.name: part.fingerprint for part in parts},
        "heads": {part.name: part.objective.fingerprint() for part in parts},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": describe_device(backbone.device),
        **more,
    }
    return TaskVector.from_tensors(
        deltas,
        base=backbone.source,
        task=joined(parts),
        regime=f"{regime.name} ({variant})" if variant else regime.name,
        space=regime.evaluated_in,
        training=training,
    )


def read(
    references: Sequence[Part], penalties: Sequence[PenaltySettings] = (), trained: Sequence[str] = ()
) -> dict[str, object]:
    """What provenance says of tasks whose inputs penalties used, by themselves or through files."""
    files = {
        ref: told for ref, told in told_of_files(files_of(penalties)).items() if told["task"] not in trained
    }
    if not (references or files):
        return {}
    answers = any(part.objective.guided for part in references)  # that stand in the inputs
    splits = sorted({str(told["split"]) for told in files.values()})
    labelled = "train labels" if answers else "unlabelled train inputs"
    consumed = [f"{labelled} of other tasks"] if references else []
    consumed += [f"{' and '.join(splits)} inputs of other tasks, in files of statistics"] if files else []
    return {
        **({"references": {part.name: part.fingerprint for part in references}} if references else {}),
        **({"statistics": files} if files else {}),
        "consumed": "; ".join(consumed),
    }


def joined(parts: Sequence[Part]) -> str:
    """The names of the tasks, as a vector of all of them is called."""
    return "+".join(part.name for part in parts)
