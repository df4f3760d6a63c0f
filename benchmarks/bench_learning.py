"""What does a step of learned coefficients cost, beside the passes over the network and a plain way?

Run as ``python benchmarks/bench_learning.py OUT.json [BATCH]``. The plain way stacks the vectors of all tasks
in memory and builds the merged model by autograd. Both see the same batches of a ViT-B/32 with random
weights; gradients are compared. The floor is the passes forward and backward through a model that is there.
Steps of the three take turns. Memory is the most that torch holds at once in a step, by number of vectors, of
a network a quarter as wide.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

import taskvec as tv
from measure import compare, peak, write
from taskvec.coefficients.passes import Passes, splits_of
from taskvec.coefficients.scopes import groups_of
from taskvec.coefficients.settings import CoefficientSettings
from taskvec.coefficients.signals import entropy
from taskvec.coefficients.streaming import Stream
from taskvec.coefficients.weighted import Weighted
from taskvec.models.clip import ClipBackbone, Preprocessing
from taskvec.models.heads import Head
from taskvec.tasks.kinds.classification import Classifying

CLASSES, FEW, MANY = 10, 2, 20


def make_evaluator(width: int = 768) -> tv.Evaluator:
    """ViT-B/32 of CLIP with heads of our own, on eight tasks of built-in images."""
    wide = {"hidden_size": width, "num_attention_heads": width // 64, "intermediate_size": 4 * width}
    tower = {**wide, "num_hidden_layers": 12, "patch_size": 32}
    shape = CLIPConfig(vision_config=tower, text_config={"num_hidden_layers": 1})
    network = CLIPModel(shape).train(False)
    backbone = ClipBackbone(network, None, Preprocessing(224, 224), ref=network)
    evaluator = tv.Evaluator(backbone, list(tv.load_suite("builtin8").tasks.values()))
    for name in evaluator.tasks:
        weight = torch.randn(CLASSES, backbone.dim) / backbone.dim**0.5
        classes = list(map(str, range(CLASSES)))
        head = Head(weight, None, normalize=False, classes=classes, kind="linear-probe")
        evaluator._objectives[name] = Classifying(head)
    return evaluator


def make_vectors(evaluator: tv.Evaluator, count: int, folder: Path) -> dict[str, tv.TaskVector]:
    """Random vectors in files."""
    base = evaluator.pretrained
    vectors = {}
    for number in range(count):
        draw = torch.Generator().manual_seed(number)
        deltas = {name: 1e-3 * torch.randn(value.shape, generator=draw) for name, value in base.items()}
        vector = tv.TaskVector.from_tensors(deltas, evaluator.backbone.source)
        vectors[f"t{number}"] = tv.TaskVector.load(vector.save(folder / f"{number}.safetensors", force=True))
    return vectors


def slope_of(leaf: Tensor) -> Tensor:
    """Its gradient, which is there."""
    assert leaf.grad is not None
    return leaf.grad


class Ours:
    """A step with streamed vectors."""

    def __init__(self, evaluator: tv.Evaluator, vectors: Mapping[str, tv.TaskVector], batch: int) -> None:
        self.vectors = vectors
        settings = CoefficientSettings(scope="tensor", batch=batch, batches=2)
        base = evaluator.pretrained
        self.merge = Weighted(base, Stream(vectors, base), groups_of(base, settings), settings)
        self.passes = Passes(
            evaluator, splits_of(evaluator, list(evaluator.tasks), settings), settings, entropy, 0
        )
        self.merge.write()

    def run(self) -> Tensor:
        """The gradient (vector, tensor)."""
        self.merge.leaves["coefficients"].grad = None
        self.merge.write()
        self.passes.backward(self.merge.model, 0)
        self.merge.pull()
        return slope_of(self.merge.leaves["coefficients"])

    def floor(self) -> None:
        """The passes alone."""
        self.passes.backward(self.merge.model, 0)
        for value in self.merge.model.values():
            value.grad = None


class Plain:
    """A step with stacked vectors and autograd through the merge."""

    def __init__(self, evaluator: tv.Evaluator, vectors: Mapping[str, tv.TaskVector], passes: Passes) -> None:
        self.base, self.passes = evaluator.pretrained, passes
        self.stacks = {name: torch.stack([of[name] for of in vectors.values()]) for name in self.base}
        self.factors = torch.full((len(vectors), len(self.base)), 0.3, requires_grad=True)

    def run(self) -> Tensor:
        """The gradient (vector, tensor)."""
        self.factors.grad = None
        merged = {
            name: value + torch.tensordot(self.factors[:, place], self.stacks[name], 1)
            for place, (name, value) in enumerate(self.base.items())
        }
        # What the tasks ask is added up at the merged model, so that the merge's graph is walked once.
        leaves = {name: value.detach().requires_grad_() for name, value in merged.items()}
        self.passes.backward(leaves, 0)
        grads = [leaves[name].grad for name in merged]
        torch.autograd.backward(list(merged.values()), grads)
        return slope_of(self.factors)


def main(out: Path, batch: int = 16, rounds: int = 1) -> None:
    """Time the steps, compare the gradients, measure memory."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    evaluator, narrow = make_evaluator(), make_evaluator(192)
    with TemporaryDirectory() as folder:
        ours = Ours(evaluator, make_vectors(evaluator, len(evaluator.tasks), Path(folder)), batch)
        plain = Plain(evaluator, ours.vectors, ours.passes)
        wanted = plain.run()
        error = float((ours.run() - wanted).norm() / wanted.norm())
        assert error < 1e-4, error
        runs = {"ours": ours.run, "plain": plain.run, "passes alone": ours.floor}
        seconds = compare(runs, rounds, warm_up=0, clock=process_time)
        del plain
        seconds |= compare({"writing the model": ours.merge.write}, 2, clock=process_time)
    with TemporaryDirectory() as folder:
        vectors = list(make_vectors(narrow, MANY, Path(folder)).items())
        memory = {f"{n} vectors": peak(Ours(narrow, dict(vectors[:n]), batch).run) for n in (FEW, MANY)}
    table = Table("a step", "CPU s", "x passes alone")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}", f"{value / seconds['passes alone']:.3f}")
    Console().print(table, memory)
    write(out, batch=batch, seconds=seconds, memory=memory, error=error)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "bench_learning.json"), *map(int, sys.argv[2:4]))
