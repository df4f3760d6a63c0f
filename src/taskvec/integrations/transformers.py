"""Task vectors from transformers' Trainer, and from the trainers of trl that are made of it.

>>> Trainer(model=model, args=args, callbacks=[TaskVectorCallback("a.safetensors")])  # doctest: +SKIP
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from taskvec.errors import InputError
from taskvec.integrations.callback import TaskVectorCallback
from taskvec.integrations.hf import Trainer

__all__ = ["TaskVectorCallback", "TaskVectorMixin"]


class TaskVectorMixin(Trainer):
    """For what a callback cannot reach: tangent space, penalties, evaluations at coefficients.

    ``class MyTrainer(TaskVectorMixin, Trainer): pass`` is used as ``Trainer`` is, with one
    :class:`TaskVectorCallback` among its callbacks. Another trainer may stand in the place of ``Trainer``.

    Raises: InputError without the callback.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = [kwargs.get("callbacks"), *args]
        lists = [each for each in given if isinstance(each, list | tuple)]
        found = [each for items in lists for each in items if isinstance(each, TaskVectorCallback)]
        if len(found) != 1:
            raise InputError(
                f"{type(self).__name__}: callbacks holds {len(found)} TaskVectorCallback, expected one, that "
                "says what to do; add callbacks=[TaskVectorCallback(OUTPUT, ...)]"
            )
        self.task_vector = found[0]
        self.task_vector.attach(self)
        super().__init__(*args, **kwargs)

    def _in_space(self) -> AbstractContextManager[None]:
        anchored = self.task_vector.anchored
        return nullcontext() if anchored is None else anchored.in_space()

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A step in the space of the regime."""
        with self._in_space():
            return super().training_step(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """An evaluation in the space of the regime."""
        with self._in_space():
            return super().evaluation_loop(*args, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss of the trainer; in training, with the penalties."""
        result = super().compute_loss(model, inputs, *args, **kwargs)
        anchored = self.task_vector.anchored
        term = anchored.penalty(self.state.global_step) if anchored and model.training else None
        if term is None:
            return result
        count = kwargs.get("num_items_in_batch", args[1] if len(args) > 1 else None)
        term = term / self._shares(count)
        return (result[0] + term, *result[1:]) if isinstance(result, tuple) else result + term

    def _shares(self, count: Any) -> int:
        """In how many parts a step adds up its loss, where the trainer does not divide it."""
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            scaled = (
                self.model_accepts_loss_kwargs and count is not None
            ) or self.compute_loss_func is not None
        return self.current_gradient_accumulation_steps if scaled else 1

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The metrics of the trainer, and those of the model at each coefficient."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        several = isinstance(self.eval_dataset if eval_dataset is None else eval_dataset, dict)
        if several:  # each was evaluated by itself
            return metrics
        for coefficient in self.task_vector.coefficients:
            with self.task_vector.follows().at(coefficient):
                loop = self.evaluation_loop(
                    self.get_eval_dataloader(eval_dataset),
                    description=f"Evaluation at {coefficient:g}",
                    prediction_loss_only=True if self.compute_metrics is None else None,
                    ignore_keys=ignore_keys,
                    metric_key_prefix=metric_key_prefix,
                )
            at, start = f"{metric_key_prefix}_taskvec/{coefficient:g}/", f"{metric_key_prefix}_"
            figures = {f"{at}{key.removeprefix(start)}": value for key, value in loop.metrics.items()}
            self.log(dict(figures))
            metrics |= figures
        return metrics
