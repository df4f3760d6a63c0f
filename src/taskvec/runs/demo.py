"""The built-in experiment, its analogies, and its counter-example: the same model without pre-training."""

import json
from collections.abc import Mapping
from pathlib import Path

from taskvec.group import current
from taskvec.models.builtin.backbone import configuration, random_initialised
from taskvec.progress import Watch, unwatched
from taskvec.runs.events import Told, untold
from taskvec.runs.executors.executor import HERE, Executor
from taskvec.runs.experiment import load_experiment
from taskvec.runs.runner import Runner
from taskvec.studies import STUDIES
from taskvec.studies.addition import AdditionSettings
from taskvec.studies.analogy import AnalogySettings, Solved
from taskvec.studies.experiment import Experiment
from taskvec.studies.store import Store
from taskvec.studies.study import Results
from taskvec.tasks.suite import load_suite
from taskvec.weights import save_weights

FILE = Path(__file__).parent / "demo.yaml"
_ANALOGIES = tuple(
    AnalogySettings(a=a, b=b, c=c, target=target)
    for a, b, c, target in (
        ("streetnum-high", "streetnum-low", "display-high", "display-low"),
        ("streetnum-low", "streetnum-high", "display-low", "display-high"),
        ("display-high", "display-low", "streetnum-high", "streetnum-low"),
        ("display-low", "display-high", "streetnum-low", "streetnum-high"),
    )
)


def run_demo(
    store: Store,
    changes: Mapping[str, object] | None = None,
    watch: Watch = unwatched,
    told: Told = untold,
    executor: Executor = HERE,
) -> Results:
    """All results of the demo; ``untrained`` holds those of the randomly initialised model.

    Args:
        changes: keys of its experiment file to override, such as ``seeds`` and ``device``.
    """
    experiment, suite = load_experiment(FILE, changes)
    results = Runner(experiment, suite, store, watch).run(told, executor)

    terms = dict.fromkeys(task for of in _ANALOGIES for task in (of.a, of.b, of.c, of.target))
    styles = _first_regime(experiment, "analogies", tasks=tuple(terms), analogies=_ANALOGIES)
    results.take(Solved, Runner(styles, load_suite("builtin-analogy"), store, watch).run(told, executor))

    whole = AdditionSettings(subsets="whole")
    changed: dict[str, object] = {"model": _untrained(store.folder), "addition": whole, "inspect": False}
    random = _first_regime(experiment, "without pre-training", **changed)
    results.untrained = Runner(random, suite, store, watch).run(told, executor)
    return results


def _first_regime(experiment: Experiment, part: str, **changes: object) -> Experiment:
    """A part of the experiment, with one regime and no study but those in ``changes``."""
    first = next(iter(experiment.regimes))
    off = {name: study.default for name, study in STUDIES.items() if study.settings is not None}
    regimes = {first: experiment.regimes[first]}
    return experiment.model_copy(
        update={"name": f"{experiment.name}, {part}", "regimes": regimes, **off, **changes}
    )


def _untrained(folder: Path) -> str:
    """A checkpoint of the built-in model before any training."""
    place = folder / "untrained"
    current().of_first(lambda: _write_untrained(place))
    return str(place)


def _write_untrained(place: Path) -> None:
    if not (place / "config.json").exists():
        backbone = random_initialised(seed=0)
        save_weights(backbone.network, place, force=True)
        config = configuration(backbone.vocabulary)
        (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
