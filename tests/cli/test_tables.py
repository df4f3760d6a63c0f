"""Tables on terminals of any width."""

import re
from io import StringIO

import pytest
from rich.console import Console

from taskvec.cli._tables import Cells, make_tables

TASKS = [f"task-{place:02}" for place in range(20)]
FIGURES = [[f"{row}{place:02}.5" for place in range(20)] for row in range(2)]


def _shown(cells: Cells, width: int) -> list[str]:
    console = Console(file=StringIO(), width=width)
    for table in make_tables(cells, width):
        console.print(table)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def _of_tasks() -> Cells:
    rows = [["zero-shot", *FIGURES[0]], ["the sum of all", *FIGURES[1]]]
    return Cells(["", *TASKS], rows, {1: "consumed: validation labels"}, [False] + [True] * 20)


@pytest.mark.parametrize("width", [32, 44, 80, 140, 400])
def test_no_figure_of_twenty_tasks_is_lost_or_broken(width: int) -> None:
    shown = _shown(_of_tasks(), width)
    assert all(len(line) <= width for line in shown)
    found = re.findall(r"[\w.-]+", "\n".join(shown))
    for word in (*TASKS, *FIGURES[0], *FIGURES[1]):
        assert found.count(word) == 1


@pytest.mark.parametrize("width", [26, 30, 38, 60])
def test_lines_break_between_words(width: int) -> None:
    rows = [["single-task models", "1.5 searched", "[97.2, 100.0]"]]
    cells = Cells(["", "α", "95 %"], rows, {0: "consumed: labels"}, [False] * 3)
    shown = _shown(cells, width)
    assert all(len(line) <= width for line in shown)
    for word in ("single-task", "models", "searched", "[97.2,", "100.0]", "consumed:", "labels"):
        assert any(word in line for line in shown)


def test_a_word_longer_than_the_terminal_is_folded() -> None:
    shown = _shown(Cells(["path", "x" * 90], [["norm", "1.2"]], {}, [False] * 2), 40)
    assert sum(line.count("x") for line in shown) == 90
    assert all(len(line) <= 40 for line in shown)


def test_tables_that_fit_keep_their_frame() -> None:
    (table,) = make_tables(Cells(["a", "b"], [["c", "d"]], {}, [False] * 2), 80)
    assert table.box is not None
    assert table.show_edge
