"""Loaded models into which one candidate after another is put, in place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from taskvec.edits.merge import Merge
from taskvec.edits.opening import save_merge
from taskvec.edits.plan import list_edited
from taskvec.errors import InputError, NonFinite
from taskvec.evaluation.points import beside_encoder
from taskvec.models.backbone import Backbone, Outputs
from taskvec.models.loading import load_backbone
from taskvec.training.loop import Params
from taskvec.weights import Weights, save_weights

_DESCRIBING = ("config.json", "chat_template.jinja")
"""Files of an edited model that, where shapes are the same, change nothing that it computes of tokens."""

M = TypeVar("M")


class Loaded(NamedTuple, Generic[M]):
    """A model, and its tensors by their names in the checkpoint."""

    model: M
    tensors: Mapping[str, Tensor]


@dataclass
class _Held(Generic[M]):
    """A loaded model whose tensors take the values of one candidate after another.

    Args:
        moved: tensors that differ from the base.
        last: whose values they have.
    """

    loaded: Loaded[M]
    moved: frozenset[str]
    last: Weights | None = None

    def unfit(self, weights: Weights) -> str | None:
        """A tensor that weights do not have in its shape; none if they have all."""
        tensors = self.loaded.tensors.items()
        fits = ((name, name in weights and weights.spec(name).shape == held.shape) for name, held in tensors)
        return next((name for name, fit in fits if not fit), None)

    def put(self, weights: Weights, edited: frozenset[str], *, finite: bool = True) -> None:
        """Take the values of an edit of the base: those that it changes, and those that the last one did.

        Raises: NonFinite, unless it may be, for NaN and infinity.
        """
        if weights is self.last:
            return
        changed = edited | self.moved
        self.last, self.moved = None, changed
        for name, held in self.loaded.tensors.items():
            if weights.tied.get(name, name) in changed:
                _overwrite(held, weights, name, finite)
        self.last, self.moved = weights, edited


@torch.no_grad()
def _overwrite(held: Tensor, weights: Weights, name: str, finite: bool) -> None:
    for rows in weights.row_blocks(name) if held.dim() == 2 else (None,):
        value = weights.read(name, rows)
        if finite and not bool(value.isfinite().all()):
            raise NonFinite(f"{weights.ref}: {name!r} holds NaN or infinity")
        (held if rows is None else held[rows]).copy_(value)


class Resident(Generic[M]):
    """The model of a recipe, loaded once; candidates overwrite it, a tensor at a time.

    A candidate that it has no place for, as its layers or tokens are others, is written and loaded instead.

    Args:
        load: makes a model of a folder or GGUF file.
        model: what to load, in place of what the recipe's base lies in.
    """

    def __init__(self, load: Callable[[str], Loaded[M]], model: str | None = None) -> None:
        self._load, self._model = load, model
        self._held: _Held[M] | None = None

    def base(self, merge: Merge, scratch: Path) -> Loaded[M]:
        """The model with the values of the base; valid until the next candidate.

        Raises: InputError for a base that is no model which can be run.
        """
        held = self._begun(merge.like, scratch)
        if held.unfit(merge.like) is None:
            held.put(merge.like, frozenset())
        return held.loaded

    def candidate(self, merge: Merge, scratch: Path) -> Loaded[M]:
        """The model with the values of a candidate; valid until the next one.

        Raises: NonFinite for one with NaN or infinity; InputError, DiskFull.
        """
        held = self._begun(merge.like, scratch)
        if not _takes(held, merge):
            return self._written(merge, scratch)
        held.put(merge.weights, list_edited(merge.weights), finite=not merge.allow_nonfinite)
        return held.loaded

    def _begun(self, like: Weights, scratch: Path) -> _Held[M]:
        if self._held is None:
            loaded = self._load(self._model or _loadable(like, scratch))
            held = _Held(loaded, frozenset({*like, *loaded.tensors}))
            lacking = held.unfit(like)
            if self._model is not None and lacking is not None:
                raise InputError(
                    f"{self._model}: {like.ref} has no {lacking!r} of its shape; take a model of the same "
                    "network"
                )
            self._held = held
        return self._held

    def _written(self, merge: Merge, scratch: Path) -> Loaded[M]:
        if self._model is not None:
            raise InputError(
                f"{self._model}: the edited model has other layers or tokens, and is loaded from its own "
                "files; leave --model out"
            )
        return self._load(str(save_merge(merge, scratch / "model")))


def _takes(held: _Held[M], merge: Merge) -> bool:
    """Whether the loaded model is the candidate once it has its tensors."""
    described = all(name.endswith(_DESCRIBING) for name in merge.files)
    return described and set(merge.weights) <= set(merge.like) and held.unfit(merge.weights) is None


def _loadable(like: Weights, scratch: Path) -> str:
    """The folder or GGUF file that a model lies in, or a copy of one that is not quantized.

    Raises: InputError for a lone file.
    """
    packed = [file for file in like.files if file.suffix == ".gguf"]
    if packed:
        return str(packed[0])
    if like.folder is None:
        raise InputError(
            f"{like.ref}: has no config.json beside it, so nothing says what it computes; name a model of "
            "the same network with --model"
        )
    if "config.json" in like.texts:
        return str(save_weights(like, scratch / "base", like=like))
    return str(like.folder)


class Residents:
    """The models of a recipe that scores share, one for each kind of outputs.

    Args:
        model: what to load, in place of what the recipe's base lies in.
        device: as for ``load_backbone``.
    """

    def __init__(self, model: str | None = None, device: str = "cpu") -> None:
        self.model, self.device = model, device
        self._held: dict[Outputs, Resident[Backbone]] = {}

    @property
    def key(self) -> dict[str, object]:
        """What decides figures, as plain data."""
        return {} if self.model is None else {"model": self.model}

    def backbone(self, outputs: Outputs) -> Resident[Backbone]:
        """The one that gives these outputs."""
        if outputs not in self._held:

            def load(ref: str) -> Loaded[Backbone]:
                return _with_tensors(load_backbone(ref, outputs, device=self.device))

            self._held[outputs] = Resident(load, self.model)
        return self._held[outputs]


def _with_tensors(backbone: Backbone) -> Loaded[Backbone]:
    values = {**beside_encoder(backbone), **backbone.encoder_parameters()}
    point: Params = {name: value.detach() for name, value in values.items()}
    return Loaded(backbone, point)
