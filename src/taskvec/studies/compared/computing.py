"""Make a model by a method, once, and measure it at one scaling coefficient after another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Literal

import torch

from taskvec.errors import Diverged, TaskvecError
from taskvec.evaluation.search import Grid, search_scale
from taskvec.memory import Peak
from taskvec.merging.method import Bench, Consumed, Method, Model, in_order
from taskvec.place import enough_memory
from taskvec.studies.compared.records import How
from taskvec.studies.hits import has_hits, pack_hits
from taskvec.studies.measured import measured
from taskvec.studies.record import Plain

Coefficient = Literal["default", "searched", "both"]
Values = Mapping[str, float]


@dataclass(frozen=True)
class Protocol:
    """How methods are measured: relative to each task's ``single`` model, at which coefficients."""

    single: Mapping[str, Values]
    coefficient: Coefficient
    grid: Grid | None


def compare(bench: Bench, method: Method, protocol: Protocol) -> Plain:
    """Make a model by a method and measure it; the record.

    Raises: TaskvecError if it cannot be made although it fits.
    """
    about = {"name": method.name, "tasks": bench.tasks}
    if reason := method.unfit(bench):
        return {**about, "left_out": reason}
    with Peak(bench.evaluator.backbone.device) as peak:
        begun = perf_counter()
        model = make(bench, method)
        seconds = perf_counter() - begun
    outcomes, diverged = _outcomes(bench, method, model, protocol)
    given = method.family == "given"  # what it cost is not known here
    return {
        **about,
        "outcomes": outcomes,
        **({"diverged": diverged} if diverged else {}),
        "seconds": None if given else round(seconds, 3),
        "peak_bytes": None if given else peak.bytes,
        "coefficients": model.coefficients,
        "facts": dict(model.facts()),
    }


def make(bench: Bench, method: Method) -> Model:
    """The model. Raises: TaskvecError."""
    remedy = "take fewer tasks, or leave the method out"
    with enough_memory(bench.evaluator.backbone.device, f"making {method.name}", remedy):
        try:
            return method.make(bench)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # its stubs lack it
            raise TaskvecError(f"{method.name}: {str(error).splitlines()[0]}; leave the method out") from None


def failed(name: str, tasks: Sequence[str], error: TaskvecError) -> Plain:
    """What stands in a table for a method that could not be made."""
    return {"name": name, "tasks": list(tasks), "failed": str(error)}


def _outcomes(
    bench: Bench, method: Method, model: Model, protocol: Protocol
) -> tuple[list[Plain], dict[How, str]]:
    """What the model gives at each coefficient that is asked for, and where its outputs are not finite."""
    found: list[Plain] = []
    diverged: dict[How, str] = {}
    for how in _asked(method, protocol.coefficient):
        try:
            found.append(_outcome(bench, method, model, protocol, how))
        except Diverged as error:
            diverged[how] = str(error)
    return found, diverged


def _asked(method: Method, coefficient: Coefficient) -> Iterator[How]:
    if method.coefficient is None:
        yield "none"
        return
    if coefficient != "searched":
        yield "default"
    if coefficient != "default":
        yield "searched"


def _outcome(bench: Bench, method: Method, model: Model, protocol: Protocol, how: How) -> Plain:
    alpha, consumed, search = method.coefficient, _consumed(bench, method), {}
    if how == "searched":
        values_at = partial(_values, bench, model)
        searched = search_scale(values_at, protocol.single["validation"], protocol.grid)
        alpha, search = searched.coefficient, {"search": searched.record()}
        consumed = (*consumed, "validation labels")
    return {
        "how": how,
        "coefficient": alpha,
        "consumed": in_order(consumed),
        **search,
        **measure_model(bench, model, 1.0 if alpha is None else alpha, protocol.single["test"]),
    }


def _consumed(bench: Bench, method: Method) -> Sequence[Consumed]:
    """What making the model consumed: inputs that hold the answers are labels."""
    consumed = method.consumes(bench.split)
    if not any(bench.evaluator.objective(task).guided for task in bench.tasks):
        return consumed
    answers: dict[Consumed, Consumed] = {
        "unlabelled train inputs": "train labels",
        "unlabelled validation inputs": "validation labels",
    }
    return [answers.get(each, each) for each in consumed]


def _values(bench: Bench, model: Model, alpha: float) -> Values:
    return {task: model.value(task, "validation", alpha) for task in bench.tasks}


def measure_model(bench: Bench, model: Model, alpha: float, single: Values) -> dict[str, object]:
    """Figures on test data, a pass a task; of classifications scored by accuracy, also which are right."""
    values, hits = {}, {}
    for task in bench.tasks:
        if has_hits(bench.evaluator.objective(task)):
            tally = model.tally(task, "test", alpha)
            values[task], hits[task] = model.worth(task, tally), pack_hits(tally)
        else:
            values[task] = model.value(task, "test", alpha)
    return {**measured(values, single), "hits": hits}
