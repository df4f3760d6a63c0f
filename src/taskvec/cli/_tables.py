"""Tables on a terminal: their lines break between words, as long as there is room for the longest."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.table import Table


@dataclass(frozen=True)
class Cells:
    """What a table shows, as printable text.

    Args:
        heads: of groups of rows, by the place of a group's first row.
        numeric: whether a column is aligned right.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    heads: Mapping[int, str]
    numeric: Sequence[bool]

    def take(self, places: Sequence[int]) -> "Cells":
        """Some of the columns."""
        rows = [[row[place] for place in places] for row in self.rows]
        columns = [self.columns[place] for place in places]
        return Cells(columns, rows, self.heads, [self.numeric[place] for place in places])

    def widths(self) -> tuple[list[int], list[int]]:
        """Of the longest word and the longest cell of every column."""
        held = [[column, *(row[place] for row in self.rows)] for place, column in enumerate(self.columns)]
        held[0] += self.heads.values()
        return [max(map(_longest_word, each)) for each in held], [max(map(cell_len, each)) for each in held]


def make_tables(cells: Cells, room: int) -> Iterator[Table]:
    """One table at most ``room`` columns of a terminal wide, without a frame where the longest words leave it
    no room; several below each other, with the first column in each, where they do not fit at all."""
    least, _ = cells.widths()
    if sum(least) <= room - len(least) + 1:
        yield _make_table(cells, room)
        return
    places = [0]
    for place in range(1, len(least)):
        if len(places) > 1 and sum(least[each] + 3 for each in [*places, place]) >= room:
            yield _make_table(cells.take(places), room)
            places = [0]
        places.append(place)
    yield _make_table(cells.take(places), room)


def _make_table(cells: Cells, room: int) -> Table:
    least, full = cells.widths()
    framed, bare = room - 3 * len(least) - 1, room - len(least) + 1
    table = Table(header_style="bold")
    if framed < sum(least) <= bare:
        table.box, table.show_edge, table.padding = box.SIMPLE, False, 0
        framed = bare
    for column, width, right in zip(cells.columns, _fit(least, full, framed), cells.numeric, strict=True):
        table.add_column(column, justify="right" if right else "left", overflow="fold", width=width)
    for place, row in enumerate(cells.rows):
        if place in cells.heads:
            table.add_section()
            table.add_row(cells.heads[place], style="bold")
        table.add_row(*row)
    return table


def _longest_word(cell: str) -> int:
    return max(map(cell_len, cell.split()), default=0)


def _fit(least: Sequence[int], full: Sequence[int], room: int) -> list[int | None]:
    """Widths of columns: those that lack little get it first. None, for rich to decide, where all fit or even
    the longest words do not."""
    spare = room - sum(least)
    if spare < 0 or sum(full) <= room:
        return [None] * len(least)
    lacking = [most - some for some, most in zip(least, full, strict=True)]
    widths: list[int | None] = [*least]
    for place in sorted(range(len(least)), key=lacking.__getitem__):
        more = min(lacking[place], spare)
        widths[place] = least[place] + more
        spare -= more
    return widths
