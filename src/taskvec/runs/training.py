"""Curves of the trainings of a run, from the logs in its folder, which anybody may have written."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec.errors import InputError, TaskvecError
from taskvec.reading import inside, parse_json, read_bytes
from taskvec.reports.charts.lines import Curve, Dot, Lines, Plot
from taskvec.reports.charts.scales import Axis, is_shown
from taskvec.studies.experiment import Experiment
from taskvec.studies.trial import Plan, recipe

_FIGURES = {
    "loss": ("loss", 1.0),
    "validation": ("mean validation metric, %", 100.0),
    "gradient_norm": ("norm of the gradient", 1.0),
    "penalty": ("penalty", 1.0),
    "conflict_rate": ("conflicts, % of pairs of tasks", 100.0),
}
"""What logs tell that is drawn: in words, and its factor."""

_BYTES = 1 << 26
"""Of a log, at most; one of a hundred thousand steps of twenty tasks has some 100 MB, and is left out."""
_DOTS, _ALL = 200, 12_000
"""The most points of a curve, and of all curves of a chart."""


@dataclass(frozen=True)
class Logged:
    """The log of a training: figures by step.

    Args:
        of: the task, or what trained on all of them.
    """

    regime: str
    of: str
    together: bool
    steps: Sequence[tuple[int, Mapping[str, float]]]
    skipped: int = 0
    """Lines that are none."""


def training_charts(plan: Plan, records: Iterable[Mapping[str, Any]], folder: Path) -> list[Lines]:
    """A chart a figure, a panel a regime, a line a task and seed; all but the loss are folded."""
    chosen, left = _chosen(plan, records), list[str]()
    logs = []
    for (regime, name, together, _), file in chosen.items():
        try:
            logs.append(_read(folder, file, regime, name, together, max(20, min(_DOTS, _ALL // len(chosen)))))
        except TaskvecError as error:
            left.append(str(error))
    return list(_charts([log for log in logs if log and log.steps], _said(logs, left)))


def _said(logs: Iterable[Logged | None], left: Sequence[str]) -> str:
    """What a reader must know of logs that could not be read."""
    skipped = sum(log.skipped for log in logs if log)
    lines = f" {skipped} lines that are no steps are left out." if skipped else ""
    files = f" {len(left)} logs are left out, first: {left[0]}." if left else ""
    return f"{lines}{files}"


_Place = tuple[str, str, bool, int]
"""Regime, name, whether all tasks were trained together, and seed."""


def _chosen(plan: Plan, records: Iterable[Mapping[str, Any]]) -> dict[_Place, str]:
    """The vectors of this experiment that were trained, by what they are; the latest of each."""
    found: dict[_Place, tuple[bool, str]] = {}
    for record in records:
        match record:
            case {
                "cell": "vector",
                "inputs": {"regime": str(regime), "settings": {"seed": int(seed)}} as inputs,
                "result": {"file": str(file)},
            } if regime in plan.experiment.regimes and seed in plan.experiment.seeds:
                told = _name(plan, inputs)
                if inputs.get("model") == plan.model and told:
                    place, fits = (regime, *told, seed), _fits(plan.experiment, inputs, regime, seed)
                    if fits or not found.get(place, (False, ""))[0]:
                        found[place] = (fits, file)
    return {place: file for place, (_, file) in found.items()}


def _name(plan: Plan, inputs: Mapping[str, Any]) -> tuple[str, bool] | None:
    """What was trained, and whether on all tasks; none for what is no curve of its own."""
    tasks = list(inputs["tasks"]) if isinstance(inputs.get("tasks"), Mapping) else []
    if isinstance(rounds := inputs.get("rounds"), int):
        return f"ATM, {rounds} rounds", True
    if isinstance(combiner := inputs.get("combiner"), Mapping):
        params = {name: value for name, value in combiner.items() if name != "combiner"}
        return f"{combiner.get('combiner')}{f' {json.dumps(params)}' if params else ''}", True
    if len(tasks) > 1:
        return "joint training", True
    if len(tasks) == 1 and tasks[0] in plan.tasks and not {"ascend", "steps"} & inputs.keys():
        return tasks[0], False
    return None


def _fits(experiment: Experiment, inputs: Mapping[str, Any], regime: str, seed: int) -> bool:
    """Whether it was trained with the settings that the experiment has now."""
    try:
        return bool(
            inputs["settings"] == recipe(experiment.settings(regime, seed), experiment.regime(regime))
        )
    except InputError:
        return False


def _read(folder: Path, file: str, regime: str, of: str, together: bool, most: int) -> Logged | None:
    """A log beside a vector's file; none where there is none. Raises: TaskvecError."""
    place = Path(file)
    if place.parts[:1] != ("vectors",):
        return None
    log = inside(folder, str(Path("logs", *place.parts[1:]).with_suffix(".jsonl")), folder)
    if not log.exists():
        return None
    lines = [line for line in read_bytes(log, _BYTES).split(b"\n") if line]
    kept = [line for number, line in enumerate(lines) if number % -(-len(lines) // most) == 0]
    kept += [line for line in lines[-1:] if line not in kept[-1:]]
    if len(kept) < len(lines):  # validations are few, and not to be missed
        measured = [line for line in lines if b'"validation"' in line][:most]
        kept = list(dict.fromkeys([*kept, *measured]))
    steps = [step for line in kept if (step := _step(line))]
    return Logged(regime, of, together, sorted(steps, key=lambda step: step[0]), len(kept) - len(steps))


def _step(line: bytes) -> tuple[int, dict[str, float]] | None:
    """The number and figures of a line; none if it is no step."""
    try:
        plain = parse_json(line, "log")
    except TaskvecError:
        return None
    match plain:
        case {"step": int(step)} if 0 <= step < 1 << 53:
            figures = {name: plain.get(name) for name in _FIGURES}
            known = (int, float)
            return step, {
                name: float(value)
                for name, value in figures.items()
                if isinstance(value, known) and abs(value) < 1e100 and is_shown(float(value))
            }
    return None


def _charts(logs: Sequence[Logged], more: str) -> Iterator[Lines]:
    for figure, (words, factor) in _FIGURES.items():
        panels: dict[str, list[Curve]] = {}
        for log in logs:
            dots = [Dot(step, [factor * of[figure]]) for step, of in log.steps if figure in of]
            if dots:
                title = f"{log.regime}, all tasks" if log.together else log.regime
                panels.setdefault(title, []).append(Curve(log.of, dots, thin=True))
        if panels:
            plots = [Plot(title, Axis("step"), Axis(words), curves) for title, curves in panels.items()]
            caption = f"Training, step by step: {words}; a line a seed, of at most {_DOTS} points.{more}"
            folded = "" if figure == "loss" else f"Training: {words}"
            yield Lines(f"training-{figure.replace('_', '-')}", caption, plots, folded=folded)
