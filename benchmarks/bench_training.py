"""What do a training step and an evaluation pass cost, in units of a plain PyTorch loop?

Run as ``python benchmarks/bench_training.py OUT.json``. The plain loop is what one writes by hand:
the model in eval mode, its loss, ``backward``, ``clip_grad_norm_`` and ``AdamW``; for evaluation the forward
pass alone. It is given collated batches, where ours are stacked on the way. Trainings of a few steps take
turns, so that drift of the machine hits both alike; a step is the CPU time of one thread from the end of a
step to the end of the next. Outputs of both ways are compared.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM

from measure import compare, write
from taskvec.models.backbone import Backbone
from taskvec.models.clip import ClipBackbone, Preprocessing
from taskvec.models.functional import encode
from taskvec.models.heads import Head
from taskvec.models.language import LanguageModel
from taskvec.models.text import TextBackbone
from taskvec.tasks.kinds.language import Modelling
from taskvec.tasks.loaders import in_batches
from taskvec.tasks.objective import Batch
from taskvec.tasks.split import Split
from taskvec.training.loop import train
from taskvec.training.parts import Part
from taskvec.training.settings import TrainSettings

Moved = tuple[list[float], Mapping[str, Tensor]]
"""Seconds of the steps, and how far the weights moved."""

STEPS, ROUNDS, CLASSES = 4, 5, 10
SETTINGS = TrainSettings(
    lr=1e-5, steps=STEPS, schedule="constant", warmup=0.0, weight_decay=0.0, validations=0
)


class Numbers:
    """A tokenizer of texts that are token numbers already; any other word is number 1."""

    model_max_length, pad_token_id, is_fast = 512, 0, False

    def __call__(self, texts: str | list[str], **_: object) -> dict[str, Any]:
        """Numbers and masks."""
        if isinstance(texts, str):
            return {name: rows[0] for name, rows in self([texts]).items()}
        rows = [[int(word) if word.isdigit() else 1 for word in text.split()] for text in texts]
        return {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}


class Case(ABC):
    """A model, as many examples as a training takes, and the plain loop's code for them."""

    def __init__(self, backbone: Backbone, part: Part, size: int) -> None:
        self.backbone, self.part, self.size = backbone.eval(), part, size
        self.start = {n: p.detach() for n, p in backbone.encoder_parameters().items()}
        self.batches = in_batches(part.objective.prepare(backbone, part.split), size)

    @abstractmethod
    def outputs(self, model: Any, batch: Batch) -> Tensor:
        """What the model gives."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Of these outputs."""


class Classifying(Case):
    """An encoder behind a linear head."""

    def __init__(self, backbone: Backbone, inputs: list[object], size: int) -> None:
        weight = torch.randn(CLASSES, backbone.dim) / backbone.dim**0.5
        classes = [str(number) for number in range(CLASSES)]
        self.head = Head(weight, None, normalize=False, classes=classes, kind="linear-probe")
        split = Split(inputs, torch.arange(len(inputs)) % CLASSES)
        super().__init__(backbone, Part("task", split, self.head), size)

    def outputs(self, model: Any, batch: Batch) -> Tensor:
        """Features."""
        features: Tensor = model(**batch.inputs)
        return features

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Of the class."""
        return cross_entropy(self.head(outputs), batch.labels)


class Predicting(Case):
    """A language model on texts of one length."""

    def __init__(self, backbone: LanguageModel, texts: list[str], length: int, size: int) -> None:
        split = Split(texts, torch.zeros(len(texts), dtype=torch.int64))
        asked = Modelling("text", context=length, stride=length)
        super().__init__(backbone, Part("text", split, asked), size)

    def outputs(self, model: Any, batch: Batch) -> Tensor:
        """Logits of all tokens but the first."""
        logits: Tensor = model.network(input_ids=batch.inputs["input_ids"], use_cache=False).logits
        return logits[:, :-1].flatten(0, 1)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Of the next token."""
        return cross_entropy(outputs, batch.inputs["input_ids"][:, 1:].flatten())


def texts(count: int, length: int, most: int) -> list[str]:
    """Of random numbers."""
    return [" ".join(map(str, row)) for row in torch.randint(5, most, (count, length)).tolist()]


def minilm() -> Case:
    """The shape of all-MiniLM-L6-v2, 16 texts of 32 tokens a step."""
    shape = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    body = TextBackbone(BertModel(shape, add_pooling_layer=False), Numbers(), ref="MiniLM's shape")
    return Classifying(body, list(texts(16 * STEPS, 32, 30000)), 16)


def vit() -> Case:
    """ViT-B/32 of CLIP, 8 images of 224 x 224 pixels a step."""
    wide = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    shape = CLIPConfig(vision_config={**wide, "patch_size": 32}, text_config={"num_hidden_layers": 1})
    body = ClipBackbone(CLIPModel(shape), None, Preprocessing(224, 224), ref="ViT-B/32")
    images = [torch.randint(256, (224, 224, 3), dtype=torch.uint8) for _ in range(8 * STEPS)]
    return Classifying(body, list(images), 8)


def llama() -> Case:
    """A Llama of 9 million parameters, 8 texts of 64 tokens a step."""
    shape = LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=704,
    )
    body = LanguageModel(LlamaForCausalLM(shape), Numbers(), ref="a small Llama")
    return Predicting(body, texts(8 * STEPS, 64, 8192), 64, 8)


CASES: dict[str, Callable[[], Case]] = {"MiniLM": minilm, "ViT-B/32": vit, "Llama, 9 M": llama}


def ours(case: Case) -> Moved:
    """A training."""
    ends: list[float] = []
    settings = SETTINGS.model_copy(update={"batch_size": case.size})
    moved = train(
        case.backbone, case.start, [case.part], settings, watch=lambda *_, **__: ends.append(process_time())
    )
    return [end - begin for begin, end in pairwise(ends)], moved


def plain(case: Case) -> Moved:
    """The same by hand."""
    rows = list(case.batches)
    model = deepcopy(case.backbone)
    leaves = model.encoder_parameters()
    optimizer = torch.optim.AdamW(leaves.values(), lr=SETTINGS.rate, weight_decay=0.0)
    ends = []
    for batch in rows:
        loss = case.loss(case.outputs(model, batch), batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(leaves.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        ends.append(process_time())
    moved = {name: leaf.detach() - case.start[name] for name, leaf in leaves.items()}
    return [end - begin for begin, end in pairwise(ends)], moved


def measure(case: Case) -> dict[str, float]:
    """CPU seconds of a step and of a forward pass over all batches, both ways."""
    runs: dict[str, Callable[[Case], Moved]] = {"ours": ours, "plain": plain}
    steps: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS):
        for name, run in runs.items():
            seconds, moved = run(case)
            steps[name] += seconds if turn else []
            assert all(bool(value.isfinite().all()) for value in moved.values()), name
    rows = list(case.batches)

    @torch.no_grad()
    def by_hand() -> Tensor:
        return torch.cat([case.outputs(case.backbone, batch) for batch in rows])

    @torch.no_grad()
    def by_points() -> Tensor:
        return torch.cat([encode(case.backbone, case.start, batch.inputs) for batch in case.batches])

    torch.testing.assert_close(by_hand(), by_points())
    passes = compare({"ours": by_points, "plain": by_hand}, ROUNDS, clock=process_time)
    return {
        **{f"step, {name}": median(seconds) for name, seconds in steps.items()},
        **{f"pass, {name}": seconds for name, seconds in passes.items()},
    }


def main(out: Path, only: str = "") -> None:
    """Time every case, or those whose name begins with ``only``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {}
    table = Table("model", "step, CPU ms", "x plain loop", "pass, CPU ms", "x plain loop")
    for name, make in CASES.items():
        if not name.startswith(only):
            continue
        cost = found[name] = measure(make())
        pairs = [(cost[f"{kind}, ours"], cost[f"{kind}, plain"]) for kind in ("step", "pass")]
        shown = [text for own, floor in pairs for text in (f"{1e3 * own:.0f}", f"{own / floor:.3f}")]
        table.add_row(name, *shown)
    Console().print(table)
    write(out, rounds=ROUNDS, steps=STEPS, seconds=found)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "bench_training.json"), *sys.argv[2:3])
