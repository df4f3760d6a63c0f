"""Penalties on the displacement of a network that something else trains."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import xxhash
from torch import Tensor, nn

from taskvec.errors import InputError
from taskvec.models.backbone import Backbone, evaluating
from taskvec.progress import unwatched
from taskvec.training.penalties import PENALTIES
from taskvec.training.penalties.penalty import Given, Penalty
from taskvec.training.penalties.settings import Curved, PenaltySettings, TauJp
from taskvec.training.penalties.tau_jp import mean_norm
from taskvec.training.settings import TrainSettings
from taskvec.training.space import Moved
from taskvec.weights import Weights

Params = Mapping[str, Tensor]
Collate = Callable[[list[Any]], Mapping[str, Any]]
Inputs = Callable[[int], Mapping[str, Any]]
"""The number of a step -> a batch of another task, without labels."""


class Trained(NamedTuple):
    """A network in training, as penalties see it.

    Attributes:
        theta0: of what is trained, by the names of the network.
        names: of these that the base has, with their names there.
        shift: how far the logits of some inputs have moved.
    """

    network: nn.Module
    start: Weights
    theta0: Params
    names: Mapping[str, str]
    task: str
    seed: int
    references: Mapping[str, Inputs]
    shift: Callable[[Mapping[str, Any]], Tensor]


class _Network(Backbone):
    """The network under the names of its base; it is not called."""

    modality = "text"

    def __init__(self, trained: Trained) -> None:
        super().__init__(trained.network, ref=trained.start, dim=0, logit_scale=1.0)
        self._named = dict(trained.names)

    @property
    def names(self) -> Mapping[str, str]:
        return self._named

    def forward(self, **batch: Tensor) -> Tensor:
        raise NotImplementedError

    def stack(self, prepared: Sequence[Any]) -> dict[str, Tensor]:
        raise NotImplementedError

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        raise NotImplementedError

    def example(self) -> dict[str, Tensor]:
        raise NotImplementedError


class _Moved(Moved):
    """The parameters of a network that has an optimizer already."""

    def __init__(self, backbone: Backbone, theta0: Params) -> None:
        super().__init__(backbone, theta0)
        self.leaves = {name: value for name, value in backbone.encoder_parameters().items() if name in theta0}

    def outputs(self, batch: Params) -> Tensor:
        raise NotImplementedError

    def tau(self) -> Params:
        return {name: leaf - self._start[name] for name, leaf in self.leaves.items()}

    def displacement(self) -> Params:
        return {name: step.detach().cpu() for name, step in self.tau().items()}


def bind_penalties(penalties: Sequence[PenaltySettings], trained: Trained) -> Penalty:
    """The sum of penalties, each times its strength.

    Raises: InputError for one that lacks what it reads.
    """
    backbone = _Network(trained)
    moved = _Moved(
        backbone, {trained.names[n]: value for n, value in trained.theta0.items() if n in trained.names}
    )
    given = Given(
        backbone, moved, (), TrainSettings(seed=trained.seed), None, unwatched, (trained.task,), trained.seed
    )
    terms = [(each.strength, _bind(each, given, trained)) for each in penalties]

    def total(step: int) -> Tensor:
        return torch.stack([strength * term(step) for strength, term in terms]).sum()

    return total


def _bind(asked: PenaltySettings, given: Given, trained: Trained) -> Penalty:
    if isinstance(asked, TauJp):
        return _tau_jp(asked, trained)
    if isinstance(asked, Curved) and not asked.files:
        raise InputError(
            f"penalty {asked.kind}: no files, expected those of other tasks, which a Trainer does not "
            "measure; "
            "make them with taskvec stats, and name them in files"
        )
    return PENALTIES[asked.kind](asked, given)


def _tau_jp(asked: TauJp, trained: Trained) -> Penalty:
    """As ``taskvec.training.penalties.tau_jp``, on batches of the trainer."""
    sources = list(trained.references.values())
    if not sources:
        raise InputError(
            "penalty tau_jp: no references, expected datasets of other tasks, whose inputs it reads; give "
            "references={NAME: DATASET}, or leave the penalty out"
        )

    def penalty(step: int) -> Tensor:
        chosen = sources if asked.sets == "all" else [sources[step % len(sources)]]
        rows = (trained.shift(inputs(step)) for inputs in chosen)
        return torch.stack([mean_norm(moved.float(), asked.power) for moved in rows]).mean()

    return penalty


def draws(name: str, dataset: Any, size: int, seed: int, collate: Collate) -> Inputs:
    """Batches of a dataset that depend on the seed, its name and the step alone; without labels.

    Raises: InputError for a dataset that cannot be drawn from.
    """
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or not len(dataset):
        raise InputError(
            f"references: {name!r} is {type(dataset).__name__}, expected a dataset with a length and items "
            "that "
            "can be drawn"
        )
    return partial(_drawn, name, dataset, size, seed, collate)


def _drawn(
    name: str,
    dataset: Any,
    size: int,
    seed: int,
    collate: Collate,
    step: int,
) -> Mapping[str, Any]:
    digest = xxhash.xxh3_64_intdigest(f"{seed}/{step}/{name}".encode()) >> 1
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(digest))
    batch = collate([dataset[place] for place in order[:size].tolist()])
    return {key: value for key, value in batch.items() if key not in ("labels", "label")}


def rows_of(logits: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Logits as rows; those of padding are left out."""
    mask = inputs.get("attention_mask")
    if logits.dim() == 3 and mask is not None and mask.shape == logits.shape[:2]:
        return logits[mask.bool()]
    return logits.flatten(0, -2)


def evaluated(network: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """The logits of a network without dropout. Raises: InputError where it has none."""
    with evaluating(network):
        out = network(**inputs)
    if "logits" not in out:
        raise InputError(
            f"penalty tau_jp: {type(network).__name__} has no logits, expected some; leave the penalty out"
        )
    logits: Tensor = out["logits"]
    return logits
