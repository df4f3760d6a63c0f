"""Random numbers that belong to an element of a tensor, whoever asks, whenever, in pieces of any size."""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from taskvec.compiled import compiled
from taskvec.rules.rule import Place

RANGE = 1 << 32


def draws(seed: int, vector: int, place: Place, count: int) -> NDArray[np.uint32]:
    """Independent uniform integers below 2^32, one for each of ``count`` elements from ``place.first`` on.

    The upper and the lower 16 bits are streams of their own. The Philox counter is an eighth of the index of
    the element, its key a digest of seed, vector, tensor name and stream.
    """
    upper, lower = (halves(part, seed, vector, place, count) for part in ("upper", "lower"))
    return np.left_shift(upper, np.uint32(16), dtype=np.uint32) | lower


def uniform(seed: int, place: Place, shape: Sequence[int]) -> Tensor:
    """Independent uniform numbers in [0, 1), float64 (*shape), one for each element from that place on.

    They belong to no vector, so they are not those that drop entries of one.
    """
    numbers = draws(seed, -1, place, prod(shape)) * 2.0**-32
    return torch.from_numpy(numbers).reshape(tuple(shape))


def halves(part: str, seed: int, vector: int, place: Place, count: int) -> NDArray[np.uint16]:
    """The ``upper`` or the ``lower`` 16 bits of ``draws``; the upper ones settle nearly all."""
    key = xxhash.xxh3_64_intdigest(f"{part}/{seed}/{vector}/{place.name}".encode())
    block, skip = divmod(place.first, 8)  # a step of the counter gives four times 32 bits
    words = philox(block, key & 0xFFFFFFFF, key >> 32, (skip + count + 7) // 8)
    return words.astype("<u4", copy=False).view("<u2").reshape(-1)[skip : skip + count]


_TILE = 128  # counters at a time: their words stay in the first cache


@compiled
def philox(first: int, key: int, other_key: int, count: int) -> NDArray[np.uint32]:
    """Philox4x32-10 of the counters from ``first`` on, (count, 4).

    Args:
        first: the low 64 bits of the first counter; the high ones are zero.
        key, other_key: the two words of the key.

    Source: Salmon et al. 2011, doi:10.1145/2063384.2063405.
    """
    words = np.empty((count, 4), np.uint32)
    a, b, c, d = np.empty((4, _TILE), np.uint32)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for start in range(0, count, _TILE):
        size = min(_TILE, count - start)
        for i in range(size):
            counter = np.uint64(first) + np.uint64(start + i)
            w, x, y, z = counter & low, counter >> half, np.uint64(0), np.uint64(0)
            k0, k1 = np.uint64(key), np.uint64(other_key)
            for _ in range(10):  # the rounds that its authors advise; seven pass their tests
                p, q = w * np.uint64(0xD2511F53), y * np.uint64(0xCD9E8D57)
                w, x = (q >> half) ^ x ^ k0, q & low
                y, z = (p >> half) ^ z ^ k1, p & low
                k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
            a[i], b[i], c[i], d[i] = w, x, y, z
        block = words[start : start + size]
        for i in range(size):
            block[i, 0], block[i, 1], block[i, 2], block[i, 3] = a[i], b[i], c[i], d[i]
    return words
