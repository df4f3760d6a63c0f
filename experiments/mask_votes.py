"""Masks voted by near tasks against magnitude pruning from scratch, at equal steps, on the built-in world.

    python experiments/mask_votes.py runs/mask_votes

Eight vectors are trained; then each of four tasks is new, and a share of the rows of each tensor may change.
Prints the mean test accuracy of these targets, writes `mask_votes.json` and `mask_votes.png` (matplotlib).
Every row takes 20 steps; `dense` changes everything.
"""

import json
import sys
from pathlib import Path
from statistics import fmean

import torch

import taskvec as tv
from taskvec.training.masks import largest

SHARES = (0.02, 0.05, 0.1, 0.25)
TARGETS = ("display", "constellation", "gabor", "pointing")
SETTINGS = tv.TrainSettings(lr=1.6e-4, steps=20, batch_size=32, validations=0)


def main(folder: Path) -> None:
    """Run all of it."""
    torch.set_num_threads(1)
    suite = tv.load_suite("builtin8")
    tasks = [task for name, task in suite.tasks.items() if name != suite.control]
    limits = {"train": 2000, "validation": 200, "test": 400}
    evaluator = tv.Evaluator(tv.load_backbone("builtin"), tasks, limits=limits)
    vectors = {task.name: vector_of(evaluator, task.name, folder) for task in tasks}
    found = {target: rows_of(evaluator, vectors, target) for target in TARGETS}
    (folder / "mask_votes.json").write_text(json.dumps(found, indent=1))
    methods = list(next(iter(found.values())))
    means = {
        row: [100 * fmean(found[t][row][i] for t in TARGETS) for i in range(len(SHARES))] for row in methods
    }
    print("share of rows", *SHARES, sep="\t")
    for row, values in means.items():
        print(row, *(f"{value:.1f}" for value in values), sep="\t")
    draw(means, folder / "mask_votes.png")


def vector_of(evaluator: tv.Evaluator, name: str, folder: Path) -> tv.TaskVector:
    """The task's own vector, of 30 steps; kept in the folder."""
    path = folder / "vectors" / f"{name}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        settings = SETTINGS.model_copy(update={"steps": 30})
        tv.finetune(evaluator.backbone, evaluator.part(name), settings=settings).save(path)
    return tv.TaskVector.load(path)


def rows_of(
    evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector], target: str
) -> dict[str, list[float]]:
    """Test accuracy by method, for each share."""
    backbone, part = evaluator.backbone, evaluator.part(target)
    others = {name: vector for name, vector in vectors.items() if name != target}
    near = similarities(evaluator, list(others), target)
    dense = tv.finetune(backbone, part, settings=SETTINGS)
    rows: dict[str, list[float]] = {"dense": [measured(evaluator, dense, target)] * len(SHARES)}
    for share in SHARES:
        masks = {name: largest(vector, share) for name, vector in others.items()}
        own = largest(vectors[target], share)
        for row, vector in {
            "pruned from scratch": tv.tune_sparse(backbone, part, share, settings=SETTINGS),
            "vote of 1": tuned(evaluator, part, tv.mask_vote(masks, near, 1, share)),
            "vote of 3": tuned(evaluator, part, tv.mask_vote(masks, near, 3, share)),
            "vote of all": tuned(evaluator, part, tv.mask_vote(masks, near, len(masks), share)),
            "random mask": tuned(evaluator, part, shuffled(own)),
            "mask of its own vector": tuned(evaluator, part, own),
        }.items():
            rows.setdefault(row, []).append(measured(evaluator, vector, target))
        print(target, share, {row: round(values[-1], 3) for row, values in rows.items()}, flush=True)
    return rows


def tuned(evaluator: tv.Evaluator, part: tv.Part, mask: dict[str, torch.Tensor]) -> tv.TaskVector:
    """Fine-tuned inside of a mask."""
    return tv.finetune(evaluator.backbone, part, settings=SETTINGS, mask=mask)


def similarities(evaluator: tv.Evaluator, names: list[str], target: str) -> dict[str, float]:
    """Cosines of prototypes: mean features of validation inputs, less the mean over tasks."""
    features = {
        name: evaluator.features(evaluator.pretrained, name, "validation")[0].mean(0)
        for name in [*names, target]
    }
    centre = torch.stack(list(features.values())).mean(0)
    return {
        name: torch.cosine_similarity(features[name] - centre, features[target] - centre, dim=0).item()
        for name in names
    }


def shuffled(mask: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As many rows of each tensor, drawn at random."""
    draw = torch.Generator().manual_seed(0)
    return {
        name: of.flatten()[torch.randperm(of.numel(), generator=draw)].view(of.shape)
        for name, of in mask.items()
    }


def measured(evaluator: tv.Evaluator, vector: tv.TaskVector, target: str) -> float:
    """Test accuracy."""
    point = evaluator.points({"vector": vector}).at({"vector": 1.0})
    return float(evaluator.score(point, target, "test").value)


def draw(means: dict[str, list[float]], path: Path) -> None:
    """Accuracy over shares."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    ax = figure.subplots()
    for row, values in means.items():
        ax.plot([100 * share for share in SHARES], values, marker="o", ms=4, label=row)
    ax.set_xscale("log")
    ax.set_xticks([100 * share for share in SHARES], [f"{100 * share:g}" for share in SHARES])
    ax.set_xlabel("rows of each tensor that may change, %")
    ax.set_ylabel("mean test accuracy, %")
    ax.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
