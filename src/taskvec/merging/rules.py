"""Combination rules as methods: one vector for all tasks, scaled by one coefficient."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from taskvec.evaluation.points import add_vector
from taskvec.merging.method import Bench, Consumed, Method, Plain, VectorModel, named, unlabelled
from taskvec.models.backbone import Backbone
from taskvec.names import BLOCKS, block_depths
from taskvec.rules import RULES, Rule
from taskvec.tasks.source import SplitName
from taskvec.vectors import TaskVector, combine
from taskvec.vectors.combining import bind_all
from taskvec.vectors.statistics import kind_used
from taskvec.weights import Weights, open_weights


@dataclass(frozen=True)
class RuleMethod(Method):
    """A rule or a chain of them, see :data:`taskvec.RULES`.

    Args:
        rule: such as ``dare+ties``.
        parameters: those that differ from the rule's own.

    Raises: UnknownName; InputError for parameters that do not fit.
    """

    rule: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    family: ClassVar[str] = "rule"

    def __post_init__(self) -> None:
        self._known.settings(self.parameters)

    @property
    def _known(self) -> Rule:
        return RULES[self.rule]

    @property
    def name(self) -> str:  # type: ignore[override]  # it follows from the fields
        return named(self.rule, self.parameters)

    @property
    def coefficient(self) -> float:  # type: ignore[override]
        return self._known.coefficient

    @property
    def about(self) -> str:
        return self._known.summary

    def consumes(self, split: SplitName) -> tuple[Consumed, ...]:
        return (unlabelled(split),) if "_stats" in self._known.keywords else ()

    def unfit(self, bench: Bench) -> str | None:
        least, most = self._known.tasks
        number = len(bench.vectors)
        if number < least or (most is not None and number > most):
            return f"takes {least}" if most == least else f"takes at least {least}"
        if reason := self._unmeasured(bench) if "_stats" in self._known.keywords else None:
            return reason
        chosen = self._known.settings(self.parameters)
        return without_blocks(bench, chosen["blocks"]) if "blocks" in chosen and chosen["beta"] else None

    def _unmeasured(self, bench: Bench) -> str | None:
        """Why there are no statistics of these tasks' models."""
        if bench.space == "tangent":
            return "its statistics are of models in ordinary space, not in tangent space"
        if any(bench.evaluator.task(task).kind != "classification" for task in bench.tasks):
            return "its statistics are of classifications alone"
        return None

    def settings(self) -> Plain:
        return {"rule": self.rule, "parameters": self._known.settings(self.parameters)}

    def make(self, bench: Bench) -> VectorModel:
        """The merged vector, every tensor of it computed."""
        vectors = bind_all(list(bench.vectors.values()), bench.evaluator.backbone.source)
        stats = self._statistics(bench) if "_stats" in self._known.keywords else None
        return VectorModel(bench, combine(self.rule, vectors, stats=stats, **self.parameters))

    def _statistics(self, bench: Bench) -> list[Weights]:
        """Of each task's own model, on inputs of its task."""
        return [
            open_weights(self._measure(bench, task, add_vector(bench.evaluator.backbone, vector)))
            for task, vector in bench.vectors.items()
        ]

    def _measure(self, bench: Bench, task: str, model: Backbone) -> Mapping[str, Tensor]:
        from taskvec.statistics.fisher import fisher  # scipy's sparse matrices: few rules wait for them
        from taskvec.statistics.gram import gram

        evaluator = bench.evaluator
        kind = kind_used(self._known)
        measure = partial(fisher, head=evaluator.head(task)) if kind == "fisher" else gram
        return measure(
            model,
            evaluator.task(task),
            split=bench.split,
            limit=evaluator.limits.get(bench.split),
            seed=bench.seed,
            watch=bench.watch,
        )


@dataclass(frozen=True)
class GivenMethod(Method):
    """A vector that is there already, such as that of a model trained on all tasks.

    Args:
        fingerprint: of the vector, or what else decides it.
    """

    name: str
    vector: TaskVector = field(compare=False)
    needs: tuple[Consumed, ...]
    fingerprint: str
    coefficient: float | None = None
    family: ClassVar[str] = "given"

    def consumes(self, split: SplitName) -> tuple[Consumed, ...]:
        return self.needs

    def settings(self) -> Plain:
        return {"name": self.name, "fingerprint": self.fingerprint}

    def make(self, bench: Bench) -> VectorModel:
        return VectorModel(bench, self.vector)


def without_blocks(bench: Bench, blocks: str = BLOCKS) -> str | None:
    """Why nothing can be scaled by depth; none if the model has blocks."""
    if block_depths(open_weights(bench.evaluator.backbone.source), blocks):
        return None
    return "scales by depth, and no tensor of the model is in a numbered block"
