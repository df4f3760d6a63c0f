"""Random numbers that belong to an element of a tensor, whoever asks, whenever, in pieces of any size."""

import numpy as np
import xxhash
from numpy.typing import NDArray

from taskvec.rules.rule import Place

RANGE = 1 << 32


def draws(seed: int, vector: int, place: Place, count: int) -> NDArray[np.uint32]:
    """Independent uniform integers below 2^32, one for each of ``count`` elements from ``place.first`` on.

    The Philox counter is the index of the element, its key a digest of seed, vector and tensor name.
    """
    key = xxhash.xxh3_128_intdigest(f"{seed}/{vector}/{place.name}".encode())
    block, skip = divmod(place.first, 8)  # a step of the counter gives four times 64 bits
    raw = np.random.Philox(counter=block, key=key).random_raw((skip + count + 1) // 2)
    return raw.astype("<u8", copy=False).view("<u4")[skip : skip + count]
