"""LiNeS with a learned slope: how much of a merge the first block takes, and how much the last."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from taskvec.arguments import checked
from taskvec.coefficients.learned import Learned
from taskvec.coefficients.learning import learn_coefficients
from taskvec.coefficients.settings import CoefficientSettings
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.names import block_depths
from taskvec.progress import Watch, unwatched
from taskvec.training.regimes import Space
from taskvec.vectors import TaskVector

FIRST, LAST = "first block", "last block"


@dataclass(frozen=True)
class LearnedLines:
    """A merge scaled by depth, ``alpha + beta depth``, as the rule ``lines`` does.

    Attributes:
        learned: how it was found, from two vectors: the merge times ``1 - depth``, and times ``depth``.
    """

    learned: Learned

    @property
    def vector(self) -> TaskVector:
        """The scaled merge."""
        return self.learned.vector

    @property
    def alpha(self) -> float:
        """Scale of the first block, and of all that is in none."""
        [scale] = self.learned.coefficients[FIRST].values()
        return scale

    @property
    def beta(self) -> float:
        """How much the last block gets beyond alpha."""
        [scale] = self.learned.coefficients[LAST].values()
        return scale - self.alpha


@checked
def learn_lines(
    evaluator: Evaluator,
    vector: TaskVector,
    tasks: Sequence[str],
    settings: CoefficientSettings | None = None,
    *,
    space: Space = "ordinary",
    seed: int = 0,
    checkpoint: Path | None = None,
    watch: Watch = unwatched,
) -> LearnedLines:
    """Scale what was merged by depth, with the two numbers that serve some tasks best.

        block l of L:   (alpha + beta l / (L - 1)) merged,      elsewhere:   alpha merged

    The scales of the first and the last block are what is learned, from ``start`` for both, by the gradient
    of :func:`learn_coefficients`. The merge is computed once and held in memory.

    Args:
        vector: any merge.
        settings: with scope ``task``; the scale of the merge is ``start``.
        checkpoint: where the state is kept, so that a killed call goes on to the same bits.

    Raises: InputError if no tensor is in a block, and for settings of other scopes or signals.
    Source: Wang et al. 2025, arXiv:2410.17146, whose slope is searched; learning it is ours.
    """
    chosen = settings or CoefficientSettings(start=1.0)
    if chosen.scope != "task" or chosen.signal == "agreement":
        raise InputError(
            f"lines: scope {chosen.scope}, signal {chosen.signal}; expected scope: task, and signal: entropy "
            "or labels"
        )
    changed = {name: vector[name] for name in vector if vector.terms_at(name)}
    held, depths = TaskVector.from_tensors(changed, evaluator.backbone.source), block_depths(vector.keys())
    if depths.keys().isdisjoint(changed):
        raise InputError("lines: the merge changes no tensor in a numbered block, so it has no depth")
    shares = {name: depths.get(name, 0.0) for name in held}
    parts = {
        FIRST: held.scaled({name: 1 - share for name, share in shares.items()}),
        LAST: held.scaled(shares),
    }
    return LearnedLines(
        learn_coefficients(
            evaluator, parts, tasks, chosen, space=space, seed=seed, checkpoint=checkpoint, watch=watch
        )
    )
