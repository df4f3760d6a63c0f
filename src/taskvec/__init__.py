"""Task arithmetic: train, store, combine, apply, evaluate and explain task vectors.

Everything public is here and is imported when it is first used; importing the package does not import torch.

>>> import taskvec as tv
>>> edit = 0.5 * (tv.TaskVector.load("a.safetensors") + tv.TaskVector.load("b.safetensors"))  # doctest: +SKIP
>>> tv.save_weights(tv.apply("base-model", edit), "edited-model")  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from taskvec._version import __version__

if TYPE_CHECKING:
    from taskvec.coefficients.adapting import adapt
    from taskvec.coefficients.learning import learn_coefficients
    from taskvec.coefficients.lines import learn_lines
    from taskvec.coefficients.settings import CoefficientSettings
    from taskvec.coefficients.surgery import fit_surgery
    from taskvec.edits.opening import open_recipe, save_merge, save_part
    from taskvec.edits.upload import push
    from taskvec.evaluation.evaluator import Evaluator
    from taskvec.evaluation.harness import HarnessSettings, harness
    from taskvec.evaluation.linear import LinearFeatures, linear_features
    from taskvec.evaluation.metrics import score
    from taskvec.evaluation.points import OrdinaryPoints, Points, TangentPoints
    from taskvec.evaluation.pruning import Pruned, prune_layers
    from taskvec.evaluation.refining import Refined, refine
    from taskvec.evaluation.search import Grid, search_addition, search_each, search_negation
    from taskvec.merging.keys import learn_keys, make_library
    from taskvec.merging.library import route
    from taskvec.models.backbone import Backbone
    from taskvec.models.heads import Head
    from taskvec.models.loading import load_backbone
    from taskvec.models.own import wrap
    from taskvec.models.selection import select
    from taskvec.rules import RULES
    from taskvec.searching.search import search
    from taskvec.statistics.curvature import curvature
    from taskvec.statistics.fisher import fisher
    from taskvec.statistics.gram import gram
    from taskvec.studies.addition import addition
    from taskvec.studies.analogy import analogy
    from taskvec.studies.disentanglement import disentanglement
    from taskvec.studies.linearity import linearity_gap
    from taskvec.studies.methods import methods
    from taskvec.studies.negation import negation
    from taskvec.studies.numerics.gradients import gradient_equivalence
    from taskvec.studies.single import single_task
    from taskvec.tangent.linearization import Linearization
    from taskvec.tangent.linearize import TangentModel, linearize
    from taskvec.tangent.ntk.kernel import ntk
    from taskvec.tangent.ntk.product import ntk_operator, ntk_product
    from taskvec.tasks.metrics import METRICS
    from taskvec.tasks.suite import Suite, load_suite
    from taskvec.tasks.task import Split, Task
    from taskvec.training.atm import atm
    from taskvec.training.finetune import finetune
    from taskvec.training.masks import mask_vote
    from taskvec.training.parts import Part, make_part
    from taskvec.training.regimes import Regime
    from taskvec.training.settings import TrainSettings
    from taskvec.training.sparse import tune_sparse
    from taskvec.vectors import TaskVector, apply, combine, save_adapter, similarity
    from taskvec.vectors.library import Library
    from taskvec.vectors.stored.masked import MaskedVectors, emr, tall_masks
    from taskvec.weights import Weights, open_weights, save_weights

_HOME = {
    "Weights": "weights",
    "open_weights": "weights",
    "save_weights": "weights",
    "TaskVector": "vectors",
    "apply": "vectors",
    "combine": "vectors",
    "save_adapter": "vectors",
    "similarity": "vectors",
    "Library": "vectors.library",
    "MaskedVectors": "vectors.stored.masked",
    "learn_keys": "merging.keys",
    "make_library": "merging.keys",
    "route": "merging.library",
    "emr": "vectors.stored.masked",
    "tall_masks": "vectors.stored.masked",
    "open_recipe": "edits.opening",
    "push": "edits.upload",
    "save_merge": "edits.opening",
    "save_part": "edits.opening",
    "RULES": "rules",
    "Linearization": "tangent.linearization",
    "TangentModel": "tangent.linearize",
    "linearize": "tangent.linearize",
    "ntk": "tangent.ntk.kernel",
    "ntk_operator": "tangent.ntk.product",
    "ntk_product": "tangent.ntk.product",
    "Backbone": "models.backbone",
    "Head": "models.heads",
    "load_backbone": "models.loading",
    "wrap": "models.own",
    "select": "models.selection",
    "METRICS": "tasks.metrics",
    "Suite": "tasks.suite",
    "load_suite": "tasks.suite",
    "Split": "tasks.task",
    "Task": "tasks.task",
    "Part": "training.parts",
    "make_part": "training.parts",
    "Regime": "training.regimes",
    "TrainSettings": "training.settings",
    "finetune": "training.finetune",
    "mask_vote": "training.masks",
    "tune_sparse": "training.sparse",
    "atm": "training.atm",
    "Evaluator": "evaluation.evaluator",
    "OrdinaryPoints": "evaluation.points",
    "Points": "evaluation.points",
    "TangentPoints": "evaluation.points",
    "CoefficientSettings": "coefficients.settings",
    "adapt": "coefficients.adapting",
    "learn_coefficients": "coefficients.learning",
    "learn_lines": "coefficients.lines",
    "fit_surgery": "coefficients.surgery",
    "Pruned": "evaluation.pruning",
    "prune_layers": "evaluation.pruning",
    "Grid": "evaluation.search",
    "HarnessSettings": "evaluation.harness",
    "harness": "evaluation.harness",
    "LinearFeatures": "evaluation.linear",
    "linear_features": "evaluation.linear",
    "Refined": "evaluation.refining",
    "refine": "evaluation.refining",
    "search_addition": "evaluation.search",
    "search_each": "evaluation.search",
    "search_negation": "evaluation.search",
    "score": "evaluation.metrics",
    "search": "searching.search",
    "single_task": "studies.single",
    "addition": "studies.addition",
    "methods": "studies.methods",
    "negation": "studies.negation",
    "analogy": "studies.analogy",
    "disentanglement": "studies.disentanglement",
    "gradient_equivalence": "studies.numerics.gradients",
    "linearity_gap": "studies.linearity",
    "curvature": "statistics.curvature",
    "fisher": "statistics.fisher",
    "gram": "statistics.gram",
}

__all__ = [
    "METRICS",
    "RULES",
    "Backbone",
    "CoefficientSettings",
    "Evaluator",
    "Grid",
    "HarnessSettings",
    "Head",
    "Library",
    "LinearFeatures",
    "Linearization",
    "MaskedVectors",
    "OrdinaryPoints",
    "Part",
    "Points",
    "Pruned",
    "Refined",
    "Regime",
    "Split",
    "Suite",
    "TangentModel",
    "TangentPoints",
    "Task",
    "TaskVector",
    "TrainSettings",
    "Weights",
    "__version__",
    "adapt",
    "addition",
    "analogy",
    "apply",
    "atm",
    "combine",
    "curvature",
    "disentanglement",
    "emr",
    "finetune",
    "fisher",
    "fit_surgery",
    "gradient_equivalence",
    "gram",
    "harness",
    "learn_coefficients",
    "learn_keys",
    "learn_lines",
    "linear_features",
    "linearity_gap",
    "linearize",
    "load_backbone",
    "load_suite",
    "make_library",
    "make_part",
    "mask_vote",
    "methods",
    "negation",
    "ntk",
    "ntk_operator",
    "ntk_product",
    "open_recipe",
    "open_weights",
    "prune_layers",
    "push",
    "refine",
    "route",
    "save_adapter",
    "save_merge",
    "save_part",
    "save_weights",
    "score",
    "search",
    "search_addition",
    "search_each",
    "search_negation",
    "select",
    "similarity",
    "single_task",
    "tall_masks",
    "tune_sparse",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"taskvec has no {name!r}; it offers {', '.join(sorted(_HOME))}")
    return getattr(import_module(f"taskvec.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
