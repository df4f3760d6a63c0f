"""One model for all tasks as a row: what the main table, its statistics and exports read of every study."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

from taskvec.merging.method import Consumed, in_order
from taskvec.studies.experiment import Experiment
from taskvec.studies.measured import Measured
from taskvec.training.penalties.settings import files_of, foreign

How = Literal["none", "default", "searched"]
"""How a scaling coefficient was found: there is none, without a search, or on validation labels."""

PRETRAINED, SINGLE, ADDITION, MEAN, JOINT = (
    "pre-trained", "single-task models", "addition", "mean", "joint training",
)  # fmt: skip
"""Names that several studies give to the same model."""


@dataclass(frozen=True)
class Entry:
    """A way to make one model for all tasks, and what it gives on test data.

    Args:
        regime: whose vectors it is made of; empty for the model before any training.
        seeds: what each seed gave; a seed that failed is missing.
        consumed: beside the vectors.
        coefficients: the scaling coefficient of each seed; none where there is no single one.
        seconds: that making it took with each seed: merging, learning or training all tasks, and neither the
            training of single vectors nor measuring; none where that is not on record.
    """

    name: str
    regime: str
    seeds: Mapping[int, Measured]
    consumed: Sequence[Consumed] = ()
    how: How = "none"
    coefficients: Mapping[int, float] = field(default_factory=dict)
    seconds: Mapping[int, float] = field(default_factory=dict)

    @property
    def is_reference(self) -> bool:
        """Whether others are compared with it: the model before any edit, and a model for each task."""
        return self.name in (PRETRAINED, SINGLE)

    @property
    def edits(self) -> list[Measured]:
        """What it gives, one a seed; once for a model that no seed changes."""
        return list(self.seeds.values())[: None if self.regime else 1]

    @property
    def group(self) -> str:
        """The head that it stands under: what it consumed."""
        return ", ".join(self.consumed) or "nothing"

    @property
    def identity(self) -> tuple[object, ...]:
        """What is the same for two studies that measured the same model."""
        usual = sorted(self.coefficients.items()) if self.how == "default" else []
        return self.name, self.regime, self.how, tuple(usual)

    @cached_property
    def level(self) -> list[int]:
        """Its class: what it consumed, the most first."""
        order = get_args(Consumed)
        return sorted((order.index(each) for each in self.consumed), reverse=True)

    def told(self) -> dict[str, object]:
        """As ``results.json`` has it."""
        return {
            "name": self.name,
            "regime": self.regime,
            "consumed": list(self.consumed),
            "coefficient_found": self.how,
            "seeds": {
                str(seed): {
                    "absolute": of.absolute,
                    "normalized": of.normalized,
                    "values": of.values,
                    **({"coefficient": self.coefficients[seed]} if seed in self.coefficients else {}),
                }
                for seed, of in self.seeds.items()
            },
        }


def consumed_with(experiment: Experiment, regime: str, *consumed: Consumed) -> list[Consumed]:
    """What a model consumed that is made of a regime's vectors, whose penalties may read other tasks."""
    penalties = experiment.settings(regime, experiment.seeds[0]).penalty
    others: list[Consumed] = ["unlabelled train inputs"] if foreign(penalties) or files_of(penalties) else []
    return in_order([*consumed, *others])


def of_regimes(entries: Iterable[Entry]) -> list[str]:
    """The regimes that they are of, each once."""
    return list(dict.fromkeys(entry.regime for entry in entries if entry.regime))
