"""Digests of tensors, block by block, and the fingerprint that they fold to."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import xxhash
from numpy.typing import NDArray

from taskvec.weights.blocks import Block, TensorSpec, block_step, row_blocks, row_count, rows_of
from taskvec.weights.dtypes import raw_bytes

if TYPE_CHECKING:
    from torch import Tensor


class Tally:
    """Digests of the blocks of one set of weights, gathered as they are read, in any order, by any thread."""

    def __init__(self) -> None:
        self._blocks: dict[str, tuple[TensorSpec, dict[int, bytes]]] = {}
        self._whole: dict[str, bytes] = {}

    def add(self, name: str, spec: TensorSpec, rows: slice | None, tensor: Block) -> None:
        """Digest what was read, if it is the whole tensor or one of its ``row_blocks``."""
        if name in self._whole:
            return
        _, known = self._blocks.setdefault(name, (spec, {}))
        if rows is None:
            for block in row_blocks(spec.shape):
                start = 0 if block is None else block.start
                if start not in known:
                    known[start] = _digest_of(rows_of(tensor, block))
        elif rows.start not in known and _is_block(spec.shape, rows):
            known[rows.start] = _digest_of(tensor)
        self._fold(name, spec, known)

    def merge(self, other: "Tally") -> None:
        """Take over the digests that another has gathered."""
        self._whole.update(other._whole)
        for name, (spec, blocks) in other._blocks.items():
            _, known = self._blocks.setdefault(name, (spec, {}))
            known.update(blocks)
            self._fold(name, spec, known)

    def digest(self, name: str) -> bytes | None:
        """The digest of a tensor, or ``None`` while blocks of it are missing."""
        return self._whole.get(name)

    def digests(self, names: Iterable[str]) -> dict[str, bytes]:
        """The digests of those of these tensors that are known."""
        return {name: self._whole[name] for name in names if name in self._whole}

    def know(self, digests: Mapping[str, bytes]) -> None:
        """Take over digests of whole tensors."""
        self._whole.update(digests)

    def _fold(self, name: str, spec: TensorSpec, known: Mapping[int, bytes]) -> None:
        """One digest of a tensor for those of its blocks, once all are there."""
        step = block_step(spec.shape)
        if len(known) == (1 if step is None else -(-row_count(spec.shape) // step)):
            header = f"{name}\0{spec.code}\0{'x'.join(map(str, spec.shape))}\0".encode()
            blocks = b"".join(known[start] for start in sorted(known))
            self._whole[name] = xxhash.xxh3_128_digest(header + blocks)
            self._blocks.pop(name, None)


def _is_block(shape: tuple[int, ...], rows: slice) -> bool:
    step = block_step(shape)
    if step is None or rows.start is None or rows.step not in (None, 1):
        return False
    return bool(rows.start % step == 0 and rows.stop == min(rows.start + step, row_count(shape)))


def _digest_of(tensor: "Tensor | NDArray[Any]") -> bytes:
    return xxhash.xxh3_128_digest(raw_bytes(tensor))


def folded(digests: Mapping[str, bytes]) -> str:
    """The fingerprint of weights whose tensors have these digests."""
    return xxhash.xxh3_128_hexdigest(b"".join(digests[name] for name in sorted(digests)))
