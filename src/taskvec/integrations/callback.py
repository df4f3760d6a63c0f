"""What transformers' Trainer calls to save the vector of a training."""

import logging
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taskvec.arguments import checked
from taskvec.errors import InputError, NonFinite, TaskvecError, TrainingDiverged
from taskvec.integrations.anchored import Anchored
from taskvec.integrations.followed import Followed
from taskvec.integrations.hf import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from taskvec.integrations.told import describe_metrics, describe_training
from taskvec.reading import local_path
from taskvec.training.finetune import read
from taskvec.training.penalties.settings import TauJp
from taskvec.training.regimes import Regime, regime_called
from taskvec.training.settings import TrainSettings
from taskvec.vectors import TaskVector
from taskvec.weights import WeightsLike
from taskvec.weights.staging import check_target

_log = logging.getLogger(__name__)

_KEPT = "taskvec"
"""What checkpoints say of a vector goes by this name, beside the states of callbacks."""


class TaskVectorCallback(TrainerCallback):
    """Saves the task vector of a training by ``Trainer``, and trains what a regime says.

    The vector leads from what the model was loaded from to what the training ends with (with
    ``load_best_model_at_end`` the best checkpoint), whether the training was resumed or not. The main process
    writes it.

    Args:
        output: a ``.safetensors`` file, or else a folder.
        task: what the vector is called.
        regime: what is trained: ``full``, ``attention`` or any other selection, as ``taskvec.finetune`` has
            them; all else is frozen until the training ends. By default what the model itself says by
            ``requires_grad``, or by PEFT's adapter. Those of tangent space take :class:`TaskVectorMixin`.
        base: what the vector is to be added to, anything that ``open_weights`` takes. By default what the
            model was loaded from, or the weights that it has when the trainer is made, if it was not loaded;
            a module stands for these weights too.
        vectors: others of the same base by name, or files of theirs; the cosine with each is logged.
        validate_every: steps after which the norm and the cosines are logged. By default evaluations log
            them; 0 for never.
        penalty: terms of the loss, as ``TrainSettings`` has them; they take :class:`TaskVectorMixin`.
        references: datasets of other tasks by name, whose inputs the penalty ``tau_jp`` reads.
        coefficients: of the vector, at which evaluations measure the model too, with
            :class:`TaskVectorMixin`; ``eval_taskvec/0.5/loss`` is one of what they give.
        dtype: of the deltas in the file; float32 by default.
        force: replace an output that exists.

    Attributes:
        path: where the vector was written; ``None`` before.

    Raises: UnknownName and InputError for a regime that cannot be had here; OutputExists. When the trainer is
        made, InputError for a regime that selects nothing and a model that is not what it was loaded from.
    """

    @checked
    def __init__(
        self,
        output: str | Path,
        *,
        task: str | None = None,
        regime: str | Regime | None = None,
        base: WeightsLike | None = None,
        vectors: Mapping[str, TaskVector | str | Path] | None = None,
        validate_every: int | None = None,
        penalty: Any = (),
        references: Mapping[str, Any] | None = None,
        coefficients: Sequence[float] = (),
        dtype: torch.dtype | None = None,
        force: bool = False,
    ) -> None:
        self.regime = None if regime is None else regime_called(regime)
        if self.regime is not None:
            _check_space(self.regime)
        self.output, self.task = local_path(output), task
        self.path: Path | None = None
        self._base, self._dtype, self._force = base, dtype, force
        self._others = {name: _opened(vector) for name, vector in (vectors or {}).items()}
        self._vectors: Mapping[str, TaskVector] = {}
        self._every = validate_every
        asked = TrainSettings.parse("TaskVectorCallback", {"penalty": penalty}).penalty
        self._penalties = tuple(each for each in asked if each.strength)
        self._references, self.coefficients = dict(references or {}), tuple(coefficients)
        _check_numbers(validate_every, self.coefficients)
        self._followed: Followed | None = None
        self._trainer: Any = None
        self.anchored: Anchored | None = None
        self._check_output()

    def save(self, path: str | Path, **options: Any) -> Path | None:
        """Write the vector as it is now; for options see :meth:`taskvec.TaskVector.save`.

        Returns: the path; ``None`` in a process that does not write.
        """
        with self.follows().vector() as vector:
            return None if vector is None else self._write(vector, path, **options)

    # What the trainer calls

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze what is not trained, before the optimizer is made, and open what the vector leads from."""
        if vars(control).setdefault(_KEPT, self) is not self:  # what all callbacks of a trainer are given
            raise InputError(
                "TaskVectorCallback: the trainer has another, expected one, which says what is trained; "
                "remove one of them (callback.save(PATH) writes a second file)"
            )
        self._follow(kwargs["model"], args, state)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check what would be found after the training only."""
        if state.is_hyper_param_search:
            raise InputError(
                "TaskVectorCallback: a search for hyperparameters trains many models, expected one; leave "
                "the callback out, and train once more with what the search found"
            )
        self._check_output()
        self._follow_again(kwargs["model"], args, state, kwargs["optimizer"])
        self._check_resumed(state)
        if self.anchored is not None:
            self.anchored.check()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log where the vector stands."""
        if self._every and state.global_step % self._every == 0:
            self._report(state)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log where the vector stands, and add it to what the evaluation gives."""
        if self._every is None and self._followed is not None:
            figures = self._report(state)
            if metrics is not None:
                metrics.update(figures)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End a training that has diverged."""
        if self._followed is not None and not self._followed.is_finite():
            raise TrainingDiverged(
                f"step {state.global_step}: the weights are NaN or infinite; lower the learning rate, and go "
                f"on from a checkpoint in {args.output_dir} if there is one"
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the vector, and give the model its own ``requires_grad`` back."""
        try:
            self._save(args, state)
        finally:
            self.follows().unfreeze()

    # How it is done

    def follows(self) -> Followed:
        """The network that is trained. Raises: InputError before there is a trainer."""
        if self._followed is None:
            raise InputError("TaskVectorCallback: no model yet, expected a Trainer made with this callback")
        return self._followed

    def attach(self, trainer: Any) -> None:
        """Work for this trainer, which calls back for tangent space, penalties and coefficients."""
        self._trainer = trainer

    @property
    def _wants_trainer(self) -> str | None:
        """What a callback cannot do by itself."""
        if self.regime is not None and self.regime.space == "tangent":
            return f"regime: {self.regime.name!r} is of tangent space, which replaces the forward pass"
        if self._penalties:
            return f"penalty: {self._penalties[0].kind} is a term of the loss"
        return "coefficients: evaluations are the trainer's" if self.coefficients else None

    def _follow(self, model: nn.Module, args: TrainingArguments, state: TrainerState) -> None:
        wanted = self._wants_trainer
        if wanted is not None and self._trainer is None:
            raise InputError(
                f"{wanted}, which a callback cannot reach, expected a trainer with TaskVectorMixin; make "
                "one: class MyTrainer(TaskVectorMixin, Trainer): pass"
            )
        self._followed = Followed(
            _inside(model),
            self.regime,
            self._base,
            main=state.is_world_process_zero,
            apart=bool(args.fsdp),
            anchored=wanted is not None,
        )
        self._vectors = self._followed.bind_others(self._others)
        if wanted is not None:
            self.anchored = Anchored(
                self._trainer, self._followed, self.regime, self._penalties, self._references, self.task
            )
        with self._followed.vector():  # an adapter that is no direction is refused here
            pass

    def _follow_again(
        self, model: nn.Module, args: TrainingArguments, state: TrainerState, optimizer: Any
    ) -> None:
        """Freeze again what an earlier training gave back; or what ``model_init`` has made since."""
        followed, network = self.follows(), _inside(model)
        if network is not followed.network:
            if args.world_size > 1 and self.regime is not None and self.regime.selection != "full":
                raise InputError(
                    "TaskVectorCallback: model_init makes the model anew after it was frozen, expected "
                    "model= in a training by several processes; pass the model itself"
                )
            start = followed.start
            self._base = self._base if start is None else start
            self._follow(network, args, state)
            for group in optimizer.param_groups:
                group["params"] = [value for value in group["params"] if value.requires_grad]
        self.follows().freeze()

    def _check_output(self) -> None:
        """Refuse an output that could not be written. Raises: OutputExists; InputError."""
        check_target(self.output, force=self._force)
        place = next(path for path in self.output.absolute().parents if path.exists())
        if not place.is_dir():
            raise InputError(f"{self.output}: {place} is a file, expected a folder to write into")
        if not os.access(place, os.W_OK | os.X_OK):
            raise InputError(f"{self.output}: {place} cannot be written to; choose another output")

    def _check_resumed(self, state: TrainerState) -> None:
        """Refuse to go on from a checkpoint that started elsewhere; and note where this one starts.

        Raises: InputError.
        """
        start = self.follows().start
        if start is None:
            return
        # The state is written as JSON with every checkpoint; its other entries are those of callbacks.
        states: dict[str, Any] = state.stateful_callbacks  # type: ignore[assignment]
        kept, now = states.get(_KEPT), start.fingerprint()
        before = kept.get("base") if isinstance(kept, dict) else None
        if before is not None and before != now:
            raise InputError(
                f"resume_from_checkpoint: that training started from weights of fingerprint {before}, "
                f"expected {now}, of {start.ref}; load the model that it started from, or name it with "
                "base=REFERENCE"
            )
        states[_KEPT] = {"base": now}

    def _report(self, state: TrainerState) -> dict[str, float]:
        """Log the norm and the cosines."""
        figures = self.follows().figures(self._vectors)
        if figures and self._trainer is not None:
            self._trainer.log(dict(figures))
        elif figures:
            state.log_history.append({**figures, "epoch": state.epoch or 0.0, "step": state.global_step})
        return figures

    def _save(self, args: TrainingArguments, state: TrainerState) -> None:
        """Write the vector to the output or, where that fails, beside the checkpoints.

        Raises: TrainingDiverged; TaskvecError that says where it is instead.
        """
        told = {
            "training": describe_training(args, state, self.regime, self._penalties, **self._consumed()),
            "metrics": describe_metrics(state, args.load_best_model_at_end),
        }
        with self.follows().vector() as vector:  # once, as all processes have to take part
            if vector is None:
                return
            try:
                self.path = self._write(vector, self.output, force=self._force, **told)
            except NonFinite as error:
                raise TrainingDiverged(
                    f"{error}; lower the learning rate, and go on from a checkpoint in {args.output_dir} if "
                    "there is one"
                ) from None
            except (TaskvecError, OSError) as error:
                self._rescue(vector, args, error, told)

    def _consumed(self) -> dict[str, object]:
        """What was read of other tasks."""
        names = list(self._references) if any(isinstance(each, TauJp) for each in self._penalties) else []
        told = read((), self._penalties, [self.task or ""])
        inputs = {"references": names, "consumed": "unlabelled train inputs of other tasks"} if names else {}
        return {**told, **inputs}

    def _write(self, vector: TaskVector, path: str | Path, **options: Any) -> Path:
        space = "ordinary" if self.regime is None else self.regime.evaluated_in
        told = {"task": self.task, "regime": self.follows().regime_name, "space": space}
        return vector.save(path, **{"dtype": self._dtype, **told, **options})

    def _rescue(
        self, vector: TaskVector, args: TrainingArguments, failure: Exception, told: Mapping[str, Any]
    ) -> None:
        """Write elsewhere what a long training has made. Raises: TaskvecError that says where it is."""
        name = f"rescued-{self.output.name}"
        beside: Callable[[], str] = partial(str, args.output_dir)
        for find in (beside, partial(tempfile.mkdtemp, prefix="taskvec-")):
            with suppress(TaskvecError, OSError):
                self.path = self._write(vector, Path(find(), name), **told)
                break
        if self.path is not None:
            raise TaskvecError(f"{failure}; the vector is in {self.path} instead")
        _log.error(
            "%s; no vector is written: keep the weights with trainer.save_model(FOLDER), and make it with: "
            "taskvec diff BASE FOLDER -o VECTOR",
            failure,
        )


def _opened(vector: TaskVector | str | Path) -> TaskVector:
    return vector if isinstance(vector, TaskVector) else TaskVector.load(vector)


def _check_numbers(every: int | None, coefficients: Sequence[float]) -> None:
    """Refuse what is no number of steps, and no coefficient. Raises: InputError; NonFinite."""
    if every is not None and every < 0:
        raise InputError(f"validate_every: {every}, expected a number of steps, or 0 for never")
    for coefficient in coefficients:
        if not math.isfinite(coefficient):
            raise NonFinite(f"coefficients: {coefficient}, expected finite numbers")


def _check_space(regime: Regime) -> None:
    """Refuse regimes that the trainer cannot have. Raises: InputError."""
    remedy = {
        "lora": "wrap the model by peft.get_peft_model(model, LoraConfig(...)), and leave the regime out",
        "tangent-lora": "use taskvec.finetune",
        "gated": "use taskvec.finetune",
    }.get(regime.space)
    if remedy is not None:
        raise InputError(
            f"regime: {regime.name!r} is of space {regime.space}, expected a selection of parameters; "
            f"{remedy}"
        )


def _inside(model: nn.Module) -> nn.Module:
    """The network inside the wrappers of torch. Raises: InputError for one that hides its parameters."""
    network: nn.Module = model
    while isinstance(
        held := getattr(network, "_orig_mod", None) or getattr(network, "module", None), nn.Module
    ):
        network = held
    if any(type(part).__name__ == "FullyShardedDataParallel" for part in model.modules()):
        raise InputError(
            f"{type(network).__name__}: wrapped by FSDP 1, which hides its parameters; set fsdp_version: 2 "
            "in fsdp_config"
        )
    return network
