"""The head that a classifier was trained with, over the classes of a task."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from taskvec.errors import InputError, and_more
from taskvec.models.heads import Head
from taskvec.reading import shown
from taskvec.substitution import substituted

_MEANINGLESS = re.compile(r"(label|class)?[ _-]*\d{1,9}")
"""Labels that a config gives where nobody named the classes."""

_FEW = 8
"""Classes that a message lists."""

INSTEAD = (
    "name a checkpoint that has one ('checkpoint' of the task, or --heads-from), or take head: linear-probe"
)


@dataclass(frozen=True)
class TrainedHead:
    """The head that a classifier was trained with, frozen.

    Attributes:
        ref: the checkpoint, for messages.
        layers: features (N, d) to logits (N, C).
        names: checkpoint name -> name in ``layers``, for each of its parameters.
        labels: what the configuration calls the classes; C names.
        missing: parameters that the checkpoint lacks, so that the head would be random.
    """

    ref: str
    layers: nn.Sequential
    names: Mapping[str, str]
    labels: tuple[str, ...]
    missing: tuple[str, ...] = ()
    fresh: frozenset[str] = frozenset()
    """Parameters in the network that belong to the head, since the base checkpoint lacks them."""
    several: bool = False
    """Whether an input may have several labels at once."""

    def head(self, classes: Sequence[str], wordings: Mapping[str, Sequence[str]] | None = None) -> "OwnHead":
        """The head over the classes of a task, in their order.

        Args:
            wordings: other names of a class, one of which may be the checkpoint's.

        Raises: InputError if the checkpoint has no trained head, or one over other classes.
        """
        self.check()
        return OwnHead(self, _places(self, classes, wordings or {}), classes)

    def number(self) -> "OwnHead":
        """The head of a regression, which gives one number.

        Raises: InputError if the checkpoint has no trained head, or one over classes.
        """
        self.check()
        if len(self.labels) != 1:
            raise InputError(
                f"{self.ref}: its head has {_listed(self.labels)}, expected one number; take head: "
                "linear-probe, or kind: classification"
            )
        return OwnHead(self, [0], ["number"])

    def check(self) -> None:
        """Refuse a head that was never trained. Raises: InputError."""
        if self.missing:
            raise InputError(
                f"{self.ref}: has no trained head (the checkpoint lacks {self.missing[0]!r}"
                f"{and_more(self.missing)}); {INSTEAD}"
            )

    def at(self, params: Mapping[str, Tensor]) -> "TrainedHead":
        """The same with other values of some parameters, by checkpoint name."""
        layers = deepcopy(self.layers)
        own = dict(layers.named_parameters())
        with torch.no_grad():
            for stored, inside in self.names.items():
                if stored in params:
                    own[inside].copy_(params[stored])
        return replace(self, layers=layers)


class OwnHead(Head):
    """A trained head with its classes in the order of a task's."""

    def __init__(self, trained: TrainedHead, places: Sequence[int], classes: Sequence[str]) -> None:
        before = deepcopy(trained.layers)
        last: Any = before.pop(-1)
        order = torch.tensor(list(places), device=last.weight.device)
        super().__init__(
            last.weight[order],
            None if last.bias is None else last.bias[order],
            normalize=False,
            classes=classes,
            kind="own",
            before=before if len(before) else None,
        )
        self._made_of = (trained, places)

    def at(self, params: Mapping[str, Tensor]) -> "Head":
        """The head of an edited model: an edit moves it like any other weight."""
        trained, order = self._made_of
        if params.keys().isdisjoint(trained.names):
            return self
        return OwnHead(trained.at(params), order, self.classes).to(self.weight.device)

    def moving(self, params: Mapping[str, Tensor]) -> "Head":
        """The same, and gradients flow into the parameters."""
        trained, order = self._made_of
        values = {inside: params[name] for name, inside in trained.names.items() if name in params}
        return MovingHead(trained, order, self.classes, values) if values else self


class MovingHead(OwnHead):
    """A trained head at parameters that others hold.

    Args:
        values: by name in the head's layers; all on one device.
    """

    def __init__(
        self,
        trained: TrainedHead,
        places: Sequence[int],
        classes: Sequence[str],
        values: Mapping[str, Tensor],
    ) -> None:
        super().__init__(trained, places, classes)
        device = next(iter(values.values())).device
        self._layers, self._values = (deepcopy(trained.layers).to(device),), dict(values)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, d)."""
        _, order = self._made_of
        with substituted(self._layers[0], self._values):
            logits: Tensor = self._layers[0](features)
        return logits[..., list(order)]


def _places(trained: TrainedHead, classes: Sequence[str], wordings: Mapping[str, Sequence[str]]) -> list[int]:
    """The row of the head for each class: by name, or in order where the labels say nothing.

    Raises: InputError.
    """
    labels = [_plain(label) for label in trained.labels]
    if len(labels) == 1 or trained.several:
        gives = "several labels at once" if trained.several else "one number"
        other = "" if trained.several else ", or kind: regression for a number"
        raise InputError(
            f"{trained.ref}: its head gives {gives}, expected one of {_listed(classes)}; take head: "
            f"linear-probe{other}"
        )
    if len(labels) != len(classes):
        raise InputError(
            f"{trained.ref}: its head has {_listed(trained.labels)}, and the task {_listed(classes)}; list "
            "the classes as the head has them, and those that make up the task under 'keep'"
        )
    places: list[int] = []
    for name in classes:
        known = {_plain(word) for word in (name, *wordings.get(name, ()))}
        found = [place for place, label in enumerate(labels) if label in known]
        if len(found) != 1 or found[0] in places:
            if all(_MEANINGLESS.fullmatch(label) for label in labels):
                return sorted(range(len(labels)), key=lambda place: _number(labels[place]))
            raise InputError(_unknown(trained, classes, wordings, name))
        places += found
    return places


def _unknown(
    trained: TrainedHead, classes: Sequence[str], wordings: Mapping[str, Sequence[str]], name: str
) -> str:
    """What to say of a class that is among the labels not once; of many labels it names those of no class."""
    names = [{_plain(word) for word in (each, *wordings.get(each, ()))} for each in classes]
    free = [label for label in trained.labels if not any(_plain(label) in known for known in names)]
    same = [label for label in trained.labels if _plain(label) in names[classes.index(name)]]
    if len(same) > 1:
        return (
            f"{trained.ref}: its head has {shown(same)}, expected the head's name of {name!r} once; correct "
            "'wordings', or 'id2label' in its config.json"
        )
    which = f", {shown(free[0])}{and_more(free)} among them" if free and len(classes) > _FEW else ""
    return (
        f"{trained.ref}: its head has {_listed(trained.labels)}{which}, expected {_listed(classes)} as in "
        f"the task; give the head's name of {name!r} under 'wordings'"
    )


def _number(label: str) -> int:
    return int(re.findall(r"\d+", label)[-1])


def _plain(label: str) -> str:
    """A label as it is compared: ``Not_Entailment`` and ``not entailment`` are the same."""
    return re.sub(r"[\s_-]+", " ", label).strip().casefold()


def _listed(names: Sequence[str]) -> str:
    words = "class" if len(names) == 1 else "classes"
    return f"the {words} {shown(list(names))}" if len(names) <= _FEW else f"{len(names)} {words}"
