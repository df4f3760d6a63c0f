"""How task vectors lie to each other: angles, norms, signs and ranks, tensor by tensor, without any model."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from taskvec.errors import InputError
from taskvec.progress import Watch, unwatched
from taskvec.reports.drawing import hide_spines, name_ticks, number_cells
from taskvec.reports.numbers import Mean, percent
from taskvec.reports.tables import Table
from taskvec.studies.analysis import Analysis, AnalysisRecord, Say, load_labelled
from taskvec.studies.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from taskvec.vectors import TaskVector

Matrix = list[list[float]]


class SimilarityAnalysis(Analysis):
    """Compare task vectors: angles, norms, sign conflicts and ranks, overall and by layer. Needs no model.

    Example: `taskvec analyze similarity runs/text4/vectors/seed0/full/*.safetensors -o angles`
    """

    vectors: tuple[str, ...]
    """Two or more task-vector files of one base, of any tasks and regimes."""
    ranks: bool = True
    """Effective ranks take the singular values of every matrix, most of the work."""

    def measure(self, watch: Watch, say: Say) -> "SimilarityRecord":
        """Every pair of vectors."""
        vectors = load_labelled(self.vectors)
        files = {label: vector.ref for label, vector in vectors.items()}
        record = compare_vectors(vectors, ranks=self.ranks, watch=watch)
        return record.model_copy(update={"given": {"files": files}})


class LayerSimilarity(Record):
    """The vectors at one layer; the rank of a vector is a mean over matrices of effective / full rank."""

    norms: list[float]
    share: list[float]
    """Of the vector's squared norm."""
    cosine: Matrix
    conflict: Matrix
    agreement: float | None
    effective_rank: list[float | None]

    def cells(self) -> tuple[Mean, ...]:
        """Means over vectors, or pairs of them."""
        return (
            Mean(self.share, scale=100, spread=False),
            Mean(_below_diagonal(self.cosine), ".3f", spread=False),
            Mean(_below_diagonal(self.conflict), scale=100, spread=False),
            percent([self.agreement]),
            Mean(self.effective_rank, scale=100, spread=False),
        )


class SimilarityRecord(AnalysisRecord):
    """The vectors overall and by layer."""

    analysis: Literal["similarity"] = "similarity"
    base: dict[Literal["ref", "fingerprint"], str | None]
    vectors: list[str]
    norms: list[float]
    cosine: Matrix
    conflict: Matrix
    agreement: float | None
    rank_of_set: float
    effective_rank: list[float | None]
    layers: dict[str, LayerSimilarity]

    def tables(self) -> Iterator[Table]:
        """Cosines with norms; sign conflicts; layers."""
        numbers = [str(place) for place, _ in enumerate(self.vectors, start=1)]
        labels = [f"{number}: {name}" for number, name in zip(numbers, self.vectors, strict=True)]
        cosines = [
            (label, Mean([norm], ".3g"), percent([rank]), *(Mean([value], ".3f") for value in row))
            for label, norm, rank, row in zip(
                labels, self.norms, self.effective_rank, self.cosine, strict=True
            )
        ]
        note = (
            "Rank: mean over matrices of effective / full rank. "
            f"As many directions as {self.rank_of_set:.2f} orthogonal vectors of equal length."
        )
        yield Table("Cosines", ("vector", "‖τ‖", "rank %", *numbers), cosines, note)
        conflicts = [
            (label, *(percent([value]) for value in row))
            for label, row in zip(labels, self.conflict, strict=True)
        ]
        note = (
            "Per cent of the entries that both vectors move, in opposite directions; 50 for unrelated ones. "
            f"Of entries that two or more move, {percent([self.agreement])} % go the same way in all."
        )
        yield Table("Sign conflicts", ("vector", *numbers), conflicts, note)
        note = (
            "Means over vectors, or pairs of them. Share: of the squared norm. Agreement: entries that two "
            "or more vectors move, all in one direction."
        )
        columns = ("layer", "share %", "cosine", "conflict %", "agreement %", "rank %")
        yield Table("Layers", columns, [(name, *layer.cells()) for name, layer in self.layers.items()], note)

    def figures(self) -> "dict[str, Figure]":
        """Cosines and sign conflicts of pairs above; norms, ranks and cosines by layer below."""
        from matplotlib.figure import Figure

        label, tick = (0.09 * max(map(len, names)) for names in (self.vectors, self.layers))
        side = 0.42 * len(self.vectors) + label
        width, below = max(2 * side + 3.5, 3 * (0.24 * len(self.layers) + 1.2), 9), 3.4 + tick
        figure = Figure(figsize=(width, side + below), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=[side, below])  # an array; its stub says one
        top, bottom = halves[0].subplot_mosaic("AB"), halves[1].subplot_mosaic("CDE")
        self._draw_pairs(top["A"], top["B"])
        self._draw_layers(bottom["C"], bottom["D"], bottom["E"])
        handles = bottom["C"].get_legend_handles_labels()
        halves[1].legend(*handles, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
        return {"figure": figure}

    def _draw_pairs(self, left: "Axes", right: "Axes") -> None:
        reach = max([0.1, *map(abs, _below_diagonal(self.cosine))])
        self._draw_matrix(left, self.cosine, (0, reach), "RdBu_r", "{:.2f}", "cosine")
        conflict = [[100 * value for value in row] for row in self.conflict]
        reach = max([5.0, *(abs(value - 50) for value in _below_diagonal(conflict))])
        # White at 50 %, where signs are unrelated.
        self._draw_matrix(right, conflict, (50, reach), "PuOr_r", "{:.0f}", "opposite signs, %")

    def _draw_matrix(
        self, ax: "Axes", values: Matrix, scale: tuple[float, float], colours: str, form: str, label: str
    ) -> None:
        middle, reach = scale
        image = ax.imshow(values, vmin=middle - reach, vmax=middle + reach, cmap=colours)
        number_cells(ax, values, form, lambda value: abs(value - middle) > 0.6 * reach)
        name_ticks(ax, self.vectors, "small")
        ax.figure.colorbar(image, ax=ax, label=label, shrink=0.8)

    def _draw_layers(self, norm: "Axes", rank: "Axes", cosine: "Axes") -> None:
        layers = self.layers.values()
        for index, name in enumerate(self.vectors):
            style: dict[str, Any] = {"marker": "o", "ms": 3.5, "lw": 0.5, "color": f"C{index % 10}"}
            ranks = [layer.effective_rank[index] for layer in layers]
            norm.plot([layer.norms[index] or math.nan for layer in layers], label=name, **style)
            rank.plot([math.nan if value is None else 100 * value for value in ranks], **style)
        for place, layer in enumerate(layers):
            pairs = _below_diagonal(layer.cosine)
            cosine.plot([place] * len(pairs), pairs, "o", ms=3.5, color="black", alpha=0.35)
        cosine.axhline(0, lw=0.8, color="grey")
        labels = {norm: "norm", rank: "effective rank, % of full", cosine: "cosine of every pair"}
        for ax, label in labels.items():
            ax.set_ylabel(label)
            ax.set_xticks(range(len(layers)), list(self.layers), rotation=60, ha="right", fontsize="small")
            hide_spines(ax)
        for ax in (norm, rank):
            ax.set_ylim(bottom=0)


def _below_diagonal(matrix: Matrix) -> list[float]:
    return [value for i, row in enumerate(matrix) for value in row[:i]]


def compare_vectors(
    vectors: "Mapping[str, TaskVector]", *, ranks: bool = True, watch: Watch = unwatched
) -> SimilarityRecord:
    """Cosines, norms, sign conflicts and ranks of a set of task vectors, overall and by layer.

    Args:
        vectors: under labels.
        ranks: also the singular values of every matrix, most of the work.

    Raises: InputError for fewer than two vectors; NonFinite for NaN or infinity in one; BaseMismatch unless
        all have the same base.
    Cost: every tensor is read once a vector; memory of a few tensors.
    """
    import torch

    from taskvec.studies.numerics.similarity import compare_layers, rank_of_set
    from taskvec.vectors.base import shared_base

    if len(vectors) < 2:
        raise InputError(f"similarity: {len(vectors)} vector given, expected two or more")
    chosen = list(vectors.values())
    base = chosen[0].base
    for vector in chosen[1:]:
        base = shared_base(vector.ref, base, vector.base)
    layers = compare_layers(chosen, ranks=ranks, watch=watch)
    if not layers:
        raise InputError("similarity: every vector is zero")
    products = torch.stack([layer.products for layer in layers.values()]).sum(0)
    squares = products.diagonal().clamp_min(torch.finfo(torch.float64).tiny)
    first, *others = layers.values()
    whole = replace(sum(others, start=first), products=products)
    return SimilarityRecord(
        base={"ref": base.ref, "fingerprint": base.fingerprint()},
        vectors=list(vectors),
        rank_of_set=rank_of_set(products),
        layers={
            name: LayerSimilarity(share=(layer.products.diagonal() / squares).tolist(), **layer.numbers())
            for name, layer in layers.items()
        },
        **whole.numbers(),
    )
