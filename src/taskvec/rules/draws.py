"""Random numbers that belong to an element of a tensor, whoever asks, whenever, in pieces of any size."""

import numpy as np
import xxhash
from numpy.typing import NDArray

from taskvec.rules.rule import Place

RANGE = 1 << 32


def draws(seed: int, vector: int, place: Place, count: int) -> NDArray[np.uint32]:
    """Independent uniform integers below 2^32, one for each of ``count`` elements from ``place.first`` on.

    The upper and the lower 16 bits are streams of their own. The Philox counter is the index of the element,
    its key a digest of seed, vector, tensor name and stream.
    """
    upper, lower = (_stream(part, seed, vector, place, count) for part in ("upper", "lower"))
    return np.left_shift(upper, np.uint32(16), dtype=np.uint32) | lower


def below(limit: int, seed: int, vector: int, place: Place, count: int) -> NDArray[np.bool_]:
    """Where ``draws`` are below ``limit``; half the work, as the upper bits settle nearly all."""
    least, rest = divmod(limit, 1 << 16)
    upper = _stream("upper", seed, vector, place, count)
    found = upper < least
    for index in np.flatnonzero(upper == least):
        lower = _stream("lower", seed, vector, Place(place.name, place.first + int(index)), 1)
        found[index] = lower[0] < rest
    return found


def _stream(part: str, seed: int, vector: int, place: Place, count: int) -> NDArray[np.uint16]:
    key = xxhash.xxh3_128_intdigest(f"{part}/{seed}/{vector}/{place.name}".encode())
    block, skip = divmod(place.first, 16)  # a step of the counter gives four times 64 bits
    raw = np.random.Philox(counter=block, key=key).random_raw((skip + count + 3) // 4)
    return raw.astype("<u8", copy=False).view("<u2")[skip : skip + count]
