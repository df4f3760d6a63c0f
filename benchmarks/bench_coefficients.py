"""What do coefficients cost once the first point is paid for, in tangent space and in ordinary space?

Run as ``python benchmarks/bench_coefficients.py OUT.json``. A BERT of the shape of MiniLM, randomly
initialised, with a frozen head of 100 classes. Tangent space is compared with one linearized pass a point
done the original way: ``torch.func.jvp`` over all parameters, ``p - p0`` formed in every call. One such point
is measured and counted 21 or 441 times. Ordinary space is compared with as many plain forward passes. Results
are compared before any clock starts.
"""

import sys
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertConfig, BertModel

from measure import compare, write
from taskvec.evaluation.linear import LinearFeatures, linear_features
from taskvec.evaluation.metrics import value
from taskvec.evaluation.points import OrdinaryPoints
from taskvec.models.heads import Head
from taskvec.tangent.linearization import Linearization
from taskvec.tasks.objective import Batch
from taskvec.training.loop import Params

BATCHES, SIZE, LENGTH, CLASSES = 6, 8, 64, 100
GRID = [place / 20 for place in range(21)]
MOVES = 4
ROUNDS = 5


class World:
    """A model, two task vectors, data and a head."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        )
        self.model = BertModel(config, add_pooling_layer=False).train(False)
        self.theta0 = {name: p.detach() for name, p in self.model.named_parameters()}
        self.taus: dict[str, Params] = {task: self._step() for task in ("one", "two")}
        one, two = self.taus.values()
        self.summed = {"sum": {name: one[name] + two[name] for name in self.theta0}}
        self.loader = [self._batch() for _ in range(BATCHES)]
        self.labels = torch.cat([batch.labels for batch in self.loader])
        self.lin = Linearization(self.encode, self.theta0, example=(self.loader[0].inputs,))
        weight = torch.randn(CLASSES, config.hidden_size)
        self.head = Head(
            weight, None, normalize=True, classes=[str(c) for c in range(CLASSES)], kind="zero-shot"
        )

    def _step(self) -> Params:
        return {
            name: 0.02 * value.std().nan_to_num() * torch.randn_like(value)
            for name, value in self.theta0.items()
        }

    def _batch(self) -> Batch:
        """Token ids with the frequencies of words (Zipf), texts of 40 to 64 tokens, padded."""
        ids = torch.rand(SIZE, LENGTH).mul(9.9).exp().long() + 1000
        lengths = torch.randint(40, LENGTH + 1, (SIZE, 1))
        mask = (torch.arange(LENGTH) < lengths).long()
        inputs = {"input_ids": ids * mask, "attention_mask": mask}
        return Batch(inputs, torch.randint(CLASSES, (SIZE,)), torch.arange(SIZE))

    def encode(self, params: Params, inputs: dict[str, Tensor]) -> Tensor:
        """Mean of the last hidden states over real tokens, (n, d)."""
        return self.pooled(functional_call(self.model, dict(params), (), inputs).last_hidden_state, inputs)

    @staticmethod
    def pooled(hidden: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Mean over real tokens."""
        mask = inputs["attention_mask"].unsqueeze(-1)
        pooled: Tensor = (hidden * mask).sum(1) / mask.sum(1)
        return pooled

    def accuracy(self, features: Tensor) -> float:
        """Behind the head."""
        return value(self.head(features), self.labels, "accuracy")


def _encoded(world: World, inputs: dict[str, Tensor], params: Params) -> Tensor:
    return world.encode(params, inputs)


@torch.no_grad()
def original(world: World, coefficients: dict[str, float]) -> Tensor:
    """One point, one linearized pass: features (N, d)."""
    params = {
        name: p0 + sum(a * world.taus[task][name] for task, a in coefficients.items())
        for name, p0 in world.theta0.items()
    }
    found = []
    with sdpa_kernel(SDPBackend.MATH):
        for batch in world.loader:
            step = {name: p - world.theta0[name] for name, p in params.items()}
            at_theta0 = partial(_encoded, world, batch.inputs)
            found.append(sum(torch.func.jvp(at_theta0, (world.theta0,), (step,))))
    return torch.cat(found)


@torch.no_grad()
def forward(world: World) -> list[float]:
    """As many plain forward passes as there are points, head and accuracy included."""
    return [
        world.accuracy(
            torch.cat(
                [world.pooled(world.model(**b.inputs).last_hidden_state, b.inputs) for b in world.loader]
            )
        )
        for _ in range(MOVES)
    ]


@torch.no_grad()
def in_place(world: World, points: OrdinaryPoints) -> list[float]:
    """Accuracies at points of ordinary space."""
    found = []
    for place in range(MOVES):
        params = points.at({"one": place / 4, "two": 1 - place / 4})
        found.append(world.accuracy(torch.cat([world.encode(params, b.inputs) for b in world.loader])))
    return found


def shared(world: World) -> list[float]:
    """The grid of the sum: one direction."""
    found = linear_features(world.lin, world.summed, world.loader)
    return [world.accuracy(found.at({"sum": alpha})) for alpha in GRID]


def apart(world: World, pairs: Sequence[tuple[float, float]]) -> list[float]:
    """Points with a coefficient for each of two tasks: two directions."""
    found = linear_features(world.lin, world.taus, world.loader)
    return [world.accuracy(found.at({"one": a, "two": b})) for a, b in pairs]


def check(world: World, points: OrdinaryPoints) -> None:
    """Refuse to time a wrong result."""
    one = linear_features(world.lin, world.summed, world.loader)
    two = linear_features(world.lin, world.taus, world.loader)
    expected = original(world, {"one": 0.65, "two": 0.65})

    def close(found: LinearFeatures, at: dict[str, float]) -> None:
        torch.testing.assert_close(found.at(at), expected, rtol=1e-3, atol=1e-4)

    close(one, {"sum": 0.65})
    close(two, {"one": 0.65, "two": 0.65})
    start = torch.cat([world.encode(points.at({}), b.inputs) for b in world.loader])
    plain = torch.cat(
        [world.pooled(world.model(**b.inputs).last_hidden_state, b.inputs) for b in world.loader]
    )
    torch.testing.assert_close(start, plain, rtol=0, atol=0)
    moved = points.at({"one": 0.5, "two": 0.25})
    for name, p0 in world.theta0.items():
        torch.testing.assert_close(
            moved[name], p0 + 0.5 * world.taus["one"][name] + 0.25 * world.taus["two"][name]
        )


def main(out: Path) -> None:
    """Time a grid of the sum, a grid of two, a heat map, and moves in place."""
    world = World()
    points = OrdinaryPoints(world.theta0, world.taus)
    with torch.no_grad():
        check(world, points)
    times = compare(
        {
            "original, one point": lambda: world.accuracy(original(world, {"one": 0.5, "two": 0.5})),
            "grid of the sum, 21 points": lambda: shared(world),
            "two free coefficients, 21 points": lambda: apart(world, [(a, 1 - a) for a in GRID]),
            "heat map, 21 x 21 points": lambda: apart(world, list(product(GRID, GRID))),
            f"forward, {MOVES} times": lambda: forward(world),
            f"in place, {MOVES} points": lambda: in_place(world, points),
        },
        ROUNDS,
    )
    point, (plain, moved) = times["original, one point"], list(times.values())[-2:]
    names = list(times)
    ratios = {
        name: count * point / times[name] for name, count in zip(names[1:4], (21, 21, 441), strict=True)
    }
    ratios[names[-1]] = moved / plain
    table = Table("run", "ms", "ratio")
    for name, seconds in times.items():
        shown = f"{ratios[name]:.2f}" if name in ratios else ""
        table.add_row(name, f"{1e3 * seconds:.0f}", shown)
    Console().print(table)
    Console().print(
        "ratio: in tangent space, times faster than the original a point (one measured, counted 21 or 441 "
        "times); in place, times the plain forward passes"
    )
    write(
        out,
        examples=BATCHES * SIZE,
        batch=[SIZE, LENGTH],
        route=world.lin.route,
        rounds=ROUNDS,
        seconds=times,
        ratios=ratios,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "bench_coefficients.json"))
