"""What takes the trainer itself: tangent space, penalties, and the model at other coefficients."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from taskvec.errors import InputError
from taskvec.integrations.followed import Followed
from taskvec.integrations.penalised import Trained, bind_penalties, draws, evaluated, rows_of
from taskvec.integrations.start import is_adapted, names_in
from taskvec.integrations.tangent import TangentForward, check_tangent
from taskvec.substitution import substituted
from taskvec.training.penalties.penalty import Penalty
from taskvec.training.penalties.settings import PenaltySettings, TauJp
from taskvec.training.regimes import Regime


class Anchored:
    """A network in training that has its start at hand.

    Args:
        trainer: of transformers.
        followed: anchored.
        references: datasets of other tasks, as that which is trained on.

    Raises: InputError for what goes with another kind of training.
    """

    def __init__(
        self,
        trainer: Any,
        followed: Followed,
        regime: Regime | None,
        penalties: Sequence[PenaltySettings],
        references: Mapping[str, Any],
        task: str | None,
    ) -> None:
        _check_trainer(trainer, followed, penalties)
        self._trainer, self._followed, self._task = trainer, followed, task or "trained"
        self._penalties, self._references = penalties, references
        self._tangent: TangentForward | None = None
        if regime is not None and regime.space == "tangent":
            check_tangent(trainer)
            self._tangent = TangentForward(followed.network, followed.theta0)

    def in_space(self) -> AbstractContextManager[None]:
        """The space that is trained in, for a while."""
        return nullcontext() if self._tangent is None else self._tangent.active()

    def penalty(self, step: int) -> Tensor | None:
        """To be added to the loss of a step; ``None`` where nothing is."""
        if not self._penalties:
            return None
        with torch.autocast(self._trainer.args.device.type, enabled=False):
            return self._bound(step)

    def check(self) -> None:
        """Refuse penalties that lack what they read. Raises: InputError."""
        if self._penalties:
            _ = self._bound

    @cached_property
    def _bound(self) -> Penalty:
        followed = self._followed
        assert followed.start is not None
        device = next(followed.network.parameters()).device
        sizes = [each.batch_size for each in self._penalties if isinstance(each, TauJp)]
        seed, collate = self._trainer.args.seed, self._trainer.data_collator
        inputs = {
            name: draws(name, dataset, max(sizes), seed, collate)
            for name, dataset in (self._references.items() if sizes else ())
        }
        theta0 = {name: value.to(device) for name, value in followed.theta0.items()}
        names = names_in(followed.start, followed.network)
        trained = Trained(
            followed.network, followed.start, theta0, names, self._task, seed, inputs, self._shift
        )
        return bind_penalties(self._penalties, trained)

    def _shift(self, batch: Mapping[str, Any]) -> Tensor:
        """How far the logits of some inputs are from those at the start, as rows."""
        network, theta0 = self._followed.network, self._followed.theta0
        inputs = self._trainer._prepare_inputs(dict(batch))
        with self._trainer.compute_loss_context_manager():
            with torch.no_grad(), self._outside(), substituted(network, theta0):
                before = evaluated(network, inputs)
            return rows_of(evaluated(network, inputs) - before, inputs)

    @contextmanager
    def _outside(self) -> Iterator[None]:
        """The network as it was."""
        with nullcontext() if self._tangent is None else self._tangent.active(False):
            yield


def _check_trainer(trainer: Any, followed: Followed, penalties: Sequence[PenaltySettings]) -> None:
    """Refuse trainings whose weights are not all in this process. Raises: InputError."""
    if trainer.args.fsdp or trainer.args.deepspeed:
        engine = "FSDP" if trainer.args.fsdp else "DeepSpeed"
        raise InputError(
            f"TaskVectorMixin: {engine} keeps the weights in parts, expected whole ones for tangent space, "
            "penalties and coefficients; leave these out, or train without it"
        )
    if penalties and is_adapted(followed.network):
        raise InputError(
            f"penalty {penalties[0].kind}: the factors of an adapter are trained, expected whole tensors; "
            "leave "
            "the penalty out"
        )
