"""What charts of studies share: the unit that values are shown in, and what a caption says of seeds."""

from collections.abc import Iterable
from dataclasses import dataclass

from taskvec.reports.charts.scales import Axis
from taskvec.studies.measured import units_of
from taskvec.tasks.score import utility


@dataclass(frozen=True)
class Unit:
    """Per cent, or that of a metric of which less is better.

    Args:
        metric: the latter.
    """

    metric: str = ""

    def axis(self, what: str) -> Axis:
        """An axis of ``what``, in this unit."""
        less = f"{self.metric.replace('_', ' ')} (less is better)"
        return Axis(f"{what}, {less if self.metric else '%'}")

    def of(self, values: Iterable[float]) -> list[float]:
        """Values as protocols compare them, in this unit."""
        return [utility(self.metric, value) if self.metric else 100 * value for value in values]


def unit_of(metrics: Iterable[str]) -> Unit | None:
    """Of means over tasks with these metrics; none for metrics of several units."""
    units = units_of(metrics)
    return Unit(units[0]) if len(units) == 1 else None


def measures(metrics: Iterable[str]) -> dict[str, Unit]:
    """``absolute``, where tasks have a unit in common, and ``normalized``."""
    unit = unit_of(metrics)
    return {**({"absolute": unit} if unit else {}), "normalized": Unit()}


def of_seeds(count: int) -> str:
    """What a caption says of seeds."""
    if count == 1:
        return "One seed, so no intervals."
    return f"Means of {count} seeds with their standard deviation; small dots are the seeds."


def mean_of(count: int) -> str:
    """What a caption says where a map shows means alone."""
    return "One seed." if count == 1 else f"Means of {count} seeds."
