"""Trainings of language models in shards, to be done in several processes: a script, and its cases."""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as hf

import taskvec as tv
from language_models import TEXT, save_byte_tokenizer
from launching import leave
from taskvec.group import joined
from taskvec.models.sharding import local_rows
from taskvec.progress import Watch, unwatched
from taskvec.tasks.task import Task
from taskvec.training.checkpoint import Checkpoint

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "full", {}),
    "tied": ("tied", "attention", {"accumulation": 3, "batch_size": 5}),  # shares of 3 and 2, cut in 3 and 2
    "gpt2": ("gpt2", "body", {"batch_size": 1, "optimizer": "sgd", "lr": 0.1}),
    "qwen2": ("qwen2", "re:.*bias", {"optimizer": "sgd", "lr": 0.1, "checkpoint_activations": True}),
    "opt": ("opt", "mlp", {"optimizer": "sgd", "lr": 0.1, "schedule": "constant"}),
    "large": ("large", "full", {"steps": 2, "batch_size": 2, "optimizer": "sgd", "lr": 0.1}),
    "pulled": ("llama", "embeddings", {"decay_towards": "pretrained", "weight_decay": 5.0, "clip": 0}),
}
"""Cases: the kind of model, the regime, and settings."""


FAMILIES = ("vit", "convnext", "bert")
"""Encoders, to be loaded in shards."""


def recipe(**changes: Any) -> tv.TrainSettings:
    """Six steps of four windows, changed."""
    return tv.TrainSettings(**{"lr": 1e-2, "steps": 6, "batch_size": 4, "validations": 0, **changes})


def task_in(folder: Path) -> Task:
    """Windows of a text, which is written into a folder."""
    (folder / "cats.txt").write_text(TEXT * 4)
    data = {"source": "text", "path": str(folder / "cats.txt")}
    return Task.parse("task", {"name": "cats", "kind": "language", "data": data, "context": 16})


def train(
    backbone: tv.Backbone, task: Task, regime: str, settings: tv.TrainSettings, **options: Any
) -> tv.TaskVector:
    """The vector of a training, the backbone's own weights measured before."""
    evaluator = tv.Evaluator(backbone, [task])
    return tv.finetune(backbone, evaluator.part("cats"), regime=regime, settings=settings, **options)


def killed_at(step: int) -> Watch:
    """Ends the process, as nothing can prevent, after a step."""

    def watch(label: str, done: int, total: int, **facts: float) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return watch


def save_large(folder: Path) -> Path:
    """A Llama of ten million parameters."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 320,
        "intermediate_size": 864,
        "num_hidden_layers": 8,
        "vocab_size": 280,
    }
    config = hf.LlamaConfig(**sizes, num_attention_heads=8, max_position_embeddings=64)
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    save_byte_tokenizer(folder, begin=True)
    return folder


def saved(vector: Mapping[str, torch.Tensor], path: Path) -> None:
    """Keep what was learned."""
    torch.save({name: vector[name] for name in vector}, path)


def all_kinds(folder: Path) -> None:
    """Every case, each with the figures of the model before and after, and what each process held of it."""
    with joined() as group:
        for name, (kind, regime, changes) in KINDS.items():
            backbone = tv.load_backbone(folder / kind, outputs="tokens", fsdp="float32")
            held = sum(local_rows(value).numel() for value in backbone.network.parameters())
            evaluator = tv.Evaluator(backbone, [task_in(folder / str(group.rank))])
            figures = [evaluator.values(evaluator.pretrained, ["cats"], "test")["cats"]]
            vector = tv.finetune(backbone, evaluator.part("cats"), regime=regime, settings=recipe(**changes))
            figures.append(evaluator.values(evaluator.pretrained, ["cats"], "test")["cats"])
            shares = group.gather(held)
            if group.first:
                saved(vector, folder / f"{name}.pt")
                (folder / f"{name}.json").write_text(json.dumps({"figures": figures, "held": shares}))
        for family in FAMILIES:
            shards, whole = (tv.load_backbone(folder / family, fsdp=fsdp) for fsdp in ("float32", None))
            with torch.no_grad():
                assert torch.equal(shards(**whole.example()), whole(**whole.example()))
            assert shards.names == whole.names


def resumed(folder: Path, model: Path, out: Path, stop: str) -> None:
    """A training that keeps its state at every step; killed after one, or resumed from it."""
    Checkpoint.every = 0.0
    with joined() as group:
        backbone = tv.load_backbone(model, outputs="tokens", fsdp="float32")
        watch = killed_at(int(stop)) if int(stop) else unwatched
        vector = train(
            backbone,
            task_in(folder / str(group.rank)),
            "full",
            recipe(),
            checkpoint=folder / ".v.training.pt",
            watch=watch,
        )
        if group.first:
            saved(vector, out)


WORKS: dict[str, Callable[..., None]] = {"all": all_kinds, "resumed": resumed}

if __name__ == "__main__":
    torch.set_num_threads(1)
    WORKS[sys.argv[1]](*(Path(given) if "/" in given else given for given in sys.argv[2:]))
    leave()
