"""What fine-tuning trains and in which space; reading this list imports nothing heavy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from pydantic import PositiveFloat, PositiveInt

from taskvec.arguments import checked
from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.names import SELECTIONS, check_selection
from taskvec.patterns import Pattern
from taskvec.registry import nearest

Space = Literal["ordinary", "tangent"]
"""In which a task vector displaces a model."""

TrainingSpace = Literal["ordinary", "tangent", "lora", "tangent-lora"]
"""In which fine-tuning moves parameters: themselves or as factors, in the model or in its tangent space."""

_NAMED: tuple[TrainingSpace, ...] = ("tangent-lora", "lora", "tangent")
"""Spaces that open the name of a regime, as in ``tangent-mlp``; the longest first."""

_USUAL = {"ordinary": "full", "tangent": "full", "lora": "attention", "tangent-lora": "attention"}
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


@checked
@dataclass(frozen=True)
class Regime:
    """Which parameters are trained, and in which space.

    Args:
        selection: see :func:`taskvec.names.select_names`.
        space: ``ordinary``, ``tangent``, ``lora`` or ``tangent-lora``.
        about: a phrase for lists.
        rank, alpha: of the factors of ``lora`` and ``tangent-lora``; 8 and 16 by default.
        name: what vectors, folders and tables call it; by default the space and the selection.

    Raises: InputError for a selection or a space that is none, and for a rank or alpha that scales nothing or
        goes with a space without factors.
    """

    selection: str = "full"
    space: TrainingSpace = "ordinary"
    about: str = ""
    rank: int | None = None
    alpha: float | None = None
    name: str = ""

    def __post_init__(self) -> None:
        check_selection(self.selection)
        if self.space not in get_args(TrainingSpace):
            spaces = ", ".join(get_args(TrainingSpace))
            hint = nearest(self.space, get_args(TrainingSpace))
            raise InputError(f"space: {self.space!r} found, expected one of {spaces}; {hint}")
        for field, value in (("rank", self.rank), ("alpha", self.alpha)):
            if value is not None and self.space in get_args(Space):
                raise InputError(
                    f"{field}: {value:g} given, but space {self.space} trains whole tensors; leave it out, "
                    "or use space lora or tangent-lora"
                )
        if self.rank is not None and self.rank < 1:
            raise InputError(f"rank: {self.rank}, expected 1 or more")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise InputError(f"alpha: {self.alpha:g}, expected a positive number")
        if not self.name:
            object.__setattr__(self, "name", _name_of(self.selection, self.space))

    @property
    def lora(self) -> Lora | None:
        """The factors, where it trains some."""
        if self.space in get_args(Space):
            return None
        usual = Lora()
        return Lora(self.rank or usual.rank, usual.alpha if self.alpha is None else self.alpha)

    @property
    def evaluated_in(self) -> Space:
        """The space that its vectors displace a model in."""
        return "tangent" if self.space.startswith("tangent") else "ordinary"

    def is_tangent_of(self, other: "Regime") -> bool:
        """Whether it trains what another one does, in the tangent space of that."""
        apart = (self.evaluated_in, other.evaluated_in) == ("tangent", "ordinary")
        return apart and (self.selection, self.lora) == (other.selection, other.lora)

    def details(self) -> dict[str, object]:
        """What keys and provenance say beside the name; nothing where that tells all."""
        lora = self.lora
        if lora is None and self.name == _name_of(self.selection, self.space):
            return {}
        factors = {} if lora is None else {"rank": lora.rank, "alpha": lora.alpha}
        return {"select": self.selection, "space": self.space, **factors}


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
    """Where a regime of your own moves them; in `lora` and `tangent-lora` by factors of low rank."""
    rank: PositiveInt | None = None
    """Of the factors of `lora` and `tangent-lora`; 8 where it is not said."""
    alpha: PositiveFloat | None = None
    """The change of a matrix is alpha / rank times the product of its factors; 16 where it is not said."""

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
            return Regime(selection, space, rank=self.rank, alpha=self.alpha, name=name or "")
        known = regime_called(name, *others)
        self._check_agrees(known)
        return replace(known, rank=self.rank, alpha=self.alpha)

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
