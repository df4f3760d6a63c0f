"""Trainings of tiny models by transformers' Trainer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from language_models import VOCABULARY

SETTINGS: dict[str, Any] = {
    **{"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": []},
    **{"save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False},
    **{"logging_steps": 1},
}


def texts(seed: int = 0, count: int = 16, length: int = 12) -> list[dict[str, list[int]]]:
    """Sequences of random tokens, each its own label."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(3, VOCABULARY, (count, length), generator=generator).tolist()
    return [{"input_ids": tokens, "labels": tokens} for tokens in drawn]


def load(folder: Path, **options: Any) -> Any:
    """A causal language model."""
    return hf.AutoModelForCausalLM.from_pretrained(folder, **options)


def make_trainer(
    model: Any, place: Path, callbacks: Sequence[Any], kind: Any = hf.Trainer, **settings: Any
) -> Any:
    """A trainer on the CPU that writes below ``place``."""
    args = hf.TrainingArguments(output_dir=str(place / "run"), **{**SETTINGS, **settings})
    return kind(
        model=model, args=args, train_dataset=texts(), eval_dataset=texts(1, 4), callbacks=list(callbacks)
    )


def copied(model: nn.Module) -> dict[str, Tensor]:
    """The state of a network, to be compared with later."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_vector_is(
    vector: Mapping[str, Tensor], after: Mapping[str, Tensor], before: Mapping[str, Tensor]
) -> None:
    """A vector is the difference of two states, tensor by tensor."""
    for name in vector:
        torch.testing.assert_close(
            vector[name], after[name].float() - before[name].float(), rtol=0, atol=1e-7
        )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in vector if vector[name].any()} == changed & {*vector}
