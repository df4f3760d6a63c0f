"""A candidate's worth by a function of the user's, in memory."""

from collections.abc import Callable, Mapping
from functools import cached_property
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskvec.edits.merge import Merge
from taskvec.errors import InputError, TaskvecError
from taskvec.reading import printable, shortened
from taskvec.searching.figures import less_is_better, returned_figures
from taskvec.searching.objective import Figures, Portion
from taskvec.searching.resident import Resident
from taskvec.searching.whole import Whole, load_whole

Judge = Callable[..., float | Mapping[str, float]] | Callable[[Mapping[str, Tensor]], object]

GIVEN = ("weights", "model", "tokenizer", "part")
"""What a function may ask for, by the names of its parameters."""


class FunctionScore:
    """What a function says of an edited model: a number, called ``score``, or a mapping of named ones.

    Args:
        judge: asks by the names of its parameters for ``weights``, a lazy mapping from names to tensors;
            ``model``, as transformers loads it, with the candidate's values, in eval mode and without
            gradients; its ``tokenizer``; and the ``part`` of the data to measure on, ``search`` or
            ``holdout``. A single parameter of another name stands for the weights.
        name: for messages and records.
        model: what is loaded, in place of the folder of the recipe's base.
        minimise: less of the number that it returns is better.

    Raises: InputError for a function that asks for anything else.
    """

    headline = "score"

    def __init__(
        self,
        judge: Judge,
        name: str,
        *,
        model: str | None = None,
        device: str = "cpu",
        minimise: bool = False,
    ) -> None:
        self._judge, self._name, self._model = judge, name, model
        self._device, self._minimise = device, minimise
        self._asked = _parameters(judge, name)

    @property
    def parts(self) -> bool:
        """Whether it is told which part of the data to measure on."""
        return "part" in self._asked.values()

    @property
    def label(self) -> str:
        """Its name without its module."""
        return self._name.rpartition(":")[2].rpartition(".")[2]

    @property
    def key(self) -> Mapping[str, object]:
        """Its name: what it does is not looked at."""
        more = {"model": self._model, "minimise": self._minimise}
        return {"function": self._name, **{key: value for key, value in more.items() if value}}

    def lower_is_better(self, figure: str) -> bool:
        """Whether less of a figure is better: of a number as was said, of others by their names."""
        return self._minimise if figure == "score" else less_is_better(figure)

    @cached_property
    def _resident(self) -> Resident[Whole]:
        return Resident(lambda ref: load_whole(ref, self._device), self._model)

    def evaluate(self, merge: Merge, part: Portion, scratch: Path) -> Figures:
        """What the function says of a candidate. Raises: TaskvecError if it raises, or returns no numbers."""
        given: dict[str, Any] = {"weights": merge.weights, "part": part}
        if not {"model", "tokenizer"}.isdisjoint(self._asked.values()):
            whole = self._resident.candidate(merge, scratch).model
            given["model"] = whole.network.eval()
            if "tokenizer" in self._asked.values():
                given["tokenizer"] = whole.tokenizer
        result = self._called({name: given[what] for name, what in self._asked.items()})
        figures = returned_figures(result, f"--score {self._name}")
        if self._minimise and "score" not in figures:
            raise InputError(
                f"--minimise: for a function that returns a number, and {self._name} returns "
                f"{', '.join(figures)}; leave it out, and weigh what is to be less: --weigh NAME=-1"
            )
        return figures

    def _called(self, given: Mapping[str, Any]) -> object:
        judge: Any = self._judge
        positional = [given[name] for name in given if name not in GIVEN]
        try:
            with torch.no_grad():
                return judge(*positional, **{name: value for name, value in given.items() if name in GIVEN})
        except TaskvecError:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's own code raises
            message = printable(shortened(" ".join(str(error).split()), 200))
            raise TaskvecError(f"--score {self._name}: raised {type(error).__name__}: {message}") from error


def _parameters(judge: Judge, name: str) -> dict[str, str]:
    """Parameter -> what it is given. Raises: InputError."""
    try:
        found = list(signature(judge).parameters.values())
    except (TypeError, ValueError):  # some of those written in C have none
        return {"": "weights"}
    needed = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    asked = {each.name: each.name for each in found if each.kind in needed and each.name in GIVEN}
    others = [
        each.name
        for each in found
        if each.kind in needed[:2] and each.name not in GIVEN and each.default is each.empty
    ]
    if len(others) == 1 and "weights" not in asked:
        return {others[0]: "weights", **asked}
    if others or not asked:
        raise InputError(
            f"--score: {name} asks for {', '.join(others) or 'nothing'}, expected parameters of the names "
            f"{', '.join(GIVEN)}"
        )
    return asked
