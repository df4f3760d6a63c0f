"""``run.json`` and ``records.jsonl`` say all that a report shows."""

import json
import shutil
from pathlib import Path

import pytest

from taskvec.cli import main
from taskvec.errors import CorruptFile, InputError
from taskvec.reports.page import render_page
from taskvec.runs.manifest import read_run
from taskvec.runs.report import facts_of, page_of, tables_of


def run(text: str, folder: Path) -> Path:
    path = folder / "it.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(path), "-o", str(folder / "run"), "--quiet"])
    assert stopped.value.code == 0
    return folder / "run"


@pytest.fixture(scope="module", params=["tiny", "spaces"])
def finished(
    request: pytest.FixtureRequest,
    tiny_experiment: str,
    spaces_experiment: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    texts = {"tiny": tiny_experiment, "spaces": spaces_experiment}
    return run(texts[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture
def moved(finished: Path, tmp_path: Path) -> Path:
    """The run, where neither model nor data is."""
    return Path(shutil.copytree(finished, tmp_path / "elsewhere"))


def test_a_run_is_read_back_from_its_records(moved: Path) -> None:
    results = read_run(moved)
    facts = json.loads((moved / "results.json").read_text())
    assert json.loads(json.dumps(facts_of(results))) == facts
    shown = (moved / "report.md").read_text()
    tables = tables_of(results)
    assert len(tables) > 4 and all(table.markdown() in shown for table in tables)


def test_a_page_says_nothing_of_the_folders_of_who_ran_it(moved: Path, tiny_suite: Path) -> None:
    assert str(tiny_suite.parent) not in json.dumps(json.loads((moved / "run.json").read_text())["suite"])
    page = render_page(page_of(read_run(moved), {}))
    assert "default-src &#39;none&#39;" in page and "</html>" in page


def test_a_run_at_work_is_read_and_left_alone(moved: Path) -> None:
    path = moved / "records.jsonl"
    path.write_bytes(path.read_bytes() + b'{"cell": "addi')
    before = path.read_bytes()
    assert tables_of(read_run(moved))
    assert path.read_bytes() == before


def test_what_is_no_run_is_said(moved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no records\.jsonl"):
        read_run(tmp_path)
    manifest = json.loads((moved / "run.json").read_text())
    for change, said in (
        ({"studies": {"magic": {}}}, "none is called 'magic'"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"studies": {"addition": {"subsets": "some"}}}, "addition"),
        ({"experiment": {"experiment": "x"}}, "experiment: model"),
        ({"suite": {"suite": "x", "tasks": {}}}, "suite: tasks"),
    ):
        (moved / "run.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(InputError, match=said):
            read_run(moved)
    (moved / "run.json").unlink()
    with pytest.raises(InputError, match="run its experiment again in this folder"):
        read_run(moved)


def test_a_record_that_is_missing_is_said(moved: Path) -> None:
    path = moved / "records.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(CorruptFile, match="run the experiment again"):
        read_run(moved)
