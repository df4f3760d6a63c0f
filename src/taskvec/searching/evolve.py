"""Files of mergekit-evolve, read as recipes of mergekit with ranges, and tasks of lm-evaluation-harness."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from taskvec.config import Config, read_documents
from taskvec.edits.configs import read_config_of
from taskvec.edits.inputs import errors_at
from taskvec.edits.mergekit.references import open_reference, parse_reference
from taskvec.errors import InputError
from taskvec.searching.objective import Score

MOST = 1.5
"""The largest weight that is searched; mergekit-evolve has no bound."""
LEAST = 0.01
"""The smallest density that is searched."""

_PARAMETERS = {
    "linear": ("weight",),
    "task_arithmetic": ("weight",),
    "ties": ("weight", "density"),
    "dare_ties": ("weight", "density"),
    "slerp": ("t",),
}
_NORMALIZED = ("ties", "dare_ties", "linear")


class Genome(Config):
    """What of a merge is searched."""

    models: list[Any] = Field(min_length=2)
    merge_method: str
    base_model: Any = None
    tokenizer_source: str | None = None
    layer_granularity: NonNegativeInt = 0
    normalize: bool | None = None
    allow_negative_weights: bool = False
    filters: list[str] | None = None
    smooth: bool = False

    @field_validator("merge_method")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in _PARAMETERS:
            raise ValueError(f"a method that is not searched, expected one of {', '.join(_PARAMETERS)}")
        return value


class Asked(Config):
    """A task, and what its figure counts."""

    name: str = Field(min_length=1)
    weight: float = 1.0
    metric: str = Field(default="acc,none", min_length=1)

    @property
    def figure(self) -> str:
        """What the figure is called."""
        return f"{self.name}.{self.metric.removesuffix(',none')}"


class Evolution(Config):
    """The whole file."""

    genome: Genome
    tasks: list[Asked] = Field(default_factory=list)
    limit: PositiveInt | None = None
    num_fewshot: NonNegativeInt | None = None

    def weights(self, score: Score) -> dict[str, float]:
        """Figure -> weight such that the sum is mergekit-evolve's, of figures as they are."""
        return {
            task.figure: task.weight * (-1.0 if score.lower_is_better(task.figure) else 1.0)
            for task in self.tasks
        }


def is_evolution(content: Mapping[str, Any]) -> bool:
    """Whether a file is one of mergekit-evolve."""
    return "genome" in content


def read_evolution(path: Path) -> Evolution | None:
    """The content of a file of mergekit-evolve; none of another file, whatever it is. Raises: InputError."""
    content = read_documents(path)[0]
    return (
        Evolution.parse(str(path), content) if isinstance(content, dict) and is_evolution(content) else None
    )


def translate(where: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of mergekit, with ranges, that a file of mergekit-evolve stands for.

    Weights start at one over the number of models and densities at 1, as there; of ``slerp`` two models are
    taken, where mergekit-evolve chooses two of several.

    Raises: InputError for methods and fields that have no counterpart.
    """
    genome = Evolution.parse(where, content).genome
    with errors_at(f"{where}: genome"):
        return _Translation(genome).document()


@dataclass(frozen=True)
class _Translation:
    genome: Genome

    def document(self) -> dict[str, Any]:
        genome = self.genome
        _check(genome)
        groups = self._groups()
        many = len(groups) > 1 and not genome.smooth
        body: dict[str, Any] = {"slices": [self._slice(*group) for group in groups]} if many else {}
        if not many:
            body = {"models": self._models(len(groups))}
        if genome.merge_method == "slerp":
            body |= {} if many else {"parameters": {"t": self._range("t")}}
            return {"merge_method": "slerp", "base_model": genome.models[0], **body, **self._tokenizer()}
        normalize = genome.merge_method in _NORMALIZED if genome.normalize is None else genome.normalize
        base = {} if genome.base_model is None else {"base_model": genome.base_model}
        parameters = {"parameters": {"normalize": normalize}}
        return {"merge_method": genome.merge_method, **base, **body, **parameters, **self._tokenizer()}

    def _tokenizer(self) -> dict[str, str]:
        source = self.genome.tokenizer_source
        return {} if source is None else {"tokenizer_source": source}

    def _groups(self) -> list[tuple[int, int]]:
        """The first layer of each group, and the one after its last; one of all without granularity."""
        step = self.genome.layer_granularity
        if not step:
            return [(0, 0)]
        config = read_config_of(open_reference(parse_reference(self.genome.models[0])))
        layers = config.get("num_hidden_layers", config.get("n_layer"))
        if not isinstance(layers, int) or layers < 1 or layers % step:
            raise InputError(
                f"layer_granularity: {step}, expected a divisor of the number of layers, {layers}; correct it"
            )
        return [(first, first + step) for first in range(0, layers, step)]

    def _models(self, groups: int) -> list[dict[str, Any]]:
        """The models whole, each value a line over the groups if there are several."""
        entries = [{"model": model, **self._values(groups)} for model in self.genome.models]
        return entries + [{"model": model} for model in self._base()]

    def _slice(self, first: int, end: int) -> dict[str, Any]:
        """The layers of a group."""
        place = {"layer_range": [first, end]}
        sources = [{"model": model, **place, **self._values(1)} for model in self.genome.models]
        sources += [{"model": model, **place} for model in self._base()]
        alone = {"parameters": {"t": self._range("t")}} if self.genome.merge_method == "slerp" else {}
        return {"sources": sources, **alone}

    def _base(self) -> list[Any]:
        base = self.genome.base_model
        known = [parse_reference(model) for model in self.genome.models]
        return [] if base is None or parse_reference(base) in known else [base]

    def _values(self, groups: int) -> dict[str, Any]:
        """The parameters of a model."""
        if self.genome.merge_method == "slerp":
            return {}
        return {
            "parameters": {
                name: self._filtered(name, groups) for name in _PARAMETERS[self.genome.merge_method]
            }
        }

    def _filtered(self, name: str, groups: int) -> Any:
        filters = [{"filter": part} for part in self.genome.filters or []]
        if not filters:
            return self._value(name, groups)
        return [{**given, "value": self._value(name, groups)} for given in (*filters, {})]

    def _value(self, name: str, groups: int) -> Any:
        return self._range(name) if groups == 1 else [self._range(name) for _ in range(groups)]

    def _range(self, name: str) -> dict[str, Any]:
        if name == "t":
            return {"search": [0.0, 1.0], "start": 0.5}
        if name == "density":
            return {"search": [LEAST, 1.0], "start": 1.0}
        low = -MOST if self.genome.allow_negative_weights else 0.0
        return {"search": [low, MOST], "start": round(1 / len(self.genome.models), 6)}


def _check(genome: Genome) -> None:
    """Refuse what cannot be meant, and what is not searched here. Raises: InputError."""
    method = genome.merge_method
    if method in ("ties", "dare_ties", "task_arithmetic") and genome.base_model is None:
        raise InputError(f"base_model: missing, but {method} starts from one; name it")
    if method == "slerp" and len(genome.models) != 2:
        raise InputError(f"models: {len(genome.models)} for slerp, expected two; leave the others out")
    if method == "slerp" and (genome.smooth or genome.filters):
        raise InputError("smooth, filters: of slerp there are none; leave them out")
    for ref in [*genome.models, *([] if genome.base_model is None else [genome.base_model])]:
        try:
            parse_reference(ref)
        except ValueError as error:
            raise InputError(f"models: {error}") from None
