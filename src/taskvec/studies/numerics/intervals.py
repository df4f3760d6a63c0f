"""How sure a mean over tasks is: a bootstrap over test examples and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

Array = NDArray[np.float64]

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Sample:
    """What is known of a model on one task.

    Args:
        values: of each seed (S,), more is better.
        hits: of each seed and example (S, n), 1 where it is right; none where that is not on record.
        examples: n, where a value is the share of n examples that are right; else 0.
    """

    values: Array
    hits: Array | None = None
    examples: int = 0

    @property
    def is_share(self) -> bool:
        """Whether examples can be drawn anew."""
        return self.examples > 0

    def at(self, seeds: NDArray[np.intp]) -> "Sample":
        """The same of seeds in another order."""
        hits = None if self.hits is None else self.hits[seeds]
        return Sample(self.values[seeds], hits, self.examples)

    def told(self) -> bytes:
        """All that it holds."""
        return (self.values if self.hits is None else self.hits).tobytes()


def interval_of_mean(samples: Sequence[Sample], draws: int = DRAWS) -> tuple[float, float] | None:
    """The 95 % interval of the mean over tasks and seeds: percentiles of a bootstrap.

        draw = mean over examples drawn anew + (mean of S - 1 seeds drawn anew - mean of all) * t / z

    Examples are drawn for all seeds at once, since the seeds share them. S - 1 of S seeds give the variance
    its right size (McCarthy and Snowden 1985), and quantiles of Student's t in units of the normal's, t / z,
    make up for the little that a few seeds tell of their spread. Where single examples are not known, k right
    ones of n are drawn as a binomial; where values are no shares of examples, seeds alone are drawn, and
    one seed has no interval. What is drawn follows from the data, in whatever order tasks and seeds come.

    Args:
        samples: of each task, all of as many seeds.

    Source: percentiles of a bootstrap, Efron and Tibshirani 1993; examples beside seeds, Owen 2007
    (arXiv:0712.1111).
    """
    of_examples = all(sample.is_share for sample in samples)
    seeds = len(samples[0].values)
    if not of_examples and seeds < 2:
        return None
    ordered = _in_order(samples)
    random = np.random.default_rng(xxh3_64_intdigest(b"|".join(sample.told() for sample in ordered)))
    by_seed = np.mean([sample.values for sample in ordered], axis=0)
    means = by_seed.mean() + _draw_seeds(by_seed, random, draws)
    if of_examples:
        means += np.mean([_draw_examples(sample, random, draws) for sample in ordered], axis=0)
    low, high = np.percentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return (max(0.0, float(low)), min(1.0, float(high))) if of_examples else (float(low), float(high))


def _in_order(samples: Sequence[Sample]) -> list[Sample]:
    """Seeds and tasks in an order that follows from what they hold."""
    told = [
        sorted(sample.at(np.array([seed])).told() for sample in samples)
        for seed in range(len(samples[0].values))
    ]
    seeds = np.array(sorted(range(len(told)), key=lambda seed: told[seed]))
    return sorted((sample.at(seeds) for sample in samples), key=Sample.told)


def _draw_examples(sample: Sample, random: np.random.Generator, draws: int) -> Array:
    """How far the share of right examples is off (draws,) when they are drawn anew."""
    n, mean = sample.examples, float(sample.values.mean())
    if sample.hits is None or mean in (0, 1):
        share = mean if 0 < mean < 1 else (mean * n + 0.5) / (n + 1)  # with no spread half an example differs
        binomial: Array = random.binomial(n, share, size=draws) / n - share
        return binomial
    shares, counts = np.unique(sample.hits.mean(axis=0), return_counts=True)
    drawn: Array = random.multinomial(n, counts / n, size=draws) @ shares / n - mean
    return drawn


def _draw_seeds(by_seed: Array, random: np.random.Generator, draws: int) -> Array:
    """How far their mean is off (draws,) when seeds are drawn anew."""
    seeds = len(by_seed)
    if seeds == 1:
        return np.zeros(draws)
    from scipy.special import ndtri, stdtrit  # type: ignore[import-untyped]  # few figures wait for it

    tail = (1 + LEVEL) / 2
    taken = by_seed[random.integers(seeds, size=(draws, seeds - 1))].mean(axis=1)
    off: Array = (taken - by_seed.mean()) * (stdtrit(seeds - 1, tail) / ndtri(tail))
    return off
