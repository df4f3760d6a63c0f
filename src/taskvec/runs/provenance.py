"""Which record every figure of a page comes from."""

from collections.abc import Iterator, Sequence

from taskvec.reports.numbers import NOTHING
from taskvec.reports.tables import Table
from taskvec.studies.record import Plain
from taskvec.studies.study import Results

_TOLD = ("name", "task", "target", "tasks", "pair", "rounds")
"""Fields that tell the records of a kind apart, the most telling first."""


def table_of_records(results: Results) -> Table:
    """A row a record: where it belongs, what it is about, and its key in ``records.jsonl``."""
    rows = list(_rows(results, ""))
    if results.untrained:
        rows += _rows(results.untrained, "before pre-training: ")
    note = "Lines of records.jsonl by their key; a dash stands for a cell that failed and left none."
    return Table("Records", ("kind", "regime", "seed", "of", "key"), rows, note)


def _rows(results: Results, model: str) -> Iterator[Sequence[object]]:
    for (kind, regime, seed), cells in results.cells.items():
        for key, cell in zip(results.keys[kind, regime, seed], cells, strict=True):
            yield f"{model}{kind}", regime, seed if regime else "", _about(cell), key or NOTHING


def _about(cell: Plain) -> str:
    told = next((cell[field] for field in _TOLD if cell.get(field)), "")
    return " + ".join(map(str, told)) if isinstance(told, list | tuple) else str(told)
