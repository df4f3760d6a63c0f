"""The learning rate of a training, found before it: short trainings from the same start, judged on validation
data."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from taskvec.errors import InputError, TrainingDiverged
from taskvec.group import current
from taskvec.models.backbone import Backbone, on_device
from taskvec.models.functional import encode
from taskvec.place import autocast
from taskvec.progress import Watch, patient, unwatched
from taskvec.reading import read_mapping
from taskvec.tasks.objective import Batch, Prepared
from taskvec.tasks.split import Split
from taskvec.training.joint import Joint
from taskvec.training.loop import train
from taskvec.training.masks import Masks, digest_of
from taskvec.training.parts import Part
from taskvec.training.penalties.factors import told_of_files
from taskvec.training.penalties.settings import files_of
from taskvec.training.regimes import Regime, Space
from taskvec.training.settings import TrainSettings
from taskvec.training.space import Params, linearized
from taskvec.training.stream import joint_steps, total_steps
from taskvec.writing import replace_text

FIRST = {"adamw": -14, "sgd": -6}
"""Where the search begins, in quarters of a decade: 3.2e-4 and 3.2e-2."""

LOWEST, HIGHEST = -32, 8
"""Where it ends, in the same unit: 1e-8 and 100."""

SHARE, FEWEST, MOST = 4, 10, 200
"""A search's training is this part of the whole one, and has at least and at most so many steps."""

EXAMPLES = 1000
"""Of a validation split; of a larger one so many are drawn."""

SLACK = 0.02
"""Share of what the best rate gains that a smaller one may miss."""


@dataclass(frozen=True)
class Found:
    """A learning rate, and what was done to find it.

    Args:
        tried: rate -> validation loss after a short training, infinite where that diverged.
        untrained: the same loss before any step.
        steps: of all short trainings together.
        examples: of validation, by task.
    """

    tried: Mapping[float, float]
    untrained: float
    steps: int
    examples: Mapping[str, int]

    @property
    def rate(self) -> float:
        """The smallest one that gains almost as much as the best."""
        best = min(self.tried.values())
        enough = best + SLACK * max(self.untrained - best, 0.0)
        return min(rate for rate, loss in self.tried.items() if loss <= enough)

    def record(self) -> dict[str, object]:
        """For provenance and records, as plain data; a loss that is not finite is ``None``."""
        return {
            "lr": self.rate,
            "steps": self.steps,
            "consumed": "validation labels",
            "examples": dict(self.examples),
            "untrained_loss": _plain(self.untrained),
            "losses": {f"{rate:g}": _plain(loss) for rate, loss in sorted(self.tried.items())},
        }


def recorded(found: Found | None) -> dict[str, object]:
    """What provenance says of a search, if there was one."""
    return {"lr_search": found.record()} if found else {}


def telling(watch: Watch, found: Found | None) -> Watch:
    """A watcher that is told of a search, if there was one, with the training's first step."""
    if found is None:
        return watch
    more = {"lr_found": found.rate, "lr_search_steps": float(found.steps)}

    def told(label: str, done: int, total: int, **facts: float) -> None:
        watch(label, done, total, **facts, **(more if facts and done == 1 else {}))

    return told


def with_rate(
    backbone: Backbone,
    start: Params,
    parts: Sequence[Part],
    settings: TrainSettings,
    regime: Regime,
    *,
    joint: Joint | None = None,
    references: Sequence[Part] = (),
    keep: Path | None = None,
    mask: Masks | None = None,
    checkpoint: Path | None = None,
    watch: Watch = unwatched,
    label: str = "training",
) -> tuple[TrainSettings, Found | None]:
    """The settings of a training with a learning rate that is a number, and the search for it, if they say
    ``auto``; the same at every call.

    Rates half a decade apart are tried for a quarter of the steps, from the optimizer's usual one on and as
    long as the best lies at the edge, then those a quarter of a decade beside the best. Of rates that gain
    almost as much as the best, the smallest is taken: longer trainings, and sums of vectors, ask for less.

    Args:
        start, joint, references, keep, mask: as for the training, see :func:`taskvec.training.loop.train`.
        checkpoint: of the training; losses of finished short trainings are kept beside it, so that a search
            that was killed goes on.

    Raises: InputError for a part without validation examples; TrainingDiverged if no rate is small enough.
    """
    if settings.lr != "auto":
        return settings, None
    examples = {part.name: held_out(part) for part in parts}
    whole = (joint_steps if joint else total_steps)([len(part.split) for part in parts], settings)
    steps = min(whole, max(FEWEST, whole // SHARE), MOST)
    probe = Probe(
        settings.model_copy(update={"steps": steps, "validations": 0}),
        partial(
            train,
            *(backbone, start, parts),
            space=regime.evaluated_in,
            lora=regime.lora,
            gates=regime.gating,
            joint=joint,
            references=references,
            keep=keep,
            mask=mask,
            watch=watch,
        ),
        partial(validation_loss, backbone, start, parts, examples, settings, regime.evaluated_in, watch),
        Notes(checkpoint, _digest(parts, examples, settings, start, regime, joint, references, mask)),
        label,
    )
    tried = probe.search()
    counts = {name: len(split) for name, split in examples.items()}
    found = Found(tried, probe.loss({}), steps * len(tried), counts)
    return settings.model_copy(update={"lr": found.rate}), found


@dataclass(frozen=True)
class Probe:
    """The short trainings of a search.

    Args:
        settings: theirs, but for the learning rate.
        run: trains with settings, under a ``label``.
        loss: of what was learned.
        notes: what is known of some rates.
    """

    settings: TrainSettings
    run: Callable[..., Params]
    loss: Callable[[Params], float]
    notes: "Notes"
    label: str

    def search(self) -> dict[float, float]:
        """Rate -> loss. Raises: TrainingDiverged if there is no finite one."""
        places = climb(lambda place: self._loss_at(rate_at(place)), FIRST[self.settings.optimizer])
        tried = {rate_at(place): loss for place, loss in places.items()}
        if math.isinf(min(tried.values())):
            raise TrainingDiverged(
                f"{self.label}: diverges within {self.settings.steps} steps at every learning rate from "
                f"{max(tried):g} down to {min(tried):g}; look at the data and the model, or train in float32"
            )
        return tried

    def _loss_at(self, rate: float) -> float:
        if rate not in self.notes:
            settings = self.settings.model_copy(update={"lr": rate})
            try:
                learned = self.run(settings=settings, label=f"{self.label}, lr {rate:g}")
                self.notes[rate] = self.loss(learned)
            except TrainingDiverged:
                self.notes[rate] = math.inf
        return self.notes[rate]


def climb(loss: Callable[[int], float], first: int) -> dict[int, float]:
    """What a function of whole numbers is at its minimum and around it: steps of two, then of one.

    >>> climb(lambda place: abs(place - 3.0), 0)
    {0: 3.0, -2: 5.0, 2: 1.0, 4: 1.0, 1: 2.0, 3: 0.0}
    """
    found: dict[int, float] = {}
    for stride in (2, 1):
        before = None
        while first != before:
            for place in (first, first - stride, first + stride):
                if place not in found and LOWEST <= place <= HIGHEST:
                    found[place] = loss(place)
            before, first = first, min(found, key=lambda place: (found[place], place))
    return found


def rate_at(place: int) -> float:
    """Rates a quarter of a decade apart, in two digits: 1, 1.8, 3.2, 5.6, 10."""
    return float(f"{10 ** (place / 4):.1e}")


def held_out(part: Part) -> Split:
    """The validation examples that judge a part. Raises: InputError if it brings none."""
    if part.validation is None:
        raise InputError(
            f"lr: auto is found on validation data, and {part.name!r} brings none; make the part with "
            "validation=SPLIT, or set lr to a number"
        )
    split = part.validation() if callable(part.validation) else part.validation
    if len(split) == 0:
        raise InputError(
            f"{part.name}: the validation split is empty, and lr: auto needs it; set lr to a number"
        )
    return split if len(split) <= EXAMPLES else split.draw(EXAMPLES, seed=0)


@torch.no_grad()
def validation_loss(
    backbone: Backbone,
    start: Params,
    parts: Sequence[Part],
    examples: Mapping[str, Split],
    settings: TrainSettings,
    space: Space,
    watch: Watch,
    displacement: Params,
) -> float:
    """The mean over parts of the mean loss over validation examples; infinite where it is not a number."""
    outputs, means = _displaced(backbone, start, displacement, space), []
    for part in parts:
        asked = part.objective.on(backbone.device)
        measured: list[tuple[float, int]] = []
        for batch in _batches(asked.prepare(backbone, examples[part.name]), settings, part.name, watch):
            there = batch.on(backbone.device)
            with autocast(settings.precision, backbone.device):
                given = outputs(there.inputs)
            measured.append((float(asked.loss(given.float(), there)), len(batch.index)))
        measured = current().collect(measured)
        means.append(sum(loss * rows for loss, rows in measured) / sum(rows for _, rows in measured))
    mean = sum(means) / len(means)
    return mean if math.isfinite(mean) else math.inf


def _displaced(
    backbone: Backbone, start: Params, displacement: Params, space: Space
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """The outputs of a displaced model, of inputs."""
    there, by = (on_device(params, backbone.device) for params in (start, dict(displacement)))
    if space == "tangent" and by:
        return partial(linearized(backbone, there), by)
    moved = {name: there[name] + step for name, step in by.items()}
    return partial(encode, backbone, {**there, **moved})


def _batches(prepared: Prepared, settings: TrainSettings, name: str, watch: Watch) -> Iterator[Batch]:
    """All examples, those of similar size together; of several processes, this one's share of the batches."""
    size = min(max(1, settings.batch_size // settings.accumulation), prepared.together or settings.batch_size)
    pieces = current().deal(torch.split(prepared.sizes.argsort(stable=True), size))
    told = patient(watch)
    for done, places in enumerate(pieces, start=1):
        yield prepared.batch(places)
        told(f"measuring {name}, validation", done, len(pieces))


class Notes(dict[float, float]):
    """Rates that were tried, and their losses; kept beside a checkpoint, if there is one.

    Notes of another search, and what is none, are not used.
    """

    def __init__(self, checkpoint: Path | None, digest: str) -> None:
        super().__init__()
        self._path, self._digest = checkpoint and notes_beside(checkpoint), digest
        if self._path is not None:
            self.update(current().broadcast(_kept(self._path, digest)))

    def __setitem__(self, rate: float, loss: float) -> None:
        super().__setitem__(rate, loss)
        if self._path is not None and current().first:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            losses = {repr(rate): _plain(loss) for rate, loss in self.items()}
            replace_text(self._path, json.dumps({"search": self._digest, "losses": losses}))


def _kept(path: Path, digest: str) -> dict[float, float]:
    """What a file tells of a search; nothing of another one."""
    with suppress(InputError, LookupError, ValueError, TypeError, AttributeError):
        kept = read_mapping(path, 1 << 16) if path.exists() else {}
        if kept["search"] == digest:
            return {float(rate): _read(loss) for rate, loss in kept["losses"].items()}
    return {}


def forget(checkpoint: Path | None) -> None:
    """A training is over: remove what its search kept."""
    if checkpoint is not None and current().first:
        notes_beside(checkpoint).unlink(missing_ok=True)


def notes_beside(checkpoint: Path) -> Path:
    """Where a search keeps its losses."""
    return checkpoint.with_suffix(".lr.json")


def _read(loss: object) -> float:
    """A loss as it was kept. Raises: ValueError."""
    if loss is None:
        return math.inf
    if not isinstance(loss, float) or not math.isfinite(loss):
        raise ValueError
    return loss


def _plain(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _digest(
    parts: Sequence[Part],
    examples: Mapping[str, Split],
    settings: TrainSettings,
    start: Params,
    regime: Regime,
    joint: Joint | None,
    references: Sequence[Part],
    mask: Masks | None,
) -> str:
    """Of what decides a search."""
    said = {
        "settings": settings.told(but={"validations", "checkpoint_activations"}),
        "parts": [
            [part.name, part.fingerprint, len(part.split), part.objective.fingerprint()] for part in parts
        ],
        "validation": [len(split) for split in examples.values()],
        "regime": [regime.name, regime.selection, regime.space, regime.details()],
        "joint": joint and dict(joint.said),
        "references": [[part.name, part.fingerprint] for part in references],
        **({"statistics": told_of_files(files)} if (files := files_of(settings.penalty)) else {}),
        "start": {name: float(value.cpu().double().sum()) for name, value in start.items()},
        "torch": torch.__version__,
        **({} if mask is None else {"mask": digest_of(mask)}),
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(said, sort_keys=True).encode())
