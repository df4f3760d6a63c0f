"""What an experiment file says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from taskvec.config import Config, read_yaml
from taskvec.errors import InputError
from taskvec.evaluation.search import Grid
from taskvec.reading import local_path
from taskvec.registry import nearest
from taskvec.rules import RULES
from taskvec.studies.experiment import Experiment as Frame
from taskvec.tasks.suite import Suite, load_suite
from taskvec.training.regimes import Space, regime_called
from taskvec.training.settings import TrainSettings

class Addition(Config):
    """Add vectors of several tasks, with one shared coefficient chosen on validation data."""

    subsets: Literal["all", "pairs", "whole"] = "pairs"
    """``all`` subsets of two or more; ``pairs`` and the whole; the ``whole`` only."""
    regimes: tuple[str, ...] | None = None
    """Regimes that add these subsets, default all; the others add the whole only."""
    each: tuple[str, ...] | None = None
    """Regimes that also search a coefficient for every task; default: those evaluated in tangent space."""


class Negation(Config):
    """Subtract the vectors of some tasks; keep the controls."""

    targets: tuple[str, ...] = Field(min_length=1)
    controls: tuple[str, ...] | None = None
    """Default: the suite's control task, or all other tasks of the experiment."""
    keep: float = Field(default=0.95, gt=0, le=1)
    """Share of the controls' mean validation value that must remain."""
    baselines: tuple[Literal["random", "ascent"], ...] = ("random", "ascent")
    regimes: tuple[str, ...] | None = None
    """Default: all of the experiment."""


class Atm(Config):
    """Alternate tuning and merging at equal budget: more rounds, each shorter."""

    rounds: tuple[PositiveInt, ...] = Field(min_length=1)
    rule: str = "mean"
    scale: PositiveFloat = 1.0
    regimes: tuple[str, ...] | None = None
    """Default: all of the experiment that train in ordinary space, where ATM's merged models are."""


class Joint(Config):
    """Train one model on all tasks at once: the upper reference of addition."""

    regimes: tuple[str, ...] | None = None
    """Default: all of the experiment, each in its own space."""


class Analogy(Config):
    """``a`` is to ``b`` as ``c`` is to ``target``: predict the fourth vector from three."""

    a: str
    b: str
    c: str
    target: str
    coefficients: Literal[1, 2] = 1
    """2 scales ``c`` and ``b - a`` separately."""
    reference: bool = True
    """Also train on the target itself, as the upper reference."""


class Plane(Config):
    """Equally spaced coefficients of two tasks, both ends included; an odd number around 0 holds 0."""

    start: float = -3.0
    stop: float = 3.0
    points: int = Field(default=21, ge=2, le=1001)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.start < self.stop:
            raise ValueError("start < stop must hold")
        return self


class Disentanglement(Config):
    """Heat maps of how far the vectors of two tasks disturb each other."""

    pairs: tuple[tuple[str, str], ...] = Field(min_length=1)
    grid: Plane = Plane()
    samples: PositiveInt = 200
    """Test examples of each task, the first ones; their labels are not read."""
    regimes: tuple[str, ...] | None = None
    """Default: all of the experiment."""


class Experiment(Frame):
    """A whole experiment: a model, tasks, regimes, and the protocols to run on their vectors."""

    addition: Addition | None = None
    negation: Negation | None = None
    atm: Atm | None = None
    joint: Joint | None = None
    """``true`` for all regimes."""
    analogies: tuple[Analogy, ...] = ()
    disentanglement: Disentanglement | None = None
    costs: bool = False
    """Measure the time and memory of a training step of each regime."""

    @field_validator("joint", mode="before")
    @classmethod
    def _switched(cls, value: object) -> object:
        if isinstance(value, bool):
            return Joint() if value else None
        return value

    @model_validator(mode="after")
    def _known(self) -> Self:
        blocks = {
            "addition": self.addition,
            "negation": self.negation,
            "atm": self.atm,
            "joint": self.joint,
            "disentanglement": self.disentanglement,
        }
        for block, part in blocks.items():
            each = part.each if isinstance(part, Addition) else None
            for regime in (*((part.regimes if part else None) or ()), *(each or ())):
                if regime not in self.regimes:
                    raise ValueError(
                        f"{block}: {regime!r} is not among this experiment's regimes "
                        f"({', '.join(self.regimes)})"
                    )
                if block == "atm" and self.space(regime) == "tangent":
                    raise ValueError(
                        f"atm.regimes: {regime!r} is of tangent space, and ATM merges ordinary models"
                    )
        if self.atm and not self.regimes_of(self.atm):
            raise ValueError("atm: every regime is of tangent space, and ATM merges ordinary models")
        if self.atm and self.atm.rule not in RULES:
            raise ValueError(f"atm.rule: no rule called {self.atm.rule!r}; {nearest(self.atm.rule, RULES)}")
        return self

    def regimes_of(self, block: Addition | Negation | Atm | Joint | Disentanglement) -> tuple[str, ...]:
        """The regimes that a block is about: those it names, or all that it can be about."""
        possible = tuple(
            regime
            for regime in self.regimes
            if not (isinstance(block, Atm) and self.space(regime) == "tangent")
        )
        return block.regimes or possible

    def controls(self, suite: Suite, target: str) -> list[str]:
        """The tasks that negation of ``target`` must leave alone."""
        assert self.negation is not None
        if self.negation.controls is not None:
            chosen = list(self.negation.controls)
        elif suite.control is not None:
            chosen = [suite.control]
        else:
            chosen = self.task_names(suite)
        return [name for name in chosen if name != target]

    def involved(self, suite: Suite) -> list[str]:
        """Every task that something is trained or measured on, once, each checked against the suite."""
        names = self.task_names(suite)
        for target in self.negation.targets if self.negation else ():
            names += [target, *self.controls(suite, target)]
        for block in self.analogies:
            names += [block.a, block.b, block.c, block.target]
        return [suite.task(name).name for name in dict.fromkeys(names)]


def load_experiment(path: Path, changes: Mapping[str, object] | None = None) -> tuple[Experiment, Suite]:
    """An experiment file and its suite, both validated, every task name known.

    Args:
        changes: top-level keys to override, from the command line.

    Raises: InputError naming the file and the key at fault.
    """
    path = local_path(path)
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: {type(values).__name__}, expected keys such as 'experiment' and 'model'")
    experiment = Experiment.parse(str(path), {**values, **(changes or {})})
    named = experiment.suite
    suite = load_suite(path.parent / named if named.endswith((".yaml", ".yml")) else named)
    _check(path, experiment, suite)
    return experiment, suite


def _check(path: Path, experiment: Experiment, suite: Suite) -> None:
    try:
        names = experiment.task_names(suite)
        experiment.involved(suite)
        for regime in experiment.regimes:
            experiment.settings(regime, experiment.seeds[0])
        if experiment.addition and len(names) < 2:
            raise InputError(f"addition: needs two or more tasks, not {names}")
        for pair in experiment.disentanglement.pairs if experiment.disentanglement else ():
            if pair[0] == pair[1] or not {*pair} <= {*names}:
                raise InputError(
                    f"disentanglement.pairs: {' '.join(pair)}, expected two of the tasks {', '.join(names)}"
                )
        for target in experiment.negation.targets if experiment.negation else ():
            if not experiment.controls(suite, target):
                raise InputError(f"negation: no control task is left for the target {target!r}")
    except InputError as error:
        raise type(error)(f"{path}: {error}") from None
