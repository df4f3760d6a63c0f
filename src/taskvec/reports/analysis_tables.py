"""Records of analyses as tables."""

from collections.abc import Mapping, Sequence
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
        f"ξ: mean over a region of the predictions on {'–'.join(map(str, sizes))} {record['split']} examples a "
        "task that the other task's vector changes, per cent, summed over both tasks (0 to 200). KL: the same "
        "with a divergence over (0, 1]², of features (before the head) and outputs (behind it). Share: that "
        "divergence in per cent of the one from the pre-trained model; head effect: outputs less features."
    )
    return [Table("Weight disentanglement", columns, tuple(rows), note)]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _cells(values: Sequence[float | None]) -> tuple[str, ...]:
    return tuple(map(_percent, values))
