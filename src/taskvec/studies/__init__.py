"""Protocols and analyses, one a file, in the order of work, of tables and of figures.

A new one is a file beside these (see ``study.py``) and a line here. The name is the key of its block in an
experiment file.
"""

from typing import TYPE_CHECKING, Any

from taskvec.registry import Registry

if TYPE_CHECKING:
    from taskvec.studies.analysis import Analysis
    from taskvec.studies.study import Study

STUDIES: "Registry[type[Study[Any]]]" = Registry(
    "study",
    {
        "zero_shot": "taskvec.studies.single:ZeroShot",
        "lm_eval_base": "taskvec.studies.lm_eval:LmEvalBase",
        "single": "taskvec.studies.single:Single",
        "addition": "taskvec.studies.addition:Addition",
        "explore": "taskvec.studies.explore:Explore",
        "regularised": "taskvec.studies.regularised:Regularised",
        "lm_eval": "taskvec.studies.lm_eval:LmEval",
        "methods": "taskvec.studies.methods:Methods",
        "library": "taskvec.studies.library:Libraries",
        "few_shot": "taskvec.studies.few_shot:FewShot",
        "joint": "taskvec.studies.joint:Joint",
        "atm": "taskvec.studies.atm:Atm",
        "budget": "taskvec.studies.budget:Budget",
        "negation": "taskvec.studies.negation:Negation",
        "analogies": "taskvec.studies.analogy:Analogies",
        "cosine": "taskvec.studies.single:Cosine",
        "coefficients": "taskvec.studies.contributions:Coefficients",
        "advantage": "taskvec.studies.advantage:Advantage",
        "disentanglement": "taskvec.studies.disentanglement:Disentanglement",
        "layers": "taskvec.studies.layers:Layers",
        "inspect": "taskvec.studies.inspected:Inspect",
        "costs": "taskvec.studies.cost:Costs",
    },
)

ANALYSES: "Registry[type[Analysis]]" = Registry(
    "analysis",
    {
        "disentanglement": "taskvec.studies.disentanglement:DisentanglementAnalysis",
        "linearity": "taskvec.studies.linearity:LinearityAnalysis",
        "ntk": "taskvec.studies.ntk:KernelAnalysis",
        "similarity": "taskvec.studies.similarity:SimilarityAnalysis",
        "gradients": "taskvec.studies.gradients:GradientsAnalysis",
    },
)
"""What ``taskvec analyze`` offers; see ``analysis.py``."""
