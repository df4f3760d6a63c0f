"""Terms of the loss on the displacement itself: a kind a file; here is the list.

A new kind is a file beside this one, its settings in :mod:`taskvec.training.penalties.settings`, a line below
and a section in ``docs/penalties.md``.
"""

from taskvec.registry import Registry
from taskvec.training.penalties.penalty import Bind

PENALTIES: Registry[Bind] = Registry("penalty", {"decay": "taskvec.training.penalties.decay:bind"})
"""Kind -> what makes it ready for one training."""
