"""The built-in experiment, its analogies, and its counter-example: the same model without pre-training."""

import json
from itertools import product
from pathlib import Path
from typing import Any

from taskvec.runs.experiment import Addition, Analogy, Experiment, load_experiment
from taskvec.runs.runner import Runner
from taskvec.models.builtin.backbone import configuration, random_initialised
from taskvec.progress import Watch, unwatched
from taskvec.runs.store import Store
from taskvec.tasks.suite import load_suite
from taskvec.weights import save_weights

FILE = Path(__file__).parent / "demo.yaml"


def run_demo(store: Store, seeds: tuple[int, ...] | None = None, watch: Watch = unwatched) -> dict[str, Any]:
    """All results of the demo; ``untrained`` holds those of the randomly initialised model."""
    experiment, suite = load_experiment(FILE, {"seeds": seeds} if seeds else {})
    found = Runner(experiment, suite, store, watch).run()

    analogies = _analogies()
    cells = tuple(dict.fromkeys(task for one in analogies for task in (one.a, one.b, one.c, one.target)))
    styles = _first_regime(experiment, tasks=cells, analogies=analogies)
    solved = Runner(styles, load_suite("builtin-analogy"), store, watch).run()
    for seed, regimes in solved["seeds"].items():
        for regime, results in regimes.items():
            found["seeds"][seed][regime]["analogies"] = results["analogies"]

    random = _first_regime(experiment, model=_untrained(store.folder), addition=Addition(subsets="whole"))
    found["untrained"] = Runner(random, suite, store, watch).run()
    return found


def _first_regime(experiment: Experiment, **changes: object) -> Experiment:
    """The experiment with one regime and no protocol but those in ``changes``."""
    first = next(iter(experiment.regimes))
    protocols = {
        "addition": None,
        "negation": None,
        "atm": None,
        "joint": None,
        "analogies": (),
        "disentanglement": None,
        "costs": False,
    }
    regimes = {first: experiment.regimes[first]}
    return experiment.model_copy(update={"regimes": regimes, **protocols, **changes})


def _analogies() -> tuple[Analogy, ...]:
    """Each cell of {display, streetnum} x {low, high} from the other three."""
    other = {"display": "streetnum", "streetnum": "display", "low": "high", "high": "low"}
    return tuple(
        Analogy(
            a=f"{other[style]}-{other[half]}",
            b=f"{other[style]}-{half}",
            c=f"{style}-{other[half]}",
            target=f"{style}-{half}",
        )
        for style, half in product(("display", "streetnum"), ("low", "high"))
    )


def _untrained(folder: Path) -> str:
    """A checkpoint of the built-in model before any training."""
    place = folder / "untrained"
    if not (place / "config.json").exists():
        backbone = random_initialised(seed=0)
        save_weights(backbone.network, place, force=True)
        config = configuration(backbone.vocabulary, backbone.network.shape)
        (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(place)
