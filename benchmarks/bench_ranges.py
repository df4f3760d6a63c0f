"""How many bytes does reading a part of a checkpoint from a web server cost, and how long against a copy?

Run as ``python benchmarks/bench_ranges.py OUT.json``. A server on loopback counts what it sends: of a sharded
checkpoint five tensors, ten rows of the embedding, and all of it; and the same from the disk.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from measure import compare, write
from taskvec.weights import Weights, open_weights, save_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from remote import Web, serving

LAYERS, WIDTH, ROWS, SHARD = 8, 768, 16_000, 2e7


def checkpoint() -> dict[str, torch.Tensor]:
    """130 MB in bfloat16, as language models have it: large matrices, small norms."""
    made = {"embed.weight": torch.randn(ROWS, WIDTH)}
    for layer in range(LAYERS):
        made |= {f"layers.{layer}.{part}.weight": torch.randn(WIDTH, WIDTH) for part in ("q", "k", "v", "o")}
        made |= {f"layers.{layer}.{part}.weight": torch.randn(4 * WIDTH, WIDTH) for part in ("up", "down")}
        made[f"layers.{layer}.norm.weight"] = torch.randn(WIDTH)
    return {name: tensor.bfloat16() for name, tensor in made.items()}


def overhead(folder: Path) -> int:
    """Bytes of the index and the headers."""
    shards = [path.open("rb") for path in sorted(folder.glob("*.safetensors"))]
    headers = sum(8 + int.from_bytes(shard.read(8), "little") for shard in shards)
    for shard in shards:
        shard.close()
    return headers + (folder / "model.safetensors.index.json").stat().st_size


def sent(web: Web, read: Callable[[Weights], object]) -> tuple[int, int]:
    """Bytes and requests of opening the checkpoint and reading of it."""
    web.sent = 0
    web.asked.clear()
    with open_weights(f"{web.url}/model") as weights:
        read(weights)
    return web.sent, len(web.asked)


def main(out: Path) -> None:
    """Measure and write."""
    torch.manual_seed(0)
    with TemporaryDirectory() as top:
        model = checkpoint()
        folder = save_weights(model, Path(top, "model"), max_shard_size=SHARD)
        five = [f"layers.{layer}.{part}.weight" for layer, part in zip((0, 2, 4, 5, 7), "qvokq", strict=True)]
        parts: dict[str, tuple[Callable[[Weights], object], int]] = {
            "five tensors": (
                lambda weights: [weights[name] for name in five],
                sum(model[n].nbytes for n in five),
            ),
            "ten rows": (lambda weights: weights.read("embed.weight", slice(500, 510)), 10 * WIDTH * 2),
            "all": (
                lambda weights: [weights[name] for name in weights],
                sum(t.nbytes for t in model.values()),
            ),
        }
        with serving(folder.parent) as web:
            found = {}
            for name, (read, wanted) in parts.items():
                count, asked = sent(web, read)
                found[name] = {
                    "bytes wanted, headers and index": wanted + overhead(folder),
                    "sent": count,
                    "times": round(count / (wanted + overhead(folder)), 5),
                    "requests": asked,
                }
            seconds = compare(
                {
                    "copy": lambda: open_weights(folder).fingerprint(),
                    "server": lambda: open_weights(f"{web.url}/model").fingerprint(),
                },
                rounds=3,
            )
        write(out, sent=found, fingerprint={"times a copy on the disk": seconds["server"] / seconds["copy"]})
        print(found, seconds)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
