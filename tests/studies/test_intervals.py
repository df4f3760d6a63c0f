"""How sure a figure is: intervals by a bootstrap, p-values of several tests."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, false_discovery_control, t  # type: ignore[import-untyped]

from taskvec.studies.numerics.intervals import Sample, interval_of_mean
from taskvec.studies.numerics.paired import holm, paired_difference

Array = NDArray[np.float64]


def sample(hits: Array) -> Sample:
    return Sample(hits.mean(axis=1), hits, hits.shape[1])


def drawn(random: np.random.Generator, shares: Array, n: int, alike: float = 0.8) -> Array:
    """Hits (S, n) of these shares; most examples are as hard for every seed."""
    common, at_once = random.random(n) < alike, random.random(n)
    return np.stack([np.where(common, at_once, random.random(n)) < share for share in shares]).astype(float)


def test_one_task_and_seed_is_a_binomial() -> None:
    for n, k in ((400, 360), (100, 57), (1000, 1)):
        hits = np.zeros((1, n))
        hits[0, :k] = 1
        low, high = binom.ppf([0.025, 0.975], n, k / n) / n
        assert interval_of_mean([sample(hits)], 20_000) == pytest.approx((low, high), abs=1.1 / n)
        assert interval_of_mean([Sample(np.array([k / n]), None, n)], 20_000) == pytest.approx(
            (low, high), abs=1.1 / n
        )


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_right_or_all_wrong_is_not_certain(share: float) -> None:
    found = interval_of_mean([sample(np.full((2, 50), share))])
    assert found is not None
    low, high = found
    assert 0 <= low <= share <= high <= 1 and 0.01 < high - low < 0.1


def test_seeds_alone_vary_as_students_t_says() -> None:
    values = np.array([0.021, 0.0224, 0.0235, 0.0217, 0.0229, 0.0211, 0.022, 0.0231])
    half = t.ppf(0.975, 7) * values.std(ddof=1) / np.sqrt(8)
    found = interval_of_mean([Sample(values)], 20_000)
    assert found is not None
    assert found == pytest.approx((values.mean() - half, values.mean() + half), abs=0.2 * half)
    assert interval_of_mean([Sample(values[:1])]) is None


@pytest.mark.parametrize(
    ("seeds", "spread"), [(1, 0.0), (2, 0.01), (3, 0.0), (3, 0.02), (5, 0.02), (5, 0.05)]
)
def test_nineteen_of_twenty_intervals_hold_the_truth(seeds: int, spread: float) -> None:
    random, held = np.random.default_rng(7), 0
    for _ in range(200):
        shares = 0.8 + random.normal(0, spread, seeds)
        found = interval_of_mean([sample(drawn(random, shares, 100)) for _ in range(4)], 400)
        assert found is not None
        held += found[0] <= 0.8 <= found[1]
    assert held >= 182  # 200 draws of 95 % are 182 or more in 998 of 1000 cases


def test_the_order_of_tasks_and_seeds_does_not_matter() -> None:
    random = np.random.default_rng(3)
    tasks = [drawn(random, np.array([0.7, 0.8, 0.75]), n) for n in (40, 60, 40)]
    found = interval_of_mean(list(map(sample, tasks)))
    assert found == interval_of_mean(list(map(sample, tasks)))
    for order in ([2, 0, 1], [1, 0, 2]):
        mixed = [sample(tasks[place][order]) for place in order]
        assert interval_of_mean(mixed) == pytest.approx(found, abs=1e-12)


def test_more_examples_and_more_seeds_make_it_narrower() -> None:
    random = np.random.default_rng(5)
    widths = []
    for n, seeds in ((30, 3), (600, 3), (600, 12)):
        off = np.resize([0.03, 0.0, -0.03], seeds)
        of = [sample(drawn(random, 0.8 + off, n)) for _ in range(8)]
        found = interval_of_mean(of)
        assert found is not None
        widths.append(found[1] - found[0])
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], []),
        ([0.2], [0.2]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5, 0.5, 0.9], [1, 1, 1]),
        ([0.04, 0.001, 0.03, 0.02], [0.06, 0.004, 0.06, 0.06]),
        ([0.0, 1.0], [0.0, 1.0]),
    ],
)
def test_holm_by_hand(given: list[float], wanted: list[float]) -> None:
    assert holm(given) == pytest.approx(wanted)


def test_holm_is_no_laxer_than_what_controls_less() -> None:
    random = np.random.default_rng(0)
    for count in (1, 3, 20):
        given = random.random(count) ** 3
        assert np.all(np.array(holm(list(given))) >= false_discovery_control(given) - 1e-12)
        assert np.all(np.array(holm(list(given))) <= np.minimum(1, count * given) + 1e-12)


@pytest.mark.parametrize(
    ("tasks", "n", "differ"), [(1, 100, 0.2), (8, 160, 0.02), (2, 60, 0.3), (20, 40, 0.1)]
)
def test_one_of_twenty_tests_finds_what_is_not_there(tasks: int, n: int, differ: float) -> None:
    random, found = np.random.default_rng(1), []
    for _ in range(500):
        odds = random.random((tasks, 1, n))
        either = (odds < differ / 2).astype(float) - (odds > 1 - differ / 2)
        found.append(paired_difference(list(either)).p < 0.05)
    assert 0.025 <= np.mean(found) <= 0.08
