"""DARE, DELLA, and the random numbers that belong to an element."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from philox import LOW, philox, stream
from taskvec.errors import InputError
from taskvec.rules import RULES
from taskvec.rules.dare import dare
from taskvec.rules.della import DELLA as della
from taskvec.rules.draws import RANGE, draws
from taskvec.rules.draws import philox as compiled_philox
from taskvec.rules.rule import Place

few = settings(max_examples=25, deadline=None, derandomize=True)
HERE = Place("layer.0.weight")


def one(n: int = 20_000) -> Tensor:
    return torch.randn(1, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@few
@given(st.integers(0, 10**12), st.integers(1, 60), st.integers(0, 59))
def test_draws_do_not_depend_on_where_a_piece_begins(first: int, count: int, cut: int) -> None:
    whole = draws(3, 1, Place("w", first), count)
    cut = min(cut, count)
    pieces = [draws(3, 1, Place("w", first), cut), draws(3, 1, Place("w", first + cut), count - cut)]
    assert np.array_equal(np.concatenate(pieces), whole)


def test_draws_are_uniform_and_those_of_other_keys_are_independent() -> None:
    reference = draws(0, 0, HERE, 50_000) / RANGE
    assert abs(reference.mean() - 0.5) < 0.01
    assert abs(reference.var() - 1 / 12) < 0.005
    for seed, vector, name in [(1, 0, HERE.name), (0, 1, HERE.name), (0, 0, "layer.1.weight")]:
        other = draws(seed, vector, Place(name), 50_000) / RANGE
        assert abs(np.corrcoef(reference, other)[0, 1]) < 0.02


PUBLISHED = [  # counter, key and result, of the authors of Philox
    ("00000000" * 4, "00000000" * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff" * 4, "ffffffff" * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a8885a308d313198a2e03707344", "a4093822299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "result"), PUBLISHED)
def test_the_oracle_gives_what_is_published(counter: str, key: str, result: str) -> None:
    words = [[int(text[i : i + 8], 16) for i in range(0, len(text), 8)] for text in (counter, key)]
    assert " ".join(f"{word:08x}" for word in philox(*words)) == result


@few
@given(st.integers(0, 2**64 - 300), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_counters_give_what_the_oracle_gives(first: int, key: int, other: int) -> None:
    made = compiled_philox(first, key, other, 260)
    for place in (0, 127, 128, 259):
        counter = [first + place & LOW, first + place >> 32, 0, 0]
        assert made[place].tolist() == philox(counter, [key, other])


def test_draws_are_the_same_on_every_machine() -> None:
    upper, lower = (stream(f"{part}/7/2/layer.0.weight", 30) for part in ("upper", "lower"))
    assert draws(7, 2, HERE, 30).tolist() == (upper << 16 | lower).tolist()


@few
@given(st.integers(0, 39), st.sampled_from([0, 1]), st.integers(0, 10**6))
def test_dare_looks_at_all_bits_of_a_draw(index: int, more: int, first: int) -> None:
    place = Place("w", first)
    drawn = draws(1, 0, place, 40).astype(np.int64)
    limit = max(1, int(drawn[index]) + more)
    kept = dare(torch.ones(1, 40, dtype=torch.float64), density=limit / RANGE, seed=1, _place=place)
    assert np.array_equal(kept[0].numpy() != 0, drawn < limit)


@few
@given(st.floats(0.02, 1), st.integers(0, 1000))
def test_dare_divides_what_it_keeps_and_drops_the_rest(density: float, seed: int) -> None:
    delta = one(500)
    kept = dare(delta, density=density, seed=seed, _place=HERE)
    mask = draws(seed, 0, HERE, 500).astype(np.float64) < density * RANGE
    expected = np.where(mask, delta.numpy() / density, 0.0)
    assert_close(kept, torch.from_numpy(expected))


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_keeps_the_expectation_with_the_error_it_says(density: float) -> None:
    delta = one()
    kept = dare(delta, density=density, _place=HERE)
    assert abs(int(kept.count_nonzero()) / delta.numel() - density) < 0.01
    error = ((kept - delta).norm() / delta.norm()).item()
    assert error == pytest.approx(((1 - density) / density) ** 0.5, rel=0.05)
    mean = torch.stack([dare(delta[:, :500], density=density, seed=seed) for seed in range(400)]).mean(0)
    assert ((mean - delta[:, :500]).norm() / delta[:, :500].norm()).item() < 1.2 * error / 400**0.5


def test_keeping_all_changes_nothing() -> None:
    assert torch.equal(dare(one(), density=1), one())
    assert torch.equal(della(one(), density=1), one())


def test_tasks_and_tensors_have_masks_of_their_own() -> None:
    twice = one(300).expand(2, 300)
    first, second = dare(twice, density=0.5, _place=HERE) != 0
    assert not torch.equal(first, second)
    assert not torch.equal(first, dare(twice, density=0.5, _place=Place("b"))[0] != 0)


def test_dare_of_a_large_tensor_is_that_of_its_pieces() -> None:
    delta = one(300_000)
    halves = [
        dare(delta[:, :100_001], density=0.3, _place=HERE),
        dare(delta[:, 100_001:], density=0.3, _place=Place(HERE.name, 100_001)),
    ]
    assert torch.equal(torch.cat(halves, dim=1), dare(delta, density=0.3, _place=HERE))


@pytest.mark.parametrize("shape", [(), (6,), (4, 5), (3, 2, 4), (4, 1)])
def test_della_by_loops(shape: tuple[int, ...]) -> None:
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    density, epsilon = 0.6, 0.3
    drawn = (draws(0, 0, HERE, delta.numel()) / RANGE).reshape(
        -1, max(1, delta[0].numel() if delta.dim() > 1 else delta.numel())
    )
    rows = delta.numpy().reshape(drawn.shape)
    expected = np.zeros_like(rows)
    for row, values in enumerate(rows):
        order = sorted(range(len(values)), key=lambda place: abs(values[place]))
        for rank, place in enumerate(order):
            chance = density
            if len(values) > 1:
                chance = (density - epsilon) + 2 * epsilon * rank / (len(values) - 1)
            if drawn[row, place] < chance:
                expected[row, place] = values[place] / chance
    found = della(delta[None], density=density, epsilon=epsilon, _place=HERE)[0]
    assert_close(found, torch.from_numpy(expected.reshape(shape)))


def test_della_without_a_window_is_dare() -> None:
    stack = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert_close(
        della(stack, density=0.4, epsilon=0, seed=5, _place=HERE),
        dare(stack, density=0.4, seed=5, _place=HERE),
    )


def test_della_keeps_the_expectation_and_large_entries_more_often() -> None:
    delta = one(400)
    many = torch.stack([della(delta, density=0.5, epsilon=0.4, seed=seed)[0] for seed in range(500)])
    assert ((many.mean(0) - delta[0]).norm() / delta.norm()).item() < 0.1
    kept = (many != 0).double().mean(0)
    order = delta[0].abs().argsort()
    assert kept[order[:40]].mean() < 0.25 and kept[order[-40:]].mean() > 0.75


def test_della_rescales_to_the_l1_norm_or_not_at_all() -> None:
    delta = one(1000).reshape(1, 50, 20)
    plain = della(delta, rescale=None)
    assert set(plain.reshape(-1).tolist()) <= {0.0, *delta.reshape(-1).tolist()}
    matched = della(delta, rescale="l1")
    assert_close(matched.abs().sum(), delta.abs().sum())
    assert_close(matched / matched.norm(), plain / plain.norm())


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("dare", {"density": 0}, "density is 0"),
        ("dare", {"density": 1.5}, "density is 1.5"),
        ("dare", {"seed": -1}, "seed is -1"),
        ("della", {"density": 0.1}, "epsilon 0.15 takes probabilities around density 0.1"),
        ("della", {"density": 0.9}, "epsilon 0.15 takes probabilities around density 0.9"),
        ("della", {"rescale": "l2"}, "rescale is 'l2'"),
    ],
)
def test_what_would_empty_a_tensor_or_mean_nothing_is_refused(
    name: str, params: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=f"rule '{name}': {message}"):
        RULES[name].settings(params)
