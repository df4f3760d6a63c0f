"""Vectors of several tasks -> one, by weights that their inner products decide. A combiner a file.

The same by the same name in three places: gradients of joint training, the aggregator of ATM, and as rules on
task vectors (``taskvec.rules``). A new combiner is a file beside this one, a line below, a row in
``docs/combiners.md`` and, as a rule, a line in ``rules/__init__.py``.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from taskvec.code import named_callable, names_code
from taskvec.combiners.combiner import Combiner
from taskvec.combiners.custom import called
from taskvec.registry import Registry

COMBINERS = Registry[Combiner](
    "combiner",
    {
        "mean": "taskvec.combiners.mean:MEAN",
        "sum": "taskvec.combiners.sum:SUM",
        "pcgrad": "taskvec.combiners.pcgrad:PCGRAD",
        "wpcgrad": "taskvec.combiners.wpcgrad:WPCGRAD",
        "mgda": "taskvec.combiners.mgda:MGDA",
        "upgrad": "taskvec.combiners.upgrad:UPGRAD",
        "dualproj": "taskvec.combiners.dualproj:DUALPROJ",
        "cagrad": "taskvec.combiners.cagrad:CAGRAD",
        "nash_mtl": "taskvec.combiners.nash_mtl:NASH_MTL",
        "aligned_mtl": "taskvec.combiners.aligned_mtl:ALIGNED_MTL",
        "imtl_g": "taskvec.combiners.imtl_g:IMTL_G",
        "config": "taskvec.combiners.config:CONFIG",
        "cosine": "taskvec.combiners.cosine:COSINE",
        "graddrop": "taskvec.combiners.graddrop:GRADDROP",
    },
)


def combiner_called(combiner: str | Combiner | Callable[[Tensor], Tensor], **params: Any) -> Combiner:
    """A combiner by name, with parameters; or any function of the Gram matrix that returns weights.

    Args:
        combiner: a name; ``module:function``, which is imported (check what a *file* names with
            ``code.check_allowed`` first); or a callable, (task, task) float64 -> (task,), as a TorchJD
            weighting is.

    Raises: UnknownName, InputError for a parameter that is unknown or does not fit.
    """
    if isinstance(combiner, str):
        if not names_code(combiner):
            return COMBINERS[combiner].with_params(params)
        combiner = named_callable(combiner, "combiner")
    if isinstance(combiner, Combiner):
        return combiner.with_params(params)
    return called(combiner, params)


__all__ = ["COMBINERS", "Combiner", "combiner_called"]
