"""Task vectors from training: single-task regimes and the baselines they are compared with."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from taskvec.models.backbone import Backbone
from taskvec.models.selection import select
from taskvec.progress import Watch, unwatched
from taskvec.training.loop import Params, train
from taskvec.training.parts import Part
from taskvec.training.settings import TrainSettings
from taskvec.vectors import TaskVector

REGIMES = {
    "full": "every parameter of the encoder",
    "attention": "the weights of the attention projections q, k, v, o; all else frozen",
}
"""What each regime trains. A regime is a selection of parameters, not a code path."""


def finetune(
    backbone: Backbone,
    parts: Part | Sequence[Part],
    *,
    regime: str = "full",
    settings: TrainSettings | None = None,
    ascend: bool = False,
    checkpoint: Path | None = None,
    validate: Callable[[Params], Mapping[str, float]] | None = None,
    watch: Watch = unwatched,
) -> TaskVector:
    """Fine-tune the backbone's encoder and return what changed, a vector on the backbone's own checkpoint.

    Args:
        parts: one task; or several, for the joint multi-task baseline (each step holds one task's examples).
        regime: a key of ``REGIMES``.
        ascend: climb the loss instead (the gradient-ascent baseline of negation).
        checkpoint, validate, watch: see :func:`taskvec.training.loop.train`.

    Returns: float32 deltas under the checkpoint's names; unselected tensors read as zero and are not stored.
    Raises: InputError if the regime selects nothing, a split is empty or a label lies outside its head.
    """
    chosen = [parts] if isinstance(parts, Part) else list(parts)
    recipe = settings or TrainSettings()
    names = select(backbone, regime)
    everything = backbone.encoder_parameters()
    start = {name: everything[name].detach().float() for name in names}
    label = f"{'ascent' if ascend else regime} {'+'.join(part.name for part in chosen)}"
    tuned = train(
        backbone,
        start,
        chosen,
        recipe,
        sign=-1.0 if ascend else 1.0,
        checkpoint=checkpoint,
        validate=validate,
        watch=watch,
        label=label,
    )
    return as_vector(
        backbone,
        {name: tuned[name] - start[name] for name in names},
        task="+".join(part.name for part in chosen),
        regime=f"{regime} (gradient ascent)" if ascend else regime,
        settings=recipe,
        parts=chosen,
    )


def as_vector(
    backbone: Backbone,
    deltas: Mapping[str, Tensor],
    *,
    task: str,
    regime: str,
    settings: TrainSettings,
    parts: Sequence[Part],
    **more: object,
) -> TaskVector:
    """Deltas as a task vector of the backbone's checkpoint, with the settings that made them."""
    training = {
        **settings.model_dump(),
        "examples": {part.name: len(part.split) for part in parts},
        "tasks": {part.name: part.fingerprint for part in parts},
        "heads": {part.name: part.head.fingerprint() for part in parts},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **more,
    }
    return TaskVector.from_tensors(
        dict(deltas), base=backbone.ref, task=task, regime=regime, training=training
    )
