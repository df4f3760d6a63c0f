"""An experiment's results as PNG figures."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_128

from taskvec.errors import MissingExtra
from taskvec.reports.analysis_figures import disentanglement_figures
from taskvec.writing import remove

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Result = Mapping[str, Any]


def figures(results: Result, folder: Path) -> list[tuple[Path, str]]:
    """Draw what the results hold into ``folder``; the files and their captions.

    A figure that the same code drew from the same results stays: drawing takes longer than all else in a run
    that computes nothing. All other PNG files in the folder are removed, and nothing else.

    Raises: MissingExtra if matplotlib is not installed.
    """
    seeds = list(results["seeds"].values())
    drawings: dict[str, tuple[Callable[[], Figure | None], str]] = {
        "single": (lambda: _single(results, seeds), "Every task before and after its own fine-tuning."),
        "addition": (
            lambda: _addition(seeds),
            "Adding more tasks: each dot is a subset, the line their mean.",
        ),
        "atm": (lambda: _atm(seeds), "ATM: the same training steps, merged once or more often."),
        "negation": (lambda: _negation(seeds), "Negation: the target falls, the control stays."),
        "cosine": (lambda: _cosine(results, seeds), "Cosines between task vectors."),
        **_heat_maps(seeds[0]),
    }
    source = _source(results)
    kept = _kept(folder, source)
    drawn = []
    for name, (draw, caption) in drawings.items():
        path = folder / f"{name}.png"
        if path not in kept:
            figure = draw()
            if figure is None:
                continue
            figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"Source": source})
        drawn.append((path, caption))
    return drawn


def _source(results: Result) -> str:
    """Digest of what decides a figure: the results, this package's code, and what it draws with."""
    try:
        matplotlib = version("matplotlib")
    except PackageNotFoundError:
        raise MissingExtra(
            "matplotlib is not installed, needed for figures; pip install 'taskvec[plots]'"
        ) from None
    digest = xxh3_128(json.dumps([matplotlib, results]).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _kept(folder: Path, source: str) -> set[Path]:
    """Figures in ``folder``, which is made, that were drawn from ``source``; other PNG files are removed."""
    if folder.is_symlink() or not folder.is_dir():
        remove(folder)
        folder.mkdir(parents=True)
    kept = set()
    for path in folder.glob("*.png"):
        if path.is_symlink() or not path.is_file() or source.encode() not in _head(path):
            remove(path)
        else:
            kept.add(path)
    return kept


def _head(path: Path) -> bytes:
    """Where a PNG says what it was drawn from."""
    with path.open("rb") as file:
        return file.read(1024)


def _axes(columns: int, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _single(results: Result, seeds: Sequence[Result]) -> "Figure | None":
    tasks = results["tasks"]
    zero = [100 * results["zero_shot"][task]["test"]["value"] for task in tasks]
    bars = {"zero-shot": zero}
    for regime in seeds[0]:
        bars[regime] = [100 * fmean(seed[regime]["single"]["test"][task] for seed in seeds) for task in tasks]
    width = 1.2 + 1.1 * len(tasks)
    columns = min(len(bars), max(2, int(width / 1.7)))
    figure, [ax] = _axes(1, width, 2.8 + 0.25 * math.ceil(len(bars) / columns))
    wide = 0.8 / len(bars)
    for place, (label, values) in enumerate(bars.items()):
        ax.bar(
            [i + (place - (len(bars) - 1) / 2) * wide for i in range(len(tasks))], values, wide, label=label
        )
    ax.set_xticks(range(len(tasks)), tasks, rotation=20, ha="right")
    ax.set_ylabel("test metric, %")
    ax.legend(frameon=False, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _addition(seeds: Sequence[Result]) -> "Figure | None":
    if not next(iter(seeds[0].values()))["addition"]:
        return None
    figure, axes = _axes(2, 4.2, 3.2)
    for ax, measure in zip(axes, ("absolute", "normalized"), strict=True):
        for place, regime in enumerate(seeds[0]):
            edits = [edit for seed in seeds for edit in seed[regime]["addition"]]
            sizes = sorted({len(edit["tasks"]) for edit in edits})
            by_size = {n: [100 * e[measure] for e in edits if len(e["tasks"]) == n] for n in sizes}
            ax.plot(
                sizes,
                [fmean(values) for values in by_size.values()],
                marker="o",
                label=regime,
                color=f"C{place}",
            )
            for n, values in by_size.items():
                ax.plot([n] * len(values), values, ".", alpha=0.35, color=f"C{place}")
        ax.set_xlabel("tasks added")
        ax.set_ylabel(f"{measure}, %")
        ax.set_xticks(
            sorted({len(e["tasks"]) for seed in seeds for found in seed.values() for e in found["addition"]})
        )
    axes[0].legend(frameon=False)
    return figure


def _atm(seeds: Sequence[Result]) -> "Figure | None":
    regimes = [regime for regime in seeds[0] if seeds[0][regime].get("atm")]
    if not regimes:
        return None
    figure, [ax] = _axes(1, 4.6, 3.2)
    for place, regime in enumerate(regimes):
        rounds = [run["rounds"] for run in seeds[0][regime]["atm"]]
        for kind, style in (("plain", "-"), ("tuned", "--")):
            runs = zip(*(seed[regime]["atm"] for seed in seeds), strict=True)
            values = [100 * fmean(run[kind]["absolute"] for run in of_seeds) for of_seeds in runs]
            named = "as it is" if kind == "plain" else "best factor"
            ax.plot(rounds, values, style, marker="o", color=f"C{place}", label=f"{regime}, {named}")
        if "joint" in seeds[0][regime]:
            ceiling = 100 * fmean(seed[regime]["joint"]["absolute"] for seed in seeds)
            ax.axhline(ceiling, color=f"C{place}", lw=1, ls=":", label=f"{regime}, joint training")
    ax.set_xlabel("rounds, at equal training steps")
    ax.set_xticks(rounds)
    ax.set_ylabel("mean test metric, %")
    ax.legend(frameon=False, fontsize="small")
    return figure


def _negation(seeds: Sequence[Result]) -> "Figure | None":
    regimes = [regime for regime in seeds[0] if seeds[0][regime].get("negation")]
    if not regimes:
        return None
    blocks = seeds[0][regimes[0]]["negation"]
    columns = min(len(blocks), 4)
    labels = {label for regime in regimes for label in seeds[0][regime]["negation"][0]["rows"]}
    wide = len({seeds[0][regime]["space"] for regime in regimes}) + len(regimes) * sum(
        label.startswith("negative") for label in labels
    )
    upright = wide > 5
    figure, axes = _axes(columns, max(3.6, 0.7 + 0.4 * wide), 4.6 if upright else 3.2)
    for place, (ax, block) in enumerate(zip(axes, blocks[:columns], strict=True)):
        bars: dict[str, list[Result]] = {}
        for regime in regimes:
            space = seeds[0][regime]["space"]
            start = "pre-trained" if space == "ordinary" else f"pre-trained,\n{space}"
            bars.setdefault(start, [seed[regime]["negation"][place]["rows"]["pretrained"] for seed in seeds])
            for label in seeds[0][regime]["negation"][place]["rows"]:
                if label.startswith("negative"):
                    named = "random" if "random" in label else "negated"
                    bars[f"{regime}\n{named}"] = [
                        seed[regime]["negation"][place]["rows"][label] for seed in seeds
                    ]
        for shift, kind in ((-0.2, "target"), (0.2, "control")):
            heights = [100 * fmean(cell[kind] for cell in cells) for cells in bars.values()]
            ax.bar([i + shift for i in range(len(bars))], heights, 0.4, label=kind)
        ax.set_xticks(range(len(bars)), list(bars), fontsize="small", rotation=90 if upright else 0)
        ax.set_title(f"forget {block['target']}", fontsize="medium")
        ax.set_ylim(0, 118)  # room for the legend
    axes[0].set_ylabel("test metric, %")
    axes[0].legend(frameon=False, ncols=2, loc="upper left")
    return figure


def _heat_maps(regimes: Result) -> "dict[str, tuple[Callable[[], Figure], str]]":
    """One figure a pair, the regimes side by side on one scale."""
    known = {name: found["disentanglement"] for name, found in regimes.items() if "disentanglement" in found}
    drawn: dict[str, tuple[Callable[[], Figure], str]] = {}
    for place, pair in enumerate(next(iter(known.values()), [])):
        panels = {name: maps[place] for name, maps in known.items()}
        record = {"grid": pair["grid"], "pairs": [{"tasks": pair["tasks"], "panels": panels}]}
        caption = (
            f"Disentanglement error of {' and '.join(pair['tasks'])}: how far the other's vector changes "
            "predictions (above) and representations (below); the best coefficients mostly lie in the square."
        )
        drawn["disentanglement-" + "-".join(pair["tasks"])] = (partial(_heat_map, record), caption)
    return drawn


def _heat_map(record: Result) -> "Figure":
    return disentanglement_figures(record)["figure"]


def _cosine(results: Result, seeds: Sequence[Result]) -> "Figure | None":
    tasks = results["tasks"]
    regimes = [regime for regime in seeds[0] if "cosine" in seeds[0][regime]]
    mean = {
        regime: [
            [fmean(s[regime]["cosine"][i][j] for s in seeds) for j in range(len(tasks))]
            for i in range(len(tasks))
        ]
        for regime in regimes
    }
    off = [
        abs(m[i][j]) for m in mean.values() for i in range(len(tasks)) for j in range(len(tasks)) if i != j
    ]
    top = max([0.1, *off])
    side = 1.6 + 0.45 * len(tasks)
    figure, axes = _axes(len(regimes), side, side)
    for ax, regime in zip(axes, regimes, strict=True):
        image = ax.imshow(mean[regime], vmin=-top, vmax=top, cmap="RdBu_r")
        for i, row in enumerate(mean[regime]):
            for j, value in enumerate(row):
                ax.text(
                    j,
                    i,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if abs(value) > 0.6 * top else "black",
                )
        ax.set_xticks(range(len(tasks)), tasks, rotation=35, ha="right")
        ax.set_yticks(range(len(tasks)), tasks)
        ax.set_title(regime, fontsize="medium")
    figure.colorbar(image, ax=axes, shrink=0.7)
    return figure
