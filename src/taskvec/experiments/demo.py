"""The built-in experiment, with its counter-example: the same model without pre-training."""

import json
from pathlib import Path
from typing import Any

from taskvec.experiments.config import Addition, Experiment, load_experiment
from taskvec.experiments.runner import Runner
from taskvec.models.builtin.backbone import configuration, random_initialised
from taskvec.progress import Watch, unwatched
from taskvec.reports.store import Store
from taskvec.weights import save_weights

FILE = Path(__file__).parent / "demo.yaml"


def run_demo(store: Store, seeds: tuple[int, ...] | None = None, watch: Watch = unwatched) -> dict[str, Any]:
    """All results of the demo; ``untrained`` holds those of the randomly initialised model."""
    experiment, suite = load_experiment(FILE, {"seeds": seeds} if seeds else {})
    found = Runner(experiment, suite, store, watch).run()
    found["untrained"] = Runner(_untrained(experiment, store.folder), suite, store, watch).run()
    return found


def _untrained(experiment: Experiment, folder: Path) -> Experiment:
    """The first regime and the addition of all tasks, from weights that were never trained."""
    place = folder / "untrained"
    if not place.exists():
        backbone = random_initialised(seed=0)
        save_weights(backbone.network, place)
        config = configuration(backbone.vocabulary, backbone.network.shape)
        (place / "config.json").write_text(json.dumps(config))
    first = next(iter(experiment.regimes))
    return experiment.model_copy(
        update={
            "model": str(place),
            "regimes": {first: experiment.regimes[first]},
            "addition": Addition(subsets="whole"),
            "atm": None,
            "negation": None,
            "analogies": (),
            "joint": False,
        }
    )
