"""Charts of how far two tasks' vectors disturb each other."""

from collections.abc import Iterator, Mapping, Sequence

from taskvec.reports.charts.heat import Heat, Plane, all_values
from taskvec.reports.charts.matrix import Tint

_KINDS = {
    "prediction": ("", "ξ (0 to 2)", 2.0, "predictions"),
    "feature_kl": ("-representations", "KL", None, "representations"),
}
"""Ends of names, units, ceilings and words of the distances that are drawn."""


def heat_maps(
    tasks: Sequence[str],
    grid: Sequence[float],
    maps: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
    more: str = "",
) -> Iterator[Heat]:
    """A chart a distance, its panels on one scale.

    Args:
        maps: by panel and distance; rows are values of the first task's coefficient.
    """
    first, second = tasks
    for kind, (end, unit, ceiling, what) in _KINDS.items():
        planes = [Plane(name, of[kind]) for name, of in maps.items() if kind in of]
        caption = (
            f"Disentanglement error of {first} and {second}: how far the other's vector changes {what}; the "
            f"best coefficients mostly lie in the square. {more}"
        ).rstrip()
        top = max([0.0, *all_values(planes)]) or 1.0
        tint = Tint(0.0, min(top, ceiling or top), unit)
        if planes:
            names = (f"α of {first}", f"α of {second}")
            yield Heat(f"disentanglement-{first}-{second}{end}", caption, names, grid, planes, tint)
