"""How much an edit changed, as measured while it was written."""

import math
from collections.abc import Mapping

from taskvec.weights import Weights, change
from taskvec.weights.change import Change


def summarize_change(changes: Mapping[str, Change] | None) -> dict[str, int | float]:
    """How many tensors changed, which share of all entries, and the norm of the edit in units of the base's.

    Empty for weights that were not written; without the norm where it is not finite, as for a base of zeros.
    """
    if changes is None:
        return {}
    whole = change.total(changes.values())
    record = {
        "changed tensors": sum(bool(tensor.changed) for tensor in changes.values()),
        "changed share": _rounded(whole.share),
    }
    return record | ({"relative norm": _rounded(whole.relative)} if math.isfinite(whole.relative) else {})


def note_identity(written: Weights, inputs: Mapping[str, Weights]) -> list[str]:
    """A note if the output is byte-identical to one of its inputs.

    Cost: none where inputs were fingerprinted while they were read.
    """
    fingerprint = written.fingerprint()
    same = next((name for name, held in inputs.items() if held.fingerprint() == fingerprint), None)
    return [] if same is None else [f"the output is byte-identical to {same}: the edit changed nothing of it"]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
