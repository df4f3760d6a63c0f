"""What the commands that learn coefficients share: settings as options, and what lies beside the vector."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from taskvec.cli._common import print_table, say
from taskvec.coefficients.settings import CoefficientSettings
from taskvec.errors import InputError, OutputExists
from taskvec.training.regimes import Space

if TYPE_CHECKING:
    from taskvec.coefficients.learned import Learned
    from taskvec.models.backbone import Backbone


class Changes(CoefficientSettings):
    """Settings that are given; whether they go together shows when the preset's are beside them."""

    @model_validator(mode="after")
    def _honest(self) -> Self:
        return self

    @model_validator(mode="after")
    def _possible(self) -> Self:
        return self


def _beside(output: Path) -> dict[str, Path]:
    stem = output.name.removesuffix(".safetensors")
    return {kind: output.with_name(f"{stem}.{kind}") for kind in ("coefficients.json", "recipe.yaml", "png")}


def check_beside(output: Path, *, force: bool) -> None:
    """Refuse to write over what is there. Raises: OutputExists."""
    for path in _beside(output).values():
        if os.path.lexists(path) and not force:
            raise OutputExists(f"{path}: exists already; --force replaces it")


def write_beside(
    output: Path, learned: "Learned", backbone: "Backbone", paths: Mapping[str, str], space: Space
) -> Iterator[Path]:
    """Write coefficients, recipe and map; their paths. What cannot be is left out and said."""
    import yaml

    from taskvec.reading import exists, local_path
    from taskvec.writing import replace_text, write_json

    places = _beside(output)
    for path in places.values():  # of an earlier merge, that --force replaces
        path.unlink(missing_ok=True)
    write_json(places["coefficients.json"], learned.record())
    yield places["coefficients.json"]

    def absolute(ref: str) -> str:
        place, hash_, rest = ref.partition("#")
        return f"{local_path(place).absolute()}{hash_}{rest}" if exists(local_path(place)) else ref

    try:
        if space == "tangent" or not isinstance(backbone.source, str | Path):
            raise InputError("recipe: none describes a model in tangent space, or one that a function gives")
        made = learned.recipe(
            absolute(str(backbone.source)), {n: absolute(path) for n, path in paths.items()}
        )
        replace_text(places["recipe.yaml"], yaml.safe_dump(made, sort_keys=False))
        yield places["recipe.yaml"]
    except InputError as error:
        say([str(error)])
    try:
        learned.draw().draw().savefig(places["png"], dpi=150, bbox_inches="tight")
        yield places["png"]
    except ImportError:
        say(["no map of the coefficients: matplotlib is not installed (pip install 'taskvec[plots]')"])


def print_learned(learned: "Learned") -> None:
    """A row a vector, and what the coefficients were learned from."""
    rows = [
        [label, f"{sum(of) / len(of):.3f}", f"{min(of):.3f}", f"{max(of):.3f}"]
        for label, of in ((label, list(values.values())) for label, values in learned.coefficients.items())
    ]
    consumed = ", ".join(learned.consumed) or "nothing"
    trace = f"objective {learned.trace[0]:.4g} → {learned.trace[-1]:.4g}; " if learned.trace else ""
    note = f"{trace}{learned.count} numbers, learned from: {consumed}"
    print_table("coefficients", ["vector", "mean", "least", "most"], rows, note)
