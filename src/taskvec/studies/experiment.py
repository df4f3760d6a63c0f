"""What every experiment says, whatever it studies: a model, tasks, regimes and how they are trained."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.evaluation.search import Grid
from taskvec.place import DeviceName
from taskvec.tasks.source import expanded
from taskvec.tasks.suite import Suite
from taskvec.training.regimes import Regime, RegimeSettings, Space
from taskvec.training.settings import TrainSettings
from taskvec.training.trackers import tracker

_POST_HOC = "post-hoc"
"""Opens the name of a regime that trains nothing: vectors of an ordinary one, evaluated in tangent space."""


class _Entry(TrainSettings, RegimeSettings):
    """What an experiment may say of a regime: what it trains, and how."""


def post_hoc_of(regime: str) -> str:
    """The regime that evaluates the vectors of this one in tangent space."""
    return _POST_HOC if regime == "full" else f"{_POST_HOC}-{regime}"


class Experiment(Config):
    """A whole experiment: a model, tasks, regimes. The blocks of the studies come from the registry."""

    name: str = Field(alias="experiment")
    description: str = ""
    model: str
    suite: str
    """A shipped suite, or the path of a suite file, relative to the experiment file."""
    tasks: tuple[str, ...] | None = None
    """Default: all tasks of the suite but its control."""
    limits: dict[Literal["train", "validation", "test"], PositiveInt] = Field(default_factory=dict)
    """Only the first so many examples of a split."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = (0,)
    training: dict[str, Any] = Field(default_factory=dict)
    """Settings shared by all regimes, see ``taskvec train --help``."""
    regimes: dict[str, dict[str, Any]] = Field(min_length=1)
    """Regime -> settings that differ from ``training``, and for one of your own what it trains (``select``,
    ``space``, ``rank``, ``alpha``). A regime is evaluated in the space it trains in; ``post-hoc`` and
    ``post-hoc-attention`` evaluate those of ``full`` and ``attention`` in tangent space."""
    vectors: dict[str, str] = Field(default_factory=dict)
    """Task -> a task vector or adapter that is there already, of the one regime that the file names, so that
    none is trained; a path relative to the experiment file."""
    per_task: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Task -> settings that differ for its own vector, such as its epochs. Tasks trained together take the
    common ones."""
    evaluation_batch: PositiveInt = 64
    device: DeviceName = "auto"
    """Where the model computes, see ``taskvec run --help``. Results do not depend on it but by rounding, so
    that a run begun on one device is gone on with on another; every record says which."""
    log_to: tuple[str, ...] = ()
    """Trackers that get the figures of every training step, beside the files in ``logs``."""
    search: Grid = Grid()

    @field_validator("log_to")
    @classmethod
    def _check_trackers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            try:
                tracker(name)
            except InputError as error:
                raise ValueError(str(error)) from None
        return names

    @field_validator("seeds", "tasks")
    @classmethod
    def _check_distinct(cls, values: tuple[object, ...] | None) -> tuple[object, ...] | None:
        if values is not None and (not values or len(set(values)) != len(values)):
            raise ValueError("needs one or more values, each once")
        return values

    @model_validator(mode="after")
    def _check_regimes(self) -> Self:
        for where, given in {"training": self.training, **self.regimes, **self.per_task}.items():
            if "seed" in given:
                raise ValueError(f"{where}: a seed is given under 'seeds', not here")
        if self.vectors and len({self.trained(regime) for regime in self.regimes}) > 1:
            raise ValueError("vectors: are of one regime, and the file names several; leave one of them")
        for key in RegimeSettings.model_fields.keys() & self.training.keys():
            raise ValueError(f"training: {key!r} is said of a single regime; give it under 'regimes'")
        for regime, given in self.regimes.items():
            trained = self.trained(regime)
            try:
                space = self.regime(regime).evaluated_in
            except InputError as error:
                raise ValueError(str(error)) from None
            if trained not in self.regimes:
                raise ValueError(
                    f"regimes: {regime!r} evaluates the vectors of {trained!r}, which is not there"
                )
            if trained != regime and space == "tangent":
                raise ValueError(f"regimes: {regime!r}: {trained!r} is of tangent space already")
            if trained != regime and given:
                raise ValueError(f"regimes.{regime}: trains nothing, so it has no settings; write {{}}")
        return self

    @property
    def checkpoint(self) -> str:
        """The model with ``${VARIABLE}`` filled in, as in paths of suites.

        Raises: InputError if one is not set.
        """
        return str(expanded(self.model)) if "${" in self.model else self.model

    def trained(self, regime: str) -> str:
        """The regime that trained the vectors which this one evaluates."""
        return "full" if regime == _POST_HOC else regime.removeprefix(f"{_POST_HOC}-")

    def regime(self, name: str) -> Regime:
        """What a regime trains; of a post-hoc one, what the regime does whose vectors it evaluates.

        Raises: InputError.
        """
        trained = self.trained(name)
        given = {
            key: self.regimes[trained][key]
            for key in RegimeSettings.model_fields
            if key in self.regimes.get(trained, {})
        }
        where = f"regimes.{trained}" if given else "regimes"
        try:
            return RegimeSettings.parse("", given).regime(trained, _POST_HOC, post_hoc_of("attention"))
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    def space(self, regime: str) -> Space:
        """Where a regime's vectors are evaluated."""
        return "tangent" if self.trained(regime) != regime else self.regime(regime).evaluated_in

    def settings(self, regime: str, seed: int, *tasks: str) -> TrainSettings:
        """The full recipe of one regime's vectors; of a single task, the one of its own.

        Raises: InputError naming the setting at fault.
        """
        if len(tasks) == 1 and tasks[0] in self.per_task:
            own = TrainSettings.parse(f"per_task.{tasks[0]}", self.per_task[tasks[0]])
            common = self.settings(regime, seed)
            return common.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})
        trained = self.trained(regime)
        given = {**self.training, **self.regimes[trained], "seed": seed}
        entry = _Entry.parse(f"regimes.{trained}", given)
        return TrainSettings.model_validate(entry.model_dump(include=set(TrainSettings.model_fields)))

    def task_names(self, suite: Suite) -> list[str]:
        """The tasks whose vectors are studied, checked against the suite."""
        names = list(self.tasks or (name for name in suite.tasks if name != suite.control))
        for name in (*names, *self.per_task, *self.vectors):
            suite.task(name)
        return names

    def check_regimes(self, block: str, regimes: tuple[str, ...] | None) -> None:
        """Refuse a regime that a block names and this experiment lacks. Raises: InputError."""
        for regime in regimes or ():
            if regime not in self.regimes:
                raise InputError(
                    f"{block}: {regime!r} is not among this experiment's regimes ({', '.join(self.regimes)})"
                )
