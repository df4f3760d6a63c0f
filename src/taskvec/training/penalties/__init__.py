"""Terms of the loss on the displacement itself: a kind a file; here is the list.

A new kind is a file beside this one, its settings in :mod:`taskvec.training.penalties.settings`, a line below
and a section in ``docs/penalties.md``.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from taskvec.registry import Registry

if TYPE_CHECKING:  # the settings of a training are read without torch
    from torch import Tensor

PENALTIES: "Registry[Callable[..., Callable[[int], Tensor]]]" = Registry(
    "penalty",
    {
        "decay": "taskvec.training.penalties.decay:bind",
        "diagonal": "taskvec.training.penalties.tak:bind_diagonal",
        "orthoreg": "taskvec.training.penalties.orthoreg:bind",
        "tak": "taskvec.training.penalties.tak:bind",
        "tau_jp": "taskvec.training.penalties.tau_jp:bind",
    },
)
"""Kind -> what makes one ready for a training: its settings and a :class:`Given` -> a :data:`Penalty`."""
