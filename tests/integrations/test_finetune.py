"""On the same batches and schedule, the trainer's vector is that of ``taskvec.finetune``."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import taskvec as tv
from integrations.trainings import load, make_trainer
from language_models import TEXT
from taskvec.integrations.transformers import TaskVectorCallback, TaskVectorMixin
from taskvec.models.loading import load_backbone
from taskvec.tasks.task import Task
from taskvec.training.parts import make_part

EQUAL: dict[str, Any] = {
    **{"max_steps": 3, "per_device_train_batch_size": 64, "learning_rate": 1e-3, "max_grad_norm": 0},
    **{"lr_scheduler_type": "constant", "optim": "adamw_torch", "weight_decay": 0.0},
}


class MixedTrainer(TaskVectorMixin, hf.Trainer):
    """As users write it."""


def rows_of(part: tv.Part, backbone: tv.Backbone) -> list[dict[str, torch.Tensor]]:
    """The windows of a text, with labels where they are scored."""
    prepared = part.objective.prepare(backbone, part.split)
    made = []
    for place in torch.split(torch.arange(len(prepared.sizes)), 1):
        inputs, (labels, _) = prepared.inputs(place), prepared.targets(place)
        tokens, wanted = inputs["input_ids"][0], torch.full_like(inputs["input_ids"][0], -100)
        wanted[len(tokens) - len(labels) :] = labels[:, 0]
        made.append({"input_ids": tokens, "labels": wanted})
    return made


def padded(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    pad = torch.nn.utils.rnn.pad_sequence
    tokens = [row["input_ids"] for row in rows]
    return {
        "input_ids": pad(tokens, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in tokens], batch_first=True),
        "labels": pad([row["labels"] for row in rows], batch_first=True, padding_value=-100),
    }


@pytest.mark.parametrize("regime", ["full", "attention", "tangent-attention"])
def test_the_vector_is_that_of_finetune(llama: Path, tmp_path: Path, regime: str) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    data = {"source": "text", "path": str(tmp_path / "a.txt")}
    backbone = load_backbone(llama, outputs="tokens")
    part = make_part(
        backbone, Task.parse("task", {"name": "a", "kind": "language", "data": data, "context": 16})
    )
    settings = tv.TrainSettings(
        lr=1e-3, steps=3, batch_size=64, weight_decay=0, warmup=0, schedule="constant", clip=0, validations=0
    )
    expected = tv.finetune(backbone, part, regime=regime, settings=settings)
    made = TaskVectorCallback(tmp_path / "vector.safetensors", regime=regime)
    trainer = make_trainer(load(llama), tmp_path, [made], MixedTrainer, **EQUAL)
    trainer.train_dataset, trainer.data_collator = rows_of(part, backbone), padded
    trainer.train()
    vector = tv.TaskVector.load(tmp_path / "vector.safetensors")
    assert vector.base.fingerprint() == expected.base.fingerprint()
    assert (vector - expected).norm() < 1e-3 * expected.norm()
