"""What fine-tuning trains and in which space; reading this list imports nothing heavy."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from taskvec.arguments import checked
from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.names import SELECTIONS, Grouping, check_selection
from taskvec.patterns import Pattern
from taskvec.registry import nearest

Space = Literal["ordinary", "tangent"]
"""In which a task vector displaces a model."""

TrainingSpace = Literal["ordinary", "tangent", "lora", "tangent-lora", "gated"]
"""In which fine-tuning moves parameters: themselves or as factors, in the model or in its tangent space; or
only in layers whose gates stay open."""

_NAMED: tuple[TrainingSpace, ...] = ("tangent-lora", "lora", "tangent", "gated")
"""Spaces that open the name of a regime, as in ``tangent-mlp``; the longest first."""

_USUAL = {
    "ordinary": "full",
    "tangent": "full",
    "lora": "attention",
    "tangent-lora": "attention",
    "gated": "full",
}
"""What is selected in a space where nothing is said; such a regime has the name of its space."""


@dataclass(frozen=True)
class Lora:
    """Factors in the place of a matrix: it moves by ``alpha / rank * B A``."""

    rank: int = 8
    alpha: float = 16.0

    @property
    def scaling(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class Gates:
    """Layers that change while a learned score of theirs is at the threshold or above (TAPS).

    Args:
        gates: what shares a score.
        strength: of the term ``strength / L * sum |score|`` over L scores that is added to the loss.
        threshold, score_start: where a gate closes, and what every score starts from.
        score_lr: the peak learning rate of scores, on the schedule of the others.
        score_warmup: share of the steps before that term is added.
    """

    gates: Grouping = "layer"
    strength: float = 1.0
    threshold: float = 0.1
    score_start: float = 0.15
    score_lr: float = 0.01
    score_warmup: float = 0.07

    def __post_init__(self) -> None:
        for field, fine, expected in (
            ("gates", self.gates in get_args(Grouping), f"one of {', '.join(get_args(Grouping))}"),
            ("strength", 0 <= self.strength < math.inf, "0 or more"),
            ("threshold", math.isfinite(self.threshold), "a finite number"),
            ("score_start", math.isfinite(self.score_start), "a finite number"),
            ("score_lr", 0 < self.score_lr < math.inf, "a positive number"),
            ("score_warmup", 0 <= self.score_warmup <= 1, "a share of the steps, 0 to 1"),
        ):
            if not fine:
                raise InputError(f"{field}: {getattr(self, field)!r}, expected {expected}")


_GATED = tuple(field.name for field in fields(Gates))


@checked
@dataclass(frozen=True)
class Regime:
    """Which parameters are trained, and in which space.

    Args:
        selection: see :func:`taskvec.names.select_names`.
        space: ``ordinary``, ``tangent``, ``lora``, ``tangent-lora`` or ``gated``.
        about: a phrase for lists.
        rank, alpha: of the factors of ``lora`` and ``tangent-lora``; 8 and 16 by default.
        gates, strength, threshold, score_start, score_lr, score_warmup: of ``gated``, see :class:`Gates`.
        name: what vectors, folders and tables call it; by default the space and the selection.

    Raises: InputError for a selection or a space that is none, for a rank or alpha that scales nothing or
        goes with a space without factors, and for gates that cannot be or go with a space without any.
    """

    selection: str = "full"
    space: TrainingSpace = "ordinary"
    about: str = ""
    rank: int | None = None
    alpha: float | None = None
    name: str = ""
    gates: Grouping | None = None
    strength: float | None = None
    threshold: float | None = None
    score_start: float | None = None
    score_lr: float | None = None
    score_warmup: float | None = None

    def __post_init__(self) -> None:
        check_selection(self.selection)
        if self.space not in get_args(TrainingSpace):
            spaces = ", ".join(get_args(TrainingSpace))
            hint = nearest(self.space, get_args(TrainingSpace))
            raise InputError(f"space: {self.space!r} found, expected one of {spaces}; {hint}")
        for field, value in (("rank", self.rank), ("alpha", self.alpha)):
            if value is not None and "lora" not in self.space:
                raise InputError(
                    f"{field}: {value:g} given, but space {self.space} trains whole tensors; leave it out, "
                    "or use space lora or tangent-lora"
                )
        if self.rank is not None and self.rank < 1:
            raise InputError(f"rank: {self.rank}, expected 1 or more")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise InputError(f"alpha: {self.alpha:g}, expected a positive number")
        for field, given in self._given_gates().items():
            if self.space != "gated":
                raise InputError(
                    f"{field}: {given!r} given, but space {self.space} has no gates; leave it out, or use "
                    "space gated"
                )
        _ = self.gating  # which refuses what cannot be
        if not self.name:
            object.__setattr__(self, "name", _name_of(self.selection, self.space))

    @property
    def lora(self) -> Lora | None:
        """The factors, where it trains some."""
        if "lora" not in self.space:
            return None
        usual = Lora()
        return Lora(self.rank or usual.rank, usual.alpha if self.alpha is None else self.alpha)

    @property
    def gating(self) -> Gates | None:
        """The gates, where its layers have some."""
        return replace(Gates(), **self._given_gates()) if self.space == "gated" else None

    def _given_gates(self) -> dict[str, Any]:
        given = {field: getattr(self, field) for field in _GATED}
        return {field: value for field, value in given.items() if value is not None}

    @property
    def evaluated_in(self) -> Space:
        """The space that its vectors displace a model in."""
        return "tangent" if self.space.startswith("tangent") else "ordinary"

    def is_tangent_of(self, other: "Regime") -> bool:
        """Whether it trains what another one does, in the tangent space of that."""
        apart = (self.evaluated_in, other.evaluated_in) == ("tangent", "ordinary")
        alike = (self.selection, self.lora, self.gating) == (other.selection, other.lora, other.gating)
        return apart and alike

    def details(self) -> dict[str, object]:
        """What keys and provenance say beside the name; nothing where that tells all."""
        parts = self.lora or self.gating
        if parts is None and self.name == _name_of(self.selection, self.space):
            return {}
        return {"select": self.selection, "space": self.space, **({} if parts is None else asdict(parts))}


def _name_of(selection: str, space: str) -> str:
    """What a regime without a name of its own is called."""
    chosen = "full" if selection == "all" else selection
    if space == "ordinary":
        return chosen
    return space if chosen == _USUAL[space] else f"{space}-{chosen}"


REGIMES = {
    regime.name: regime
    for regime in (
        Regime("full", "ordinary", "every parameter of the encoder"),
        Regime("attention", "ordinary", "the weights of the attention projections q, k, v, o"),
        Regime("attention-with-biases", "ordinary", "these weights and their biases"),
        Regime("attention-biases", "ordinary", "these biases alone"),
        Regime("mlp", "ordinary", "weights and biases of the feed-forward layers"),
        Regime("full", "tangent", "every parameter, in the tangent space of the pre-trained model"),
        Regime("attention", "tangent", "the attention projections, in tangent space"),
        Regime("attention", "lora", "factors of low rank for the attention projections"),
        Regime("attention", "tangent-lora", "the same factors, in tangent space (L-LoRA)"),
        Regime("full", "gated", "every layer, gated by a learned score (TAPS)"),
    )
}
"""Regimes are data: a selection of parameters and a space. Any other selection makes a regime as well."""


def regime_called(name: str | Regime, *others: str) -> Regime:
    """The regime of that name: one of ``REGIMES``, or of any other selection of parameters.

    Args:
        name: a regime itself is returned as it is.
        others: further names that the caller knows, for the hint.

    Raises: InputError with the nearest one.
    """
    if isinstance(name, Regime):
        return name
    if name in REGIMES:
        return REGIMES[name]
    space: TrainingSpace = next((s for s in _NAMED if name.startswith(f"{s}-")), "ordinary")
    selection = name if space == "ordinary" else name.removeprefix(f"{space}-")
    more = SELECTIONS.keys() - {"all", "full"}  # these have names of their own
    if selection.startswith("re:"):
        Pattern(selection.removeprefix("re:"), f"regime {name!r}")
    elif selection not in more and not (selection == "full" and "lora" in space):
        raise InputError(
            f"no regime called {name!r}; {nearest(name, {*REGIMES, *more, *others})}, or re:PATTERN"
        )
    return Regime(selection, space, f"the selection {selection}", name=name)


class RegimeSettings(Config, use_attribute_docstrings=True):
    """What makes a regime of one's own, or is chosen for one that has a name."""

    select: str | None = None
    """What a regime of your own trains: a selection such as `mlp`, or `re:PATTERN`, a regular expression that
    whole names of parameters match."""
    space: TrainingSpace | None = None
    """Where a regime of your own moves them; in `lora` and `tangent-lora` by factors of low rank, in `gated`
    only in layers whose gates stay open."""
    rank: PositiveInt | None = None
    """Of the factors of `lora` and `tangent-lora`; 8 where it is not said."""
    alpha: PositiveFloat | None = None
    """The change of a matrix is alpha / rank times the product of its factors; 16 where it is not said."""
    gates: Grouping | None = None
    """Of `gated`: what shares a gate. A `layer` (where it is not said) is a weight with its bias; or each
    `tensor`, or a whole `block`."""
    strength: NonNegativeFloat | None = None
    """Of `gated`: how hard gates are pushed to close; 1 where it is not said."""
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    """Of `gated`: the score below which a gate is closed; 0.1 where it is not said."""
    score_start: float | None = Field(default=None, allow_inf_nan=False)
    """Of `gated`: what every score starts from; 0.15 where it is not said."""
    score_lr: PositiveFloat | None = None
    """Of `gated`: the learning rate of scores; 0.01 where it is not said."""
    score_warmup: float | None = Field(default=None, ge=0, le=1)
    """Of `gated`: the share of the steps in which gates are not pushed yet; 0.07 where it is not said."""

    def regime(self, name: str | None, *others: str) -> Regime:
        """The regime that a name and these settings mean together.

        Args:
            name: a known one, or any other where ``select`` is given; ``None`` for that which the settings
                make.
            others: further names that the caller knows, for the hint.

        Raises: InputError, also where a known name contradicts them.
        """
        if name is None or (self.select is not None and not _is_known(name)):
            space = self.space or "ordinary"
            selection = self.select or _USUAL[space]
            return Regime(selection, space, name=name or "", **self._parts())
        known = regime_called(name, *others)
        self._check_agrees(known)
        return replace(known, **self._parts())

    def _parts(self) -> dict[str, Any]:
        """What is said of factors and gates."""
        return self.model_dump(exclude={"select", "space"})

    def _check_agrees(self, known: Regime) -> None:
        for field, given, has in (
            ("select", self.select, known.selection),
            ("space", self.space, known.space),
        ):
            if given not in (None, has, "all" if has == "full" else has):
                raise InputError(
                    f"{field}: {given!r} given, but the regime {known.name!r} is of {field} {has!r}; leave "
                    "it out, or give the regime a name of your own"
                )


def _is_known(name: str) -> bool:
    """Whether a name is that of a regime, or says that it is a pattern."""
    try:
        regime_called(name)
    except InputError:
        return "re:" in name
    return True


def regime_of(name: str, training: Mapping[str, object] | None = None) -> Regime | None:
    """The regime that made a vector; ``None`` where its provenance does not tell.

    Args:
        name: what the provenance calls it.
        training: the settings there.
    """
    given = {key: value for key, value in (training or {}).items() if key in RegimeSettings.model_fields}
    try:
        return RegimeSettings.parse("training", given).regime(name)
    except InputError:
        return None
