"""What may be said of penalties; reading this imports nothing heavy."""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, NonNegativeFloat, PositiveInt

from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.registry import nearest


def _one_or_more(given: object) -> object:
    return (given,) if isinstance(given, str) else given


class Strength(Config, use_attribute_docstrings=True):
    """What every penalty has."""

    foreign: ClassVar[bool] = False
    """Whether it uses the inputs of other tasks."""
    strength: NonNegativeFloat = 1.0
    """What it is multiplied by before it is added to the loss."""

    @property
    def reads(self) -> bool:
        """Whether it reads inputs of other tasks in a training."""
        return self.foreign and self.strength > 0


class Decay(Strength):
    """Half the squared norm of the displacement: weights are drawn towards the pre-trained ones."""

    kind: Literal["decay"] = "decay"


class TauJp(Strength):
    """How far the outputs on other tasks' inputs move."""

    foreign: ClassVar[bool] = True
    kind: Literal["tau_jp"] = "tau_jp"
    power: Literal[1, 2] = 2
    """Of the norm of an output's movement."""
    sets: Literal["cyclic", "all"] = "cyclic"
    """Whether a step reads one other task, each in turn, or all of them."""
    batch_size: PositiveInt = 16
    """Inputs that a step reads of a task."""


class OrthoReg(Strength):
    """How far the displacement of every matrix is from orthogonal columns."""

    kind: Literal["orthoreg"] = "orthoreg"
    form: Literal["paper", "code", "cosine"] = "paper"
    """Of the deviation: `paper` squares its norm, `code` does not, `cosine` is free of scale."""


class Curved(Strength):
    """What penalties by curvature have."""

    foreign: ClassVar[bool] = True
    strength: NonNegativeFloat = 100.0
    """What it is multiplied by before it is added to the loss."""
    examples: PositiveInt = 256
    """Inputs of each other task that its curvature is measured on."""
    files: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = ()
    """Of `taskvec stats`, one a task, in place of measuring; that of the task that is trained is left out."""

    @property
    def reads(self) -> bool:
        """Whether it measures inputs of other tasks, as it does without files."""
        return super().reads and not self.files


class Tak(Curved):
    """How far the outputs on other tasks' inputs move, by Kronecker factors of the curvature there."""

    kind: Literal["tak"] = "tak"
    factors: Literal["kfac", "ekfac"] = "kfac"
    """Factors alone, or with exact values along their eigenvectors, which are kept one a task."""
    merge: Literal["merged", "one-a-task"] = "merged"
    """Whether the factors of all other tasks become one pair, so that cost and memory are those of one."""


class Diagonal(Curved):
    """How far the outputs on other tasks' inputs move, by the diagonal of the curvature there."""

    kind: Literal["diagonal"] = "diagonal"


PenaltySettings = Decay | TauJp | OrthoReg | Tak | Diagonal
"""A penalty of any kind."""

SETTINGS: dict[str, type[PenaltySettings]] = {
    kind.model_fields["kind"].default: kind for kind in get_args(PenaltySettings)
}
"""By kind."""


def penalty_of(value: object) -> object:
    """A penalty from its kind, or from a mapping that says the kind; anything else as it is.

    Raises: InputError that opens with the kind.
    """
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, dict):
        return value
    kind = str(value.get("kind"))
    if kind not in SETTINGS:
        found = f"no penalty called {kind!r}" if "kind" in value else "no kind given"
        raise InputError(f"{found}; {nearest(kind, SETTINGS)}")
    return SETTINGS[kind].parse(kind, value)


def foreign(penalties: Iterable[Strength]) -> bool:
    """Whether some of these read inputs of other tasks in a training."""
    return any(penalty.reads for penalty in penalties)


def files_of(penalties: Iterable[Strength]) -> list[str]:
    """The files of statistics that these are given, each once."""
    used = (penalty for penalty in penalties if isinstance(penalty, Curved) and penalty.strength)
    return sorted({file for penalty in used for file in penalty.files})


def with_files(given: Any, change: Callable[[str], str]) -> Any:
    """What may stand for penalties, as plain data, with other files."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [with_files(one, change) for one in given]
    files = _one_or_more(given.get("files")) if isinstance(given, dict) else None
    if not (isinstance(files, Sequence) and files and all(isinstance(file, str) for file in files)):
        return given
    return {**given, "files": [change(file) for file in files]}


def _listed(value: object) -> object:
    """A list of penalties from what may stand for it: a kind by name, one penalty, or a list of them."""
    if isinstance(value, str | dict | Strength):
        value = [value]
    if not isinstance(value, Sequence):
        return () if value is None else value
    return tuple(map(penalty_of, value))


Penalties = Annotated[tuple[PenaltySettings, ...], BeforeValidator(_listed)]
"""Penalties that add up."""
