"""What does the tangent kernel cost, in units of contracting the full Jacobian?

Run as ``python benchmarks/bench_ntk.py OUT.json``. The peer is the plain way: ``vmap(jacrev)`` over all
parameters and one matrix product a parameter. Both kernels are compared before any clock starts, in float32
and, on a few samples, in float64. Memory is the peak of bytes that a run has allocated and not freed, by the
profiler's record of every allocation; the model and the inputs do not count.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from transformers import BertConfig, BertModel

from measure import compare, peak, write
from taskvec.tangent.ntk import Mode, ntk

SAMPLES, TOKENS, CLASSES, WORDS = 64, 32, 4, 1700
ROUNDS = 5
PEER = "full Jacobian"


class Classifier(nn.Module):
    """A small BERT, randomly initialised, and a linear head.

    Args:
        pooled: the head reads the pooled first token, as in BERT for classification; else the mean of all.
    """

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        config = BertConfig(
            vocab_size=WORDS,
            hidden_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=1024,
            max_position_embeddings=2 * TOKENS,
        )
        self.encoder = BertModel(config, add_pooling_layer=pooled)
        self.head = nn.Linear(256, CLASSES)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits (n, C) of token ids (n, S)."""
        found = self.encoder(input_ids=input_ids)
        logits: Tensor = self.head(found.pooler_output if self.pooled else found.last_hidden_state.mean(1))
        return logits


def by_jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """(N, C, N, C) from the whole Jacobian."""
    params = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(at: dict[str, Tensor], one: Tensor) -> Tensor:
        found: Tensor = functional_call(model, at, (one[None],))[0]
        return found

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        jacobian = vmap(jacrev(outputs), (None, 0))(params, x)
    kernel = torch.zeros(len(x) * CLASSES, len(x) * CLASSES, dtype=next(model.parameters()).dtype)
    for name in list(jacobian):
        rows = jacobian.pop(name).reshape(len(kernel), -1)
        kernel.addmm_(rows, rows.T)
    return kernel.view(len(x), CLASSES, len(x), CLASSES)


def check(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Largest error against the peer, in units of the largest entry; refuse to time a wrong result."""
    few = x[:6]
    exact = by_jacobian(model.double(), few)
    errors = {"float64, 6 samples": float((ntk(model, few) - exact).abs().max() / exact.abs().max())}
    peer = by_jacobian(model.float(), x)
    errors["float32"] = float((ntk(model, x) - peer).abs().max() / peer.abs().max())
    if errors["float64, 6 samples"] > 1e-12 or errors["float32"] > 1e-3:
        raise SystemExit(f"wrong kernel: {errors}")
    return errors


def measured(pooled: bool, x: Tensor) -> dict[str, Any]:
    """Errors, times and memory of all modes, of tight budgets, and of the peer, for one model."""
    torch.manual_seed(0)
    model = Classifier(pooled).eval()
    errors = check(model, x)

    def ours(mode: Mode, memory: float = 2e9) -> Callable[[], object]:
        return lambda: ntk(model, x, mode=mode, memory=memory)

    runs: dict[str, Callable[[], object]] = {
        PEER: lambda: by_jacobian(model, x),
        "full": ours("full"),
        "full, 300 MB": ours("full", 3e8),
        "class": ours("class"),
        "trace": ours("trace"),
    }
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "errors": errors,
        "seconds": compare(runs, ROUNDS, clock=process_time),
        "peak_bytes": {name: peak(run) for name, run in runs.items()},
    }


def main(out: Path) -> None:
    """Both models: pooled by the first token, where most of the last block is idle, and by the mean."""
    torch.set_num_threads(1)
    x = torch.randint(0, WORDS, (SAMPLES, TOKENS), generator=torch.Generator().manual_seed(0))
    found = {"first token": measured(True, x), "mean of tokens": measured(False, x)}
    for title, facts in found.items():
        table = Table("run", "s", "faster", "MB", "of its memory", title=title)
        for name, seconds in facts["seconds"].items():
            bytes_ = facts["peak_bytes"]
            table.add_row(
                name,
                f"{seconds:.2f}",
                f"{facts['seconds'][PEER] / seconds:.2f}x",
                f"{bytes_[name] / 1e6:.0f}",
                f"{bytes_[name] / bytes_[PEER]:.3f}",
            )
        Console().print(table)
    write(
        out,
        rounds=ROUNDS,
        samples=SAMPLES,
        tokens=TOKENS,
        classes=CLASSES,
        clock="processor time",
        models=found,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "bench_ntk.json"))
