"""Records of analyses as tables."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from taskvec.reports.tables import Table

Record = Mapping[str, Any]


def disentanglement_tables(record: Record) -> list[Table]:
    """One row a pair and panel."""
    columns = (
        "pair, panel",
        "ξ [−1, 1]²",
        "ξ (0, 1]²",
        "KL features",
        "KL outputs",
        "share features",
        "share outputs",
        "head effect",
    )
    keys = ("box", "quadrant", "features", "outputs", "share_before_head", "share_behind_head", "head_effect")
    rows = []
    for pair in record["pairs"]:
        for label, panel in pair["panels"].items():
            found = panel["summary"]
            cells = [
                _number(found[key], "{:.4f}") if key in ("features", "outputs") else _percent(found[key])
                for key in keys
            ]
            rows.append((f"{' + '.join(pair['tasks'])}, {label}", *cells))
    sizes = sorted(set(record["examples"].values()))
    note = (
        "ξ: mean over a region of the share of predictions that the other task's vector changes, per cent, "
        f"summed over both tasks (0 to 200); {'–'.join(map(str, sizes))} {record['split']} examples a task. "
        "KL: the same with a divergence over (0, 1]², of features (before the head) and outputs (behind it). "
        "Share: that divergence in per cent of the one from the pre-trained model; head effect: outputs less "
        "features."
    )
    return [Table("Weight disentanglement", columns, tuple(rows), note)]


def similarity_tables(record: Record) -> list[Table]:
    """Cosines with norms; sign conflicts; layers."""
    names = record["vectors"]
    numbers = [str(place + 1) for place in range(len(names))]
    labels = [f"{number}: {name}" for number, name in zip(numbers, names, strict=True)]
    cosines = [
        (label, f"{norm:.3g}", _percent(rank), *(f"{value:.3f}" for value in row))
        for label, norm, rank, row in zip(
            labels, record["norms"], record["effective_rank"], record["cosine"], strict=True
        )
    ]
    conflicts = [
        (label, *(_percent(value) for value in row))
        for label, row in zip(labels, record["conflict"], strict=True)
    ]
    layers = [
        (
            name,
            _percent(_mean(layer["share"])),
            f"{_off_diagonal(layer['cosine']):.3f}",
            _percent(_off_diagonal(layer["conflict"])),
            _percent(layer["agreement"]),
            _percent(_mean(layer["effective_rank"])),
        )
        for name, layer in record["layers"].items()
    ]
    set_rank = f"As many directions as {record['rank_of_set']:.2f} orthogonal vectors of equal length."
    return [
        Table(
            "Cosines",
            ("vector", "‖τ‖", "rank %", *numbers),
            tuple(cosines),
            f"Rank: mean over matrices of effective / full rank. {set_rank}",
        ),
        Table(
            "Sign conflicts",
            ("vector", *numbers),
            tuple(conflicts),
            "Per cent of the entries that both vectors move, in opposite directions; 50 for unrelated ones. "
            f"Of entries that two or more move, {_percent(record['agreement'])} % go the same way in all.",
        ),
        Table(
            "Layers",
            ("layer", "share %", "cosine", "conflict %", "agreement %", "rank %"),
            tuple(layers),
            "Means over vectors, or pairs of them. Share: of the squared norm. Agreement: entries that two "
            "or more vectors move, all in one direction.",
        ),
    ]


def linearity_tables(record: Record) -> list[Table]:
    """One row a regime and task; then the non-linear advantage."""
    values = record["coefficients"]
    last = values.index(1.0)
    rows = []
    for name, regime in record["regimes"].items():
        for task, found in regime["tasks"].items():
            f, linear = found["accuracy"][last], found["accuracy_linear"][last]
            cells = map(_percent, (found["gap"][0], found["gap"][last], f, linear, f - linear))
            rows.append((f"{task}, {name}", _percent(record["pretrained"][task]), *cells))
    sizes = sorted(set(record["examples"].values()))
    first = f"gap at {values[0]:g}"
    advantage = [
        (label, *(_percent(found["tasks"][task]) for task in record["tasks"]), _percent(found["mean"]))
        for label, found in record["advantage"].items()
    ]
    tables = [
        Table(
            "Linearity",
            ("task, regime", "pre-trained", first, "gap at 1", "f", "linearized", "difference"),
            tuple(rows),
            "Per cent. Gap: distance of a model's features from those of its linearization, over their "
            "distance from the pre-trained ones. f and linearized: accuracy of the same vector at coefficient"
            f" 1 in both spaces, {'–'.join(map(str, sizes))} {record['split']} examples a task.",
        )
    ]
    if advantage:
        tables.append(
            Table(
                "Non-linear advantage",
                ("", *record["tasks"], "mean"),
                tuple(advantage),
                "Accuracy of f less that of the linear model, in per cent of the range above chance.",
            )
        )
    return tables


def gradients_tables(record: Record) -> list[Table]:
    """One row a number of steps: what is left at the smallest rate, and the order in the rate."""
    rows = []
    for k, found in record["steps"].items():
        at = found["rates"].index(min(found["rates"]))
        slopes = (_number(found["slopes"][kind], "{:.2f}") for kind in ("first", "second"))
        left = (found[kind][at] / (found["vector"][at] or 1) for kind in ("first", "second"))
        rows.append((k, *(f"{value:.1e}" for value in left), *slopes))
    note = (
        f"Residual of Σ τ of {', '.join(record['tasks'])} over its norm, at learning rate "
        f"{min(record['rates']):g}, without and with the Hessian term. Order: slope of log residual over log "
        "rate, expected 2 and 3; none where the residual is rounding. "
        f"α = {record['alpha']:.3g}, {sum(record['examples'].values())} examples in all."
    )
    columns = ("steps", "residual", "after the Hessian term", "order", "order after")
    return [Table("Task vectors against multi-task gradients", columns, tuple(rows), note)]


def _off_diagonal(matrix: Sequence[Sequence[float]]) -> float:
    return fmean(value for i, row in enumerate(matrix) for j, value in enumerate(row) if i != j)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
