"""What a set of predictions is worth, whatever the kind of task."""

import math
from abc import ABC
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

LOWER_IS_BETTER = {"perplexity", "bits_per_byte", "loss", "mse"}
"""Metrics of which less is better; all others are better when they grow."""


class Score(ABC):
    """All figures of one model on one split of one task; a dataclass of each kind of task has more."""

    metric: str
    """The task's own metric, the one that ``value`` holds and that protocols compare."""
    value: float
    interval: tuple[float, float] | None
    """95 %."""
    examples: int

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A figure of the task's kind."""

    @property
    def value_interval(self) -> tuple[float, float] | None:
        """95 % of the value, for scores whose ``interval`` is that of another figure."""
        return self.interval

    @property
    def beside(self) -> dict[str, str]:
        """What tables show besides, by name."""
        return {}

    @property
    def utility(self) -> float:
        """The value as protocols compare it: more is better."""
        return utility(self.metric, self.value)

    def record(self) -> dict[str, object]:
        """The figures as plain data."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


def utility(metric: str, value: float) -> float:
    """A value as protocols compare it: more is better, and ratios keep their meaning.

    The reciprocal where less is better: that of a perplexity is the geometric mean of the tokens'
    probabilities. The same function leads back.
    """
    if metric not in LOWER_IS_BETTER:
        return value
    return 1 / value if value else math.inf


def shown(metric: str, value: float) -> str:
    """A value as tables show it: per cent, and a plain number where less is better or of scores."""
    plain = metric in LOWER_IS_BETTER or metric == "score"
    return f"{value:.4g}" if plain else f"{100 * value:.1f}"


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a proportion; ``z`` standard deviations, 95 % by default."""
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
