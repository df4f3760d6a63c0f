"""Random numbers that belong to an element of a tensor, whoever asks, whenever, in pieces of any size."""

import numpy as np
import xxhash
from numpy.typing import NDArray

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


def halves(part: str, seed: int, vector: int, place: Place, count: int) -> NDArray[np.uint16]:
    """The ``upper`` or the ``lower`` 16 bits of ``draws``; the upper ones settle nearly all."""
    key = xxhash.xxh3_64_intdigest(f"{part}/{seed}/{vector}/{place.name}".encode())
    block, skip = divmod(place.first, 8)  # a step of the counter gives four times 32 bits
    words = philox(block, key & 0xFFFFFFFF, key >> 32, (skip + count + 7) // 8)
    return words.astype("<u4", copy=False).view("<u2").reshape(-1)[skip : skip + count]


_TILE = 128  # counters at a time: their state stays in the first cache


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
    for start in range(0, count, _TILE):
        size = min(_TILE, count - start)
        for i in range(size):
            counter = np.uint64(first) + np.uint64(start + i)
            a[i], b[i], c[i], d[i] = np.uint32(counter), np.uint32(counter >> np.uint64(32)), 0, 0
        k0, k1 = np.uint32(key), np.uint32(other_key)
        for _ in range(10):
            for i in range(size):
                p, q = np.uint64(a[i]) * np.uint64(0xD2511F53), np.uint64(c[i]) * np.uint64(0xCD9E8D57)
                a[i] = np.uint32(q >> np.uint64(32)) ^ b[i] ^ k0
                c[i] = np.uint32(p >> np.uint64(32)) ^ d[i] ^ k1
                b[i], d[i] = np.uint32(q), np.uint32(p)
            k0, k1 = np.uint32(k0 + np.uint32(0x9E3779B9)), np.uint32(k1 + np.uint32(0xBB67AE85))
        block = words[start : start + size]
        for i in range(size):
            block[i, 0], block[i, 1], block[i, 2], block[i, 3] = a[i], b[i], c[i], d[i]
    return words
