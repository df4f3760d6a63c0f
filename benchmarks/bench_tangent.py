"""What does a training step in tangent space cost, in units of an ordinary fine-tuning step?

Run as ``python benchmarks/bench_tangent.py OUT.json``. Two encoders with random weights and a frozen head of
100 classes: ViT-B/32 (batch 4) and the shape of MiniLM (6 layers, width 384, 64 tokens, batch 8). A step is
the forward and backward pass; the optimizer is left out, it is the same for all. "The original way" is that
of the paper's code: ``torch.func.jvp`` over all parameters with ``p - p0``, and backward through it; for
attention only the same with the other differences zero. Every way's gradient is compared with it before any
clock starts. Times are CPU seconds of one thread, the ways taking turns; memory is the peak of bytes that are
allocated inside a step.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import process_time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertModel, CLIPVisionConfig, CLIPVisionModel

from measure import compare, machine, peak, write
from taskvec.names import select_names
from taskvec.tangent.forward import jvp
from taskvec.tangent.linearization import Linearization, Route

ROUNDS = 5
Params = Mapping[str, Tensor]


class Encoder(nn.Module):
    """An encoder, its pooling and a frozen head: batch to logits (n, 100)."""

    def __init__(self, body: nn.Module, width: int, pool: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.body, self.pool = body, pool
        self.register_buffer("head", torch.randn(100, width) / width**0.5)

    def forward(self, **batch: Tensor) -> Tensor:
        """Logits."""
        return self.pool(self.body(**batch)) @ self.get_buffer("head").t()


def minilm() -> tuple[Encoder, dict[str, Tensor]]:
    """The shape of all-MiniLM-L6-v2, mean pooling, batch 8 of 64 tokens."""
    shape = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    body: nn.Module = BertModel(shape, add_pooling_layer=False)
    body.eval()
    return Encoder(body, 384, lambda out: out.last_hidden_state.mean(1)), {
        "input_ids": torch.randint(1000, 30000, (8, 64)),
        "attention_mask": torch.ones(8, 64, dtype=torch.int64),
    }


def vit() -> tuple[Encoder, dict[str, Tensor]]:
    """ViT-B/32 of CLIP, batch 4 of 224 x 224 pixels."""
    shape = CLIPVisionConfig(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, patch_size=32
    )
    body: nn.Module = CLIPVisionModel(shape)
    body.eval()
    return Encoder(body, 768, lambda out: out.pooler_output), {"pixel_values": torch.randn(4, 3, 224, 224)}


class Steps:
    """The ways to compute one step's gradient at the same tau."""

    def __init__(self, model: Encoder, batch: dict[str, Tensor]) -> None:
        self.model, self.batch = model, batch
        self.labels = torch.arange(len(next(iter(batch.values()))))
        self.theta0 = {name: value.detach() for name, value in model.named_parameters()}
        self.attention = select_names(self.theta0, "attention", "model")
        draw = torch.Generator().manual_seed(0)
        self.tau = {n: 0.01 * v * torch.randn(v.shape, generator=draw) for n, v in self.theta0.items()}

    def _run(self, params: Params, **batch: Tensor) -> Tensor:
        return functional_call(self.model, dict(params), (), batch)  # type: ignore[no-any-return]

    def _backward(self, logits: Tensor, leaves: Params) -> dict[str, Tensor]:
        loss = cross_entropy(logits.float(), self.labels)
        slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return {n: s for n, s in zip(leaves, slopes, strict=True) if s is not None}

    def ordinary(self, names: list[str]) -> Callable[[], Params]:
        """Fine-tuning at theta0 + tau."""
        moved = {name: value + self.tau[name] for name, value in self.theta0.items()}
        leaves = {name: moved[name].requires_grad_() for name in names}
        return lambda: self._backward(self._run(moved, **self.batch), leaves)

    def original(self, names: list[str]) -> Callable[[], Params]:
        """jvp over all parameters with p - p0, and backward through it."""
        moved = {n: (v + self.tau[n] if n in names else v.clone()) for n, v in self.theta0.items()}
        leaves = {name: moved[name].requires_grad_() for name in names}

        def step() -> Params:
            tau = {name: value - self.theta0[name] for name, value in moved.items()}
            out, slope = jvp(lambda params: self._run(params, **self.batch), self.theta0, tau)
            return self._backward(out + slope, leaves)

        return step

    def tangent(self, names: list[str], route: Route, autocast: bool = False) -> Callable[[], Params]:
        """taskvec's linearization, tau as leaf."""
        lin = Linearization(self._run, self.theta0, route=route)
        leaves = {name: self.tau[name].clone().requires_grad_() for name in names}

        def step() -> Params:
            precision: AbstractContextManager[object] = (
                torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext()
            )
            with precision:
                out = lin(leaves, **self.batch)
            return self._backward(out, leaves)

        return step


def agree(found: Params, exact: Params, tolerance: float) -> None:
    """Refuse to time a wrong gradient."""
    largest = max(float(value.abs().max()) for value in exact.values())
    for name, value in exact.items():
        assert float((found[name] - value).abs().max()) <= tolerance * largest, name


def measure(model: Encoder, batch: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """CPU seconds and peak bytes of every way."""
    steps = Steps(model, batch)
    full, attention = list(steps.theta0), steps.attention
    runs = {
        "fine-tuning": steps.ordinary(full),
        "fine-tuning, attention": steps.ordinary(attention),
        "tangent": steps.tangent(full, "rules"),
        "tangent, lean": steps.tangent(full, "lean"),
        "tangent, torch.func": steps.tangent(full, "func"),
        "tangent, the original way": steps.original(full),
        "tangent, attention": steps.tangent(attention, "rules"),
        "tangent, attention, the original way": steps.original(attention),
    }
    for kind, names in (("tangent", full), ("tangent, attention", attention)):
        exact = runs[f"{kind}, the original way"]()
        agree(runs[kind](), exact, 1e-3)
        assert set(exact) <= set(names)
    if machine().get("bf16 units") == "yes":
        runs["tangent, bf16"] = steps.tangent(full, "rules", autocast=True)
        agree(runs["tangent, bf16"](), runs["tangent"](), 0.1)
    seconds = compare(runs, ROUNDS, clock=process_time)
    return {name: {"seconds": seconds[name], "bytes": float(peak(run))} for name, run in runs.items()}


def bf16_products() -> float:
    """Time of a matrix product in bfloat16, in units of the same in float32: what bf16 can save at best."""
    a, b = torch.randn(512, 768), torch.randn(768, 3072)
    products = {dtype: (a.to(dtype), b.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    times = compare(
        {str(dtype): (lambda x=x, y=y: x @ y) for dtype, (x, y) in products.items()},  # type: ignore[misc]
        30,
        clock=process_time,
    )
    return times["torch.bfloat16"] / times["torch.float32"]


def main(out: Path) -> None:
    """Time every way on both encoders."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {}
    for name, make in {"MiniLM, batch 8": minilm, "ViT-B/32, batch 4": vit}.items():
        found[name] = measure(*make())
        floor = found[name]["fine-tuning"]["seconds"]
        original = found[name]["tangent, the original way"]["bytes"]
        table = Table("step", "CPU ms", "x fine-tuning", "peak MB", "x the original way", title=name)
        for run, cost in found[name].items():
            table.add_row(
                run,
                f"{1e3 * cost['seconds']:.0f}",
                f"{cost['seconds'] / floor:.2f}",
                f"{cost['bytes'] / 1e6:.0f}",
                f"{cost['bytes'] / original:.2f}",
            )
        Console().print(table)
    products = bf16_products()
    Console().print(f"A matrix product in bfloat16 takes {products:.2f} of one in float32.")
    write(out, rounds=ROUNDS, bf16_products=products, steps=found)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "bench_tangent.json"))
