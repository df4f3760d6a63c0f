"""What do a training step and an evaluation pass cost, in units of a plain PyTorch loop?

Run as ``python benchmarks/bench_training.py OUT.json``. The plain loop is what one writes by hand:
the model in eval mode, its loss, ``backward``, ``clip_grad_norm_`` and ``AdamW``; for evaluation the forward
pass alone. It is given collated batches, where ours are stacked on the way. Trainings of a few steps take
turns, so that drift of the machine hits both alike; a step is the CPU time of one thread from the end of a
step to the end of the next.
"""

import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import process_time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel

from measure import compare, machine, write
from taskvec.models.backbone import Backbone
from taskvec.models.clip import ClipBackbone, Preprocessing
from taskvec.models.functional import encode
from taskvec.models.heads import Head
from taskvec.models.text import TextBackbone
from taskvec.tasks.loaders import Batches, batches
from taskvec.tasks.objective import Batch
from taskvec.tasks.task import Split
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

    model_max_length, pad_token_id = 512, 0

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        """Numbers and masks."""
        rows = [[int(word) if word.isdigit() else 1 for word in text.split()] for text in texts]
        return {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}


@dataclass
class Case:
    """A model and as many examples as a training takes."""

    backbone: Backbone
    inputs: list[object]
    head: Head = field(init=False)

    def __post_init__(self) -> None:
        weight = torch.randn(CLASSES, self.backbone.dim) / self.backbone.dim**0.5
        classes = [str(number) for number in range(CLASSES)]
        self.head = Head(weight, None, normalize=False, classes=classes, kind="linear-probe")
        self.split = Split(self.inputs, torch.arange(len(self.inputs)) % CLASSES)
        self.start = {n: p.detach() for n, p in self.backbone.encoder_parameters().items()}

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The plain loop's."""
        return cross_entropy(self.head(outputs), batch.labels)


def minilm() -> Case:
    """The shape of all-MiniLM-L6-v2, 16 texts of 32 tokens a step."""
    shape = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    body = TextBackbone(BertModel(shape, add_pooling_layer=False), Numbers(), ref="MiniLM's shape")
    texts = torch.randint(1000, 30000, (16 * STEPS, 32)).tolist()
    return Case(body.eval(), [" ".join(map(str, text)) for text in texts])


def vit() -> Case:
    """ViT-B/32 of CLIP, 8 images of 224 x 224 pixels a step."""
    wide = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    shape = CLIPConfig(vision_config={**wide, "patch_size": 32}, text_config={"num_hidden_layers": 1})
    body = ClipBackbone(CLIPModel(shape), None, Preprocessing(224, 224), ref="ViT-B/32")
    return Case(body.eval(), [torch.randint(256, (224, 224, 3), dtype=torch.uint8) for _ in range(8 * STEPS)])


CASES: dict[str, tuple[Callable[[], Case], int]] = {"MiniLM": (minilm, 16), "ViT-B/32": (vit, 8)}


def ours(case: Case, size: int) -> Moved:
    """Seconds of the steps after the first, and how far the weights moved."""
    ends: list[float] = []
    part = Part("task", case.split, case.head)
    settings = SETTINGS.model_copy(update={"batch_size": size})
    moved = train(
        case.backbone, case.start, [part], settings, watch=lambda *_, **__: ends.append(process_time())
    )
    return [end - begin for begin, end in pairwise(ends)], moved


def plain(case: Case, rows: list[Batch]) -> Moved:
    """The same by hand."""
    model = deepcopy(case.backbone)
    leaves = model.encoder_parameters()
    optimizer = torch.optim.AdamW(leaves.values(), lr=SETTINGS.lr, weight_decay=0.0)
    ends = []
    for batch in rows:
        loss = case.loss(model(**batch.inputs), batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(leaves.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        ends.append(process_time())
    moved = {name: leaf.detach() - case.start[name] for name, leaf in leaves.items()}
    return [end - begin for begin, end in pairwise(ends)], moved


def in_order(case: Case, size: int) -> Batches:
    """The examples in batches; the loop shuffles batches, whose sum of losses is what counts here."""
    return batches(case.backbone, case.split, size)


def measure(case: Case, size: int) -> dict[str, float]:
    """CPU seconds of a step and of a forward pass over all batches, both ways."""
    prepared = in_order(case, size)
    rows = list(prepared)
    runs: dict[str, Callable[[], Moved]] = {
        "ours": partial(ours, case, size),
        "plain": partial(plain, case, rows),
    }
    steps: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS):
        for name, run in runs.items():
            seconds, moved = run()
            steps[name] += seconds if turn else []
            assert all(bool(value.isfinite().all()) for value in moved.values()), name
    model: Callable[..., Tensor] = case.backbone

    def by_hand() -> Tensor:
        with torch.no_grad():
            return torch.cat([model(**batch.inputs) for batch in rows])

    def by_points() -> Tensor:
        with torch.no_grad():
            return torch.cat([encode(case.backbone, case.start, batch.inputs) for batch in prepared])

    assert torch.equal(by_hand(), by_points())
    passes = compare({"ours": by_points, "plain": by_hand}, ROUNDS, clock=process_time)
    return {
        **{f"step, {name}": median(seconds) for name, seconds in steps.items()},
        **{f"pass, {name}": seconds for name, seconds in passes.items()},
    }


def main(out: Path) -> None:
    """Time every case."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {}
    table = Table("model", "step, CPU ms", "x plain loop", "pass, CPU ms", "x plain loop")
    for name, (make, size) in CASES.items():
        cost = found[name] = measure(make(), size)
        cells = [
            cell
            for kind in ("step", "pass")
            for cell in (
                f"{1e3 * cost[f'{kind}, ours']:.0f}",
                f"{cost[f'{kind}, ours'] / cost[f'{kind}, plain']:.3f}",
            )
        ]
        table.add_row(name, *cells)
    Console().print(table)
    write(out, rounds=ROUNDS, steps=STEPS, machine=machine(), seconds=found)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "bench_training.json"))
