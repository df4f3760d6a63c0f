"""The results store: a finished cell is never computed twice, a killed run never spoils the folder."""

import json
import os
from pathlib import Path

import pytest

from taskvec.errors import CorruptFile, InputError, OutputExists
from taskvec.studies.store import Store


def test_a_cell_is_computed_once_and_survives_the_process(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> dict[str, object]:
        calls.append(1)
        return {"value": 0.5, "pair": (1, 2)}

    first = Store(tmp_path / "run").result("cell", {"seed": 0}, compute)
    again = Store(tmp_path / "run").result("cell", {"seed": 0}, compute)
    assert first == again == {"value": 0.5, "pair": [1, 2]}
    assert len(calls) == 1


def test_other_inputs_are_another_cell(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.result("cell", {"seed": 0}, lambda: {"v": 0}) == {"v": 0}
    assert store.result("cell", {"seed": 1}, lambda: {"v": 1}) == {"v": 1}
    assert store.result("other", {"seed": 0}, lambda: {"v": 2}) == {"v": 2}


def test_the_order_of_inputs_does_not_matter(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.result("cell", {"a": 1, "b": 2}, lambda: {"v": 0})
    assert store.has("cell", {"b": 2, "a": 1})


def test_a_line_cut_short_by_a_kill_is_dropped_and_computed_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.result("cell", {"seed": 0}, lambda: {"v": 0})
    store.result("cell", {"seed": 1}, lambda: {"v": 1})
    path = tmp_path / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    resumed = Store(tmp_path)
    assert resumed.has("cell", {"seed": 0})
    assert not resumed.has("cell", {"seed": 1})
    resumed.result("cell", {"seed": 1}, lambda: {"v": 1})
    assert Store(tmp_path).has("cell", {"seed": 1})


def test_a_failed_cell_leaves_no_record(tmp_path: Path) -> None:
    def fail() -> dict[str, object]:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        Store(tmp_path).result("cell", {}, fail)
    assert not Store(tmp_path).has("cell", {})


def test_damage_elsewhere_is_named_and_not_dropped(tmp_path: Path) -> None:
    Store(tmp_path).result("cell", {}, lambda: {"v": 0})
    path = tmp_path / "records.jsonl"
    path.write_text("garbage\n" + path.read_text())
    with pytest.raises(CorruptFile, match=r"records\.jsonl, line 1"):
        Store(tmp_path).has("cell", {})


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExists, match="holds no run"):
        Store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with (
        store.locked(),
        pytest.raises(InputError, match="another run is working"),
        Store(tmp_path).locked(),
    ):
        pass
    with Store(tmp_path).locked():
        pass


def test_nothing_is_touched_before_the_folder_is_held(tmp_path: Path) -> None:
    Store(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExists, match="is a file"):
        Store(tmp_path / "thesis.tex")


def test_starting_anew_removes_what_runs_made_and_nothing_else(tmp_path: Path) -> None:
    Store(tmp_path).result("cell", {}, lambda: {"v": 0})
    (tmp_path / "vectors").mkdir()
    (tmp_path / "thesis.tex").write_text("years of work")
    store = Store(tmp_path)
    with store.locked(fresh=True):
        assert not store.has("cell", {})
        assert not (tmp_path / "vectors").exists()
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_run_that_is_working_is_not_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.result("cell", {}, lambda: {"v": 0})
    with store.locked(), pytest.raises(InputError, match="another run"), Store(tmp_path).locked(fresh=True):
        pass
    assert Store(tmp_path).has("cell", {})


def test_a_result_that_is_no_table_of_figures_is_named(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text('{"key": "k", "cell": "single", "result": 5}\n')
    with pytest.raises(CorruptFile, match=r"records\.jsonl, line 1"):
        Store(tmp_path).has("cell", {})


RECORD = {"cell": "single", "key": "k", "result": {"v": 0.5}}


@pytest.mark.parametrize(
    "line",
    [
        *("[1]", "3", "null", '"text"', "[" * 100_000, "9" * 6000, r'{"key": "\ud800"}', "\x00", "\xff", ""),
        *(json.dumps({**RECORD, field: value}) for field in RECORD for value in (None, 3, [], ["x"], True)),
        '{"key": "a", "cell": "b", "result": {}, "key": "c"}',
        json.dumps({**RECORD, "digest": "of another result"}),
        json.dumps({**RECORD, "digest": [3]}),
    ],
)
def test_a_line_of_any_other_shape_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes((json.dumps(RECORD) + "\n" + line + "\n").encode("latin-1"))
    with pytest.raises(CorruptFile, match=r"records\.jsonl, line 2: .*remove the line to compute it again$"):
        Store(tmp_path).has("cell", {})


def test_a_figure_that_was_changed_is_not_taken_for_a_measured_one(tmp_path: Path) -> None:
    Store(tmp_path).result("cell", {"seed": 0}, lambda: {"accuracy": 0.5, "pair": (1, float("nan"))})
    assert Store(tmp_path).has("cell", {"seed": 0})
    path = tmp_path / "records.jsonl"
    path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(CorruptFile, match="line 1: was changed after a run wrote it"):
        Store(tmp_path).has("cell", {"seed": 0})


@pytest.mark.parametrize("text", ["years of work", '{"step": 1}', json.dumps(RECORD) + "\nyears of work"])
def test_what_no_run_wrote_is_not_cut(tmp_path: Path, text: str) -> None:
    (tmp_path / "records.jsonl").write_text(text)
    with pytest.raises(CorruptFile, match="not a record of a run"):
        Store(tmp_path).has("cell", {})
    assert (tmp_path / "records.jsonl").read_text() == text


def test_records_that_are_no_plain_file_are_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "records.jsonl")
    with pytest.raises(InputError, match="is a pipe, expected a file"):
        Store(tmp_path).has("cell", {})
