"""Learned coefficients as methods: a weighted sum of the vectors, found by gradient."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, get_args

from taskvec.coefficients.learning import learn_coefficients
from taskvec.coefficients.presets import preset
from taskvec.coefficients.settings import CoefficientSettings
from taskvec.merging.method import Bench, Consumed, Method, Plain, VectorModel, named
from taskvec.tasks.source import SplitName


def unfit_signal(settings: CoefficientSettings, bench: Bench) -> str | None:
    """Why a signal cannot be taken of the tasks; none if it can."""
    asked = {task: bench.evaluator.objective(task) for task in bench.tasks}
    sure = [task for task, of in asked.items() if not of.predicts]
    if sure and settings.signal != "labels":
        return f"learns by {settings.signal} of predictions, and {sure[0]} predicts no distribution"
    guided = [task for task, of in asked.items() if of.guided]
    if guided and settings.split == "test":
        return f"would read the answers of the test split, which are the labels of {guided[0]}"
    return None


@dataclass(frozen=True)
class LearnedMethod(Method):
    """A preset of learned coefficients, see :func:`taskvec.learn_coefficients`.

    Args:
        preset: such as ``adamerging``.
        changes: settings that differ from the preset's.

    Raises: UnknownName; InputError for settings that do not fit.
    """

    preset: str
    changes: Mapping[str, object] = field(default_factory=dict)
    coefficient: ClassVar[float | None] = None  # type: ignore[misc]  # what was learned is not scaled
    family: ClassVar[str] = "learned"

    def __post_init__(self) -> None:
        self.settings_on("validation")

    @property
    def name(self) -> str:  # type: ignore[override]  # it follows from the fields
        return named(self.preset, self.changes)

    @property
    def about(self) -> str:
        found = self.settings_on("validation")
        scope = "tensor, and directions of its matrices," if found.scope == "rank" else found.scope
        trimmed = "" if found.trim is None else " of trimmed vectors"
        return f"The sum{trimmed} with a coefficient for each {scope} learned by {found.signal}."

    def settings_on(self, split: SplitName) -> CoefficientSettings:
        """All settings, for a split that is allowed if the changes name no other."""
        given = {"split": split, "allow_test_inputs": split == "test", **self.changes}
        return preset(self.preset, given)

    def consumes(self, split: SplitName) -> tuple[Consumed, ...]:
        return tuple(each for each in get_args(Consumed) if each in self.settings_on(split).consumes)

    def unfit(self, bench: Bench) -> str | None:
        found = self.settings_on(bench.split)
        if bench.space == "tangent" and found.scope == "rank":
            return "chooses singular directions, and tangent space adds whole vectors"
        return unfit_signal(found, bench)

    def settings(self) -> Plain:
        chosen = self.settings_on("validation").model_dump(
            exclude_defaults=True, exclude={"split", "allow_test_inputs"}
        )
        return chosen | {"split": self.changes["split"]} if "split" in self.changes else chosen

    def make(self, bench: Bench) -> VectorModel:
        """The learned sum."""
        settings = self.settings_on(bench.split)
        learned = learn_coefficients(
            bench.evaluator,
            bench.vectors,
            bench.tasks,
            settings,
            space=bench.space,
            seed=bench.seed,
            checkpoint=bench.checkpoint(self),
            watch=bench.watch,
        )
        kept = {"kept": learned.kept} if learned.kept else {}
        facts = {"coefficients": learned.coefficients, "trace": list(learned.trace), **kept}
        return VectorModel(bench, learned.vector, learned.count, facts)
