"""Figures: what they share, and when they need not be drawn again."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from xxhash import xxh3_128

from taskvec.writing import remove

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


@dataclass(frozen=True)
class Drawing:
    """A figure that is drawn on demand: ``name`` is its file's, without the ending."""

    name: str
    caption: str
    draw: "Callable[[], Figure]"


def draw_all(
    drawings: Iterable[Drawing], folder: Path, results: str, code: Iterable[Path]
) -> list[tuple[Path, str]]:
    """Draw into ``folder``; the files and their captions. None without matplotlib.

    A figure that the same code drew from the same results stays: drawing takes longer than all else in a run
    that computes nothing. All other PNG files in the folder are removed, and nothing else.

    Args:
        results: all that the figures show.
        code: files of the functions that draw.
    """
    try:
        digest = xxh3_128(version("matplotlib").encode())
    except PackageNotFoundError:
        return []
    digest.update(results.encode())
    for path in sorted(code):
        digest.update(path.read_bytes())
    source = digest.hexdigest()
    kept = _kept(folder, source)
    drawn = []
    for drawing in drawings:
        path = folder / f"{drawing.name}.png"
        if path not in kept:
            drawing.draw().savefig(path, dpi=150, bbox_inches="tight", metadata={"Source": source})
        drawn.append((path, drawing.caption))
    return drawn


def _kept(folder: Path, source: str) -> set[Path]:
    """Figures in ``folder``, which is made, that were drawn from ``source``; other PNG files are removed."""
    if folder.is_symlink() or not folder.is_dir():
        remove(folder)
        folder.mkdir(parents=True)
    kept = set()
    for path in folder.glob("*.png"):
        if path.is_symlink() or not path.is_file() or not _holds(path, source):
            remove(path)
        else:
            kept.add(path)
    return kept


def _holds(path: Path, source: str) -> bool:
    with path.open("rb") as file:
        return source.encode() in file.read(1024)  # where a PNG says what it was drawn from


def grid_of_axes(
    rows: int, columns: int, width: float, height: float, margin: float = 0.6
) -> "tuple[Figure, list[list[Axes]]]":
    """A figure of rows of axes of this size in inches, with a margin for what stands beside them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns + margin, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def axes_in_a_row(columns: int, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    """A figure of axes of this size in inches, open above and to the right."""
    figure, [axes] = grid_of_axes(1, columns, width, height, margin=0)
    for ax in axes:
        hide_spines(ax)
    return figure, axes


def hide_spines(ax: "Axes") -> None:
    """Open axes above and to the right."""
    ax.spines[["top", "right"]].set_visible(False)


def draw_heat_map(
    ax: "Axes", values: Sequence[Sequence[float]], grid: Sequence[float], top: float
) -> "AxesImage":
    """Values, up to ``top``, at two coefficients: the first runs to the right, the second upwards.

    Cells are centred on points of the grid; a square shows where coefficients are mostly chosen.
    """
    step = grid[1] - grid[0]
    edges = (grid[0] - step / 2, grid[-1] + step / 2)
    upwards = list(zip(*values, strict=True))
    image = ax.imshow(
        upwards, origin="lower", extent=(*edges, *edges), vmin=0, vmax=top, cmap="viridis", aspect="equal"
    )
    ax.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], color="red", lw=1.5)
    ax.set_xlim(*edges)
    ax.set_ylim(*edges)
    return image


def label_axes(
    ax: "Axes", x: str, y: str = "", title: str = "", legend: Literal["best", "lower right"] | None = None
) -> None:
    """Words at axes, and a legend if it has a place."""
    ax.set_xlabel(x)
    if y:
        ax.set_ylabel(y)
    if title:
        ax.set_title(title, fontsize="medium")
    if legend:
        ax.legend(frameon=False, fontsize="small", loc=legend)


def name_ticks(ax: "Axes", names: Sequence[str], size: str = "medium") -> None:
    """Write the names of a matrix's rows and columns."""
    ax.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=size)
    ax.set_yticks(range(len(names)), names, fontsize=size)


def number_cells(
    ax: "Axes", values: Sequence[Sequence[float]], form: str, dark: Callable[[float], bool]
) -> None:
    """Numbers on the cells of a matrix, in white where the cell is dark; none where there is no number."""
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value == value:
                color = "white" if dark(value) else "black"
                ax.text(j, i, form.format(value), ha="center", va="center", fontsize=7, color=color)
