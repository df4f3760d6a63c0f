"""LiNeS with a learned slope, after any method that makes one vector."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, get_args

from taskvec.coefficients.lines import learn_lines
from taskvec.coefficients.settings import CoefficientSettings
from taskvec.errors import InputError
from taskvec.merging.learned import LearnedMethod, unfit_signal
from taskvec.merging.method import Bench, Consumed, Method, Plain, VectorModel, in_order, named
from taskvec.merging.rules import RuleMethod, without_blocks
from taskvec.tasks.source import SplitName


@dataclass(frozen=True)
class LinesMethod(Method):
    """Merge by another method, then scale by depth: LiNeS with both of its numbers learned.

    See :func:`taskvec.coefficients.lines.learn_lines`.

    Args:
        of: the method that merges; its usual scale is where both numbers start.
        changes: settings that are not the usual ones.

    Raises: InputError for settings that do not fit.
    """

    of: Method
    changes: Mapping[str, object] = field(default_factory=dict)
    coefficient: ClassVar[float | None] = None  # type: ignore[misc]  # what was learned is not scaled
    family: ClassVar[str] = "learned lines"

    def __post_init__(self) -> None:
        self.settings_on("validation")

    @property
    def name(self) -> str:  # type: ignore[override]  # it follows from the fields
        return named(f"{self.of.name}+learned_lines", self.changes)

    def settings_on(self, split: SplitName) -> CoefficientSettings:
        """All settings, for a split that is allowed if the changes name no other."""
        start = 1.0 if self.of.coefficient is None else self.of.coefficient
        given = {"start": start, "split": split, "allow_test_inputs": split == "test", **self.changes}
        return CoefficientSettings.parse(f"{self.of.name}+learned_lines", given)

    def consumes(self, split: SplitName) -> tuple[Consumed, ...]:
        mine = [each for each in get_args(Consumed) if each in self.settings_on(split).consumes]
        return tuple(in_order([*self.of.consumes(split), *mine]))

    def unfit(self, bench: Bench) -> str | None:
        if not isinstance(self.of, RuleMethod | LearnedMethod | LinesMethod):
            return f"scales one vector, and {self.of.name} makes none"
        reason = self.of.unfit(bench) or without_blocks(bench)
        return reason or unfit_signal(self.settings_on(bench.split), bench)

    def settings(self) -> Plain:
        changed = self.settings_on("validation").model_dump(
            exclude={"split", "allow_test_inputs"}, exclude_defaults=True
        )
        own = {"split": self.changes["split"]} if "split" in self.changes else {}
        return {"of": {"family": self.of.family, **self.of.settings()}, **changed, **own}

    def make(self, bench: Bench) -> VectorModel:
        """The merge, scaled. Raises: InputError for a method that makes a model for each task."""
        merged = self.of.make(bench)
        if not isinstance(merged, VectorModel):
            raise InputError(f"{self.name}: {self.of.name} makes no one vector, expected one to be scaled")
        found = learn_lines(
            bench.evaluator,
            merged.vector,
            bench.tasks,
            self.settings_on(bench.split),
            space=bench.space,
            seed=bench.seed,
            checkpoint=bench.checkpoint(self),
            watch=bench.watch,
        )
        facts = {**merged.facts(), "lines": {"alpha": found.alpha, "beta": found.beta}}
        return VectorModel(bench, found.vector, merged.coefficients + found.learned.count, facts)
