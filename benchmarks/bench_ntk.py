"""What does the tangent kernel cost, in units of contracting the full Jacobian?

Run as ``python benchmarks/bench_ntk.py OUT.json``. The peer is the plain way: ``vmap(jacrev)`` over all
parameters and one matrix product a parameter. Both kernels are compared before any clock starts, in float32 and,
on a few samples, in float64. Memory is the peak of bytes that a run has allocated and not freed, from the
profiler's record of every allocation; the model and the inputs do not count.
"""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertModel

from taskvec.tangent.ntk import Mode, ntk

SAMPLES, TOKENS, CLASSES, WORDS = 64, 32, 4, 1950
ROUNDS = 3


class Classifier(nn.Module):
    """A small BERT, randomly initialised, and a linear head on its mean."""

    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=WORDS,
            hidden_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=1024,
            max_position_embeddings=2 * TOKENS,
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(256, CLASSES)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits (n, C) of token ids (n, S)."""
        logits: Tensor = self.head(self.encoder(input_ids=input_ids).last_hidden_state.mean(1))
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


def compare(runs: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of processor time per run. The runs take turns, so drift of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):  # one turn to warm up
        for name, run in runs.items():
            start = process_time()
            run()
            if turn >= 1:
                seconds[name].append(process_time() - start)
    return {name: median(s) for name, s in seconds.items()}


def peak(run: Callable[[], object]) -> int:
    """Most bytes that were allocated by the run and alive at one time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


def main(out: Path) -> None:
    """Time and memory of all modes, of a tight budget, and of the peer."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Classifier().eval()
    x = torch.randint(0, WORDS, (SAMPLES, TOKENS), generator=generator)
    errors = check(model, x)

    def ours(mode: Mode, memory: float = 2e9) -> Callable[[], object]:
        return lambda: ntk(model, x, mode=mode, memory=memory)

    runs: dict[str, Callable[[], object]] = {
        "peer: full Jacobian": lambda: by_jacobian(model, x),
        "full": ours("full"),
        "full, 500 MB budget": ours("full", 5e8),
        "full, 200 MB budget": ours("full", 2e8),
        "class": ours("class"),
        "trace": ours("trace"),
        "full, against 64 others": lambda: ntk(model, x, x.flip(0)),
    }
    started = perf_counter()
    seconds = compare(runs)
    bytes_ = {name: peak(run) for name, run in runs.items()}
    base = "peer: full Jacobian"
    table = Table("run", "s", "faster", "MB", "of its memory")
    for name in runs:
        table.add_row(
            name,
            f"{seconds[name]:.2f}",
            f"{seconds[base] / seconds[name]:.2f}x",
            f"{bytes_[name] / 1e6:.0f}",
            f"{bytes_[name] / bytes_[base]:.3f}",
        )
    Console().print(table)
    facts = {
        "samples": SAMPLES,
        "tokens": TOKENS,
        "classes": CLASSES,
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": ROUNDS,
        "clock": "processor time of the process",
        "memory": "peak of live bytes allocated in the run, torch.profiler",
        "took": round(perf_counter() - started),
        "errors": errors,
    }
    out.write_text(json.dumps({**facts, "seconds": seconds, "peak_bytes": bytes_}, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "bench_ntk.json"))
