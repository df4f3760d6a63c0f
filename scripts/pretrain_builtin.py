"""Pre-train the built-in dual encoder on the built-in world: contrastively, on one thread of a CPU.

The weights that come with the package are those of ``python scripts/pretrain_builtin.py OUT`` with the
defaults. The run keeps a checkpoint in OUT and goes on from it when started again. ``model.safetensors``
and ``config.json`` there are the running average of the weights, in float16: a model to use at any time.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from captioned_pictures import Captioned, captioned, every_content, true_of, vocabulary
from taskvec.models.builtin.backbone import configuration
from taskvec.models.builtin.network import DualEncoder, initialised, pixels, word_numbers

WARM_UP = 150
DECAY = 0.35
AVERAGE = 0.997


@dataclass(frozen=True)
class Batch:
    """Pictures (b, 3, 32, 32), words of texts (b + contents, length), which text is true of which picture."""

    pictures: Tensor
    words: Tensor
    true: Tensor


def batches(seed: int, size: int, start: int, length: int) -> Iterator[Batch]:
    """Batches from number ``start`` on; each also holds one short caption of every content there is."""
    words = vocabulary()
    common, common_claims = every_content()
    common_words = word_numbers(common, words, length)
    number = start
    block: Captioned | None = None
    drawn = -1
    while True:
        first = number * size
        here, row = divmod(first, 1024)
        if here != drawn or block is None:
            block, drawn = captioned(seed, here), here
        rows = slice(row, row + size)
        own = word_numbers(block.captions[rows], words, length)
        padded = [F.pad(part, (0, length - part.shape[1])) for part in (own, common_words)]
        true = [true_of(claims, block.facts[rows]) for claims in (block.claims[rows], common_claims)]
        yield Batch(
            pixels(torch.from_numpy(block.images[rows])),
            torch.cat(padded)[:, : max(own.shape[1], common_words.shape[1])],
            torch.cat([torch.from_numpy(part) for part in true]),
        )
        number += 1


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, true: Tensor) -> Tensor:
    """Symmetric cross entropy in which a true caption is never a negative.

    Args:
        image, text: features (b, d) and (b + m, d); the first b texts were written for the images in turn.
        true: boolean (b + m, b).
    """
    b = len(image)
    logits = scale * F.normalize(text, dim=-1) @ F.normalize(image, dim=-1).T
    own = torch.arange(b)
    others = true.clone()
    others[own, own] = False
    picked = logits.masked_fill(others, -torch.inf)
    to_image = F.cross_entropy(picked[:b], own)
    to_text = F.cross_entropy(picked.T, own)
    common = logits[b:].T.masked_fill(true[b:].T.logical_not(), -torch.inf).logsumexp(1)
    to_content = (logits[b:].T.logsumexp(1) - common).mean()
    return (to_image + to_text) / 2 + to_content


def optimizers(network: DualEncoder, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for all else."""
    matrices = [w for name, w in network.named_parameters() if "blocks" in name and w.ndim == 2]
    chosen = {id(w) for w in matrices}
    rest = [w for w in network.parameters() if id(w) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr / 2, weight_decay=0.01, betas=(0.9, 0.98)),
    ]


def pace(step: int, steps: int) -> float:
    """Factor of the learning rate: a short warm-up, a plateau, a straight line to zero."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / (DECAY * steps))


def _save(out: Path, average: nn.Module, state: Mapping[str, object], facts: Mapping[str, object]) -> None:
    half = {name: tensor.to(torch.float16).contiguous() for name, tensor in average.state_dict().items()}
    for name, write in (
        ("model.safetensors", lambda path: save_file(half, path)),
        ("training.pt", lambda path: torch.save(state, path)),
        (
            "config.json",
            lambda path: path.write_text(json.dumps(configuration(vocabulary()), indent=1) + "\n"),
        ),
        ("facts.json", lambda path: path.write_text(json.dumps(facts, indent=1))),
    ):
        partial = out / f".{name}.partial"
        write(partial)
        partial.replace(out / name)


def train(out: Path, *, steps: int, size: int, lr: float, seed: int, every: int) -> None:
    """Train, or go on training, until ``steps`` batches have been seen."""
    out.mkdir(parents=True, exist_ok=True)
    network = initialised(len(vocabulary()), seed)
    average = initialised(len(vocabulary()), seed)
    workers = optimizers(network, lr)
    start, spent = 0, 0.0
    if (out / "training.pt").exists():
        state = torch.load(out / "training.pt", weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        for worker, saved in zip(workers, state["optimizers"], strict=True):
            worker.load_state_dict(saved)
        start, spent = state["step"], state["seconds"]
    began, running = time.perf_counter() - spent, 0.0
    stream = batches(seed, size, start, network.shape.text_length)
    for step in range(start, steps):
        batch = next(stream)
        for worker in workers:
            for group in worker.param_groups:
                base = group.setdefault("base_lr", group["lr"])
                group["lr"] = base * pace(step, steps)
            worker.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            image, text = network(batch.pictures, batch.words)
        loss = contrastive_loss(
            image.float(), text.float(), network.logit_scale.exp().clamp(max=50.0), batch.true
        )
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for worker in workers:
            worker.step()
        with torch.no_grad():
            keep = min(AVERAGE, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1.0 - keep)
        running = loss.item() if step == start else 0.98 * running + 0.02 * loss.item()
        seconds = time.perf_counter() - began
        if (step + 1) % 50 == 0:
            rate = (step + 1 - start) * size / (seconds - spent)
            sys.stdout.write(f"step {step + 1} loss {running:.3f} {seconds:.0f} s {rate:.0f} images/s\n")
            sys.stdout.flush()
        if (step + 1) % every == 0 or step + 1 == steps:
            state = {
                "network": network.state_dict(), "average": average.state_dict(), "step": step + 1,
                "optimizers": [worker.state_dict() for worker in workers], "seconds": seconds,
            }  # fmt: skip
            facts = {"images": (step + 1) * size, "steps": step + 1, "of": steps, "batch": size, "lr": lr,
                     "seed": seed, "minutes": round(seconds / 60, 1), "loss": round(running, 3)}  # fmt: skip
            _save(out, average, state, facts)


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for the weights and the checkpoint")
    parser.add_argument("--steps", type=int, default=3000, help="batches")
    parser.add_argument("--size", type=int, default=256, help="images in a batch; divides 1024")
    parser.add_argument(
        "--lr", type=float, default=3e-3, help="highest learning rate of Muon; AdamW has half of it"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and of the world")
    parser.add_argument("--every", type=int, default=200, help="batches between checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(1)
    train(args.out, steps=args.steps, size=args.size, lr=args.lr, seed=args.seed, every=args.every)


if __name__ == "__main__":
    main()
