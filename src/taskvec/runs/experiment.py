"""Experiment files: what every experiment says, and a block for each study of the registry."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import create_model

from taskvec.code import check_allowed
from taskvec.config import read_yaml
from taskvec.errors import InputError
from taskvec.models.own import is_own
from taskvec.reading import local_path, printable
from taskvec.studies import STUDIES
from taskvec.studies.experiment import Experiment
from taskvec.studies.study import Study
from taskvec.tasks.source import expanded
from taskvec.tasks.suite import Suite, load_suite
from taskvec.training.penalties.settings import foreign, with_files

FIRST = ("addition", "negation", "atm", "joint")
"""Blocks that open the settings on a page, where readers look for them; the others follow the registry."""


def load_experiment(path: Path, changes: Mapping[str, object] | None = None) -> tuple[Experiment, Suite]:
    """An experiment file and its suite, both validated, every task name known.

    Args:
        changes: top-level keys to override, from the command line.

    Raises: InputError naming the file and the key at fault.
    """
    path = local_path(path)
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: {type(values).__name__}, expected keys such as 'experiment' and 'model'")
    experiment = model_of_experiments().parse(str(path), {**values, **(changes or {})})
    experiment = _placed(experiment, path.parent)
    _check_code(experiment, f"{path}: model")
    named = experiment.suite
    suite = load_suite(path.parent / named if named.endswith((".yaml", ".yml")) else named)
    try:
        involved_tasks(experiment, suite)
        for regime in experiment.regimes:
            for tasks in ((), *((task,) for task in experiment.per_task)):
                _check_references(experiment, regime, tasks, len(experiment.task_names(suite)))
        for study in active(experiment):
            study.check(experiment, suite)
    except InputError as error:
        raise type(error)(f"{path}: {printable(' '.join(str(error).split()))}") from None
    return experiment, suite


def _check_references(experiment: Experiment, regime: str, tasks: Sequence[str], count: int) -> None:
    """Refuse bad settings, and a penalty on other tasks where there are none. Raises: InputError."""
    settings = experiment.settings(regime, experiment.seeds[0], *tasks)
    if foreign(settings.penalty) and count < 2:
        raise InputError(
            f"regimes.{regime}: its penalty uses the inputs of other tasks, and there is one task; "
            "add others under 'tasks', give it 'files' of taskvec stats, or leave the penalty out"
        )


def _placed(experiment: Experiment, folder: Path) -> Experiment:
    """The same with paths from the experiment file's folder. Raises: InputError."""

    def place(given: str) -> str:
        return str(folder / expanded(given))

    def settled(values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "penalty": with_files(values["penalty"], place)} if "penalty" in values else values

    return experiment.model_copy(
        update={
            "vectors": {task: place(given) for task, given in experiment.vectors.items()},
            "training": settled(experiment.training),
            "regimes": {name: settled(values) for name, values in experiment.regimes.items()},
            "per_task": {name: settled(values) for name, values in experiment.per_task.items()},
        }
    )


def _check_code(experiment: Experiment, where: str) -> None:
    """Refuse a model that is a function, unless it is allowed, also behind a variable. Raises: InputError."""
    models = [experiment.model]
    with suppress(InputError):  # of a variable that is not set, which running says
        models.append(experiment.checkpoint)
    for model in models:
        if is_own(model):
            check_allowed(model, where)


def active(experiment: Experiment) -> list[Study[Any]]:
    """The studies that an experiment asks for, and those that are always on, each with its block."""
    studies = [study(getattr(experiment, name, None)) for name, study in STUDIES.items()]
    return [study for study in studies if study.settings is None or study.block]


def involved_tasks(experiment: Experiment, suite: Suite) -> list[str]:
    """Every task that something is trained or measured on, once, each checked against the suite."""
    names = experiment.task_names(suite)
    for study in active(experiment):
        names += study.tasks(experiment, suite)
    return [suite.task(name).name for name in dict.fromkeys(names)]


def model_of_experiments() -> type[Experiment]:
    """An experiment with the blocks of all studies."""
    fields: dict[str, Any] = {}
    for name in dict.fromkeys([*FIRST, *STUDIES]):
        study = STUDIES[name]
        if study.settings is not None:
            kind = study.settings | None if study.default is None else study.settings
            fields[name] = (kind, study.default)
    return create_model("Experiment", __base__=_OfAllStudies, **fields)


class _OfAllStudies(Experiment):
    """What experiments with the blocks of all studies have in common: they can be sent to another process."""

    def __reduce__(self) -> tuple[Callable[[], Experiment], tuple[()], dict[Any, Any]]:
        return _blank, (), self.__getstate__()


def _blank() -> Experiment:
    """An experiment whose state follows."""
    model = model_of_experiments()
    return model.__new__(model)
