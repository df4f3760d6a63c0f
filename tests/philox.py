"""Philox4x32-10 in plain integers, as its paper describes it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

LOW = 0xFFFFFFFF


def philox(counter: Sequence[Any], key: Sequence[int]) -> list[Any]:
    """Four random words of 32 bits for four words of counter (integers or arrays) and two of key."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = q >> 32 ^ b ^ k, q & LOW, p >> 32 ^ d ^ m, p & LOW
        k, m = k + 0x9E3779B9 & LOW, m + 0xBB67AE85 & LOW
    return [a, b, c, d]


def stream(key: str, count: int) -> NDArray[np.uint64]:
    """16 random bits for each of ``count`` entries, keyed by a digest of ``key``."""
    digest = xxhash.xxh3_64_intdigest(key.encode())
    blocks = np.arange(count // 8 + 1, dtype=np.uint64)
    zero = np.zeros_like(blocks)
    words = np.stack(philox([blocks, zero, zero, zero], [digest & LOW, digest >> 32]), 1)
    return np.stack([words & 0xFFFF, words >> 16], 2).reshape(-1)[:count]
