"""The trainings of ``test_processes``, run by torchrun: ``several.py MODEL FOLDER NAME...``."""

import sys
from pathlib import Path
from typing import Any

import peft
import torch
import transformers as hf
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from integrations.trainings import SETTINGS, load, texts
from taskvec.integrations.followed import Followed
from taskvec.integrations.transformers import TaskVectorCallback, TaskVectorMixin
from taskvec.training.regimes import Regime

OPTIONS: dict[str, dict[str, Any]] = {
    "attention": {"regime": "attention", "validate_every": 1},
    "tangent": {"regime": "tangent", "penalty": "decay", "coefficients": (0.5,)},
    "adapter": {},
}
PLAIN = {
    **{"max_steps": 3, "lr_scheduler_type": "constant", "optim": "sgd", "learning_rate": 0.1},
    **{"max_grad_norm": 0, "logging_strategy": "no", "eval_strategy": "steps", "eval_steps": 3},
}


class MixedTrainer(TaskVectorMixin, hf.Trainer):
    """As users write it."""


def train(model: Path, place: Path, name: str, processes: int) -> None:
    """Train on all examples in every step, whatever the number of processes."""
    network = load(model)
    if name == "adapter":
        torch.manual_seed(0)
        network = peft.get_peft_model(network, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    settings = {**SETTINGS, **PLAIN, "per_device_train_batch_size": 16 // processes}
    settings |= {"ddp_backend": "gloo"} if processes > 1 else {}
    args = hf.TrainingArguments(output_dir=str(place / name), **settings)
    made = TaskVectorCallback(place / f"{name}.safetensors", task=name, **OPTIONS[name])
    data: Any = {"train_dataset": texts(), "eval_dataset": texts(1, 4)}
    MixedTrainer(model=network, args=args, callbacks=[made], **data).train()


def train_sharded(model: Path, place: Path, processes: int) -> None:
    """A loop of our own, as accelerate gives FSDP to accelerators alone."""
    network = load(model)
    main = processes == 1 or torch.distributed.get_rank() == 0
    followed = Followed(network, Regime("mlp"), None, main=main, apart=True)
    if processes > 1:
        mesh = init_device_mesh("cpu", (processes,))
        for layer in (*network.model.layers, network):
            fully_shard(layer, mesh=mesh)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    rows = torch.tensor([row["input_ids"] for row in texts()])
    for _ in range(3):
        optimizer.zero_grad()
        network(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
    assert bool(followed.figures({})) == main
    with followed.vector() as vector:
        if vector is not None:
            told = {"processes": processes}
            vector.save(place / "sharded.safetensors", regime=followed.regime_name, training=told)
    followed.unfreeze()


if __name__ == "__main__":
    for each in sys.argv[3:]:
        train(Path(sys.argv[1]), Path(sys.argv[2]), each, 2)
    train_sharded(Path(sys.argv[1]), Path(sys.argv[2]), 2)
