"""``taskvec report``: pages and exports of one and of several run folders, from their records alone."""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from language_models import save_language_model
from taskvec.cli import main
from taskvec.runs.comparison import _apart, aligned, changes_of
from taskvec.runs.exports import csv_of, json_of, latex_tables
from taskvec.runs.several import Run, open_runs
from taskvec.studies.comparing import entries_of
from taskvec.tasks.score import wilson

Report = Callable[..., tuple[int, str, str]]

EXPERIMENT = """
experiment: {name}
model: {model}
suite: {suite}
training: {{lr: {lr}, steps: 6, batch_size: 16}}
regimes: {{full: {{}}}}
search: {{step: 0.5, coarse: 1, limit: 1}}
addition: {{subsets: whole}}
negation: {{targets: [pets], keep: 0.5, baselines: []}}
inspect: 2
seeds: [0, 1]
{more}
"""


def run(folder: Path, **values: object) -> Path:
    path = folder.with_suffix(".yaml")
    path.write_text(EXPERIMENT.format(**{"name": "tiny", "lr": 2e-3, "more": "", **values}))
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(path), "-o", str(folder), "--quiet"])
    assert stopped.value.code == 0
    return folder


@pytest.fixture(scope="module")
def made(tiny_model: Path, tiny_suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ in the learning rate; the second also compares methods."""
    folder = tmp_path_factory.mktemp("runs")
    model = {"model": tiny_model, "suite": tiny_suite}
    run(folder / "one", **model)
    run(folder / "two", lr=4e-3, more="methods: {rules: [ties], coefficient: default}", **model)
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """The same where neither model nor data is."""
    for name in ("one", "two"):
        shutil.copytree(made / name, tmp_path / name, ignore=shutil.ignore_patterns("vectors", "figures"))
    return tmp_path


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(["report", *map(str, arguments)])
        told = capsys.readouterr()
        return int(stopped.value.code or 0), told.out, told.err

    return call


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_page_of_a_run_is_made_again(runs: Path, report: Report) -> None:
    (runs / "one" / "report.html").unlink()
    assert report(runs / "one") == (0, f"Written: {runs / 'one' / 'report.html'}\n", "")
    page = (runs / "one" / "report.html").read_text()
    for said in (
        "Training, step by step",
        "Cost",
        "Single tasks",
        "Negation of pets",
        "Inputs and mistakes",
        "default-src",
    ):
        assert said in page


def test_every_figure_is_a_line_and_leads_to_its_record(runs: Path, report: Report) -> None:
    code, out, _ = report(runs / "one", "--csv")
    rows = rows_of(out)
    records = [json.loads(line) for line in (runs / "one" / "records.jsonl").read_text().splitlines()]
    by_key = {record["key"]: record for record in records}
    assert code == 0 and {row["run"] for row in rows} == {"tiny"}
    assert all(row["key"] in by_key for row in rows)
    assert {row["study"] for row in rows} >= {"zero-shot", "single", "addition", "negation", "geometry"}
    for record in records:
        if record["cell"] != "addition":
            continue
        mine = [row for row in rows if row["key"] == record["key"]]
        best = {row["task"] or row["metric"]: row for row in mine if not row["row"]}
        result = record["result"]
        for task, score in result["test"].items():
            assert float(best[task]["value"]) == score["value"]
            assert [float(best[task]["low"]), float(best[task]["high"])] == pytest.approx(score["interval"])
            assert int(best[task]["n"]) == score["examples"]
        assert float(best["absolute"]["value"]) == result["absolute"]
        assert {float(row["coefficient"]) for row in best.values()} == {result["coefficient"]}
        assert {row["row"] for row in mine} == {"", "fixed 1", "fixed 1/T"}


def test_intervals_of_shares_are_wilsons(runs: Path) -> None:
    [one] = open_runs([runs / "one"])
    of = [fact for fact in one.facts if fact.study == "single" and fact.task]
    assert of and all(fact.n == 48 and fact.interval == wilson(round(48 * fact.value), 48) for fact in of)


def test_a_csv_holds_no_formulas(runs: Path) -> None:
    path = runs / "one" / "run.json"
    path.write_text(path.read_text().replace('"experiment":"tiny"', '"experiment":"=cmd|calc"'))
    assert {row["run"] for row in rows_of(csv_of(open_runs([runs / "one"])))} == {"'=cmd|calc"}


def test_two_runs_are_aligned_and_what_changed_is_said(runs: Path, report: Report) -> None:
    page = runs / "both.html"
    assert report(runs / "one", runs / "two", "-o", page)[0] == 0
    first, second = open_runs([runs / "one", runs / "two"])
    assert (first.label, second.label) == ("one", "two")
    differs, same, by_task, *beside = aligned([first, second])
    rows = {str(row[0]): list(map(str, row[1:])) for row in differs.rows}
    assert rows["training.lr"] == ["0.002", "0.004"] and "seeds" not in rows and "data of pets" not in rows
    names = [str(row[0]) for row in same.rows]
    assert any(name.startswith("ties, full") and name.endswith("(only two)") for name in names)
    assert any("addition, full, α searched" in name and "only" not in name for name in names)
    assert "Negation" in [table.title for table in beside] and by_task.columns[1:] == tuple(first.tasks)
    for change in changes_of(first, second).values():
        before, after = change.shown
        if change.test is not None:
            assert change.test.mean == pytest.approx(after - before, abs=1e-9)
            assert change.p is not None and change.test.p <= change.p <= 1
    text = page.read_text()
    assert "What changed" in text and "training.lr" in text


def test_a_run_beside_its_copy_changed_in_nothing(runs: Path) -> None:
    shutil.copytree(runs / "one", runs / "copy")
    first, copy = open_runs([runs / "one", runs / "copy"])
    assert next(table.title for table in aligned([first, copy])) == "The same models"
    changes = changes_of(first, copy)
    assert changes and all(change.shown[0] == change.shown[1] for change in changes.values())
    assert all(change.p == 1 for change in changes.values() if change.test)
    for entry in json_of([first, copy])["compared"]:
        assert len(set(entry["values"].values())) == 1


def test_twenty_runs_are_one_page(runs: Path, report: Report) -> None:
    folders = [shutil.copytree(runs / "one", runs / f"copy{number}") for number in range(20)]
    assert report(*folders, "-o", runs / "many.html")[0] == 0
    page = (runs / "many.html").read_text()
    assert "20 runs side by side" in page and "copy19" in page and len(page) < 1_500_000


def test_runs_of_other_tasks_stand_side_by_side(runs: Path, report: Report) -> None:
    path = runs / "two" / "run.json"
    manifest = json.loads(path.read_text())
    manifest["suite"]["tasks"]["pets"]["metric"] = "macro_f1"
    path.write_text(json.dumps(manifest))
    assert report(runs / "one", runs / "two", "-o", runs / "both.html")[0] == 0
    page = (runs / "both.html").read_text()
    assert "do not compare" in page and "The same models" not in page


def test_json_says_its_version_and_all_figures(runs: Path, report: Report) -> None:
    code, out, _ = report(runs / "one", runs / "two", "--json")
    told: dict[str, Any] = json.loads(out)
    assert code == 0 and told["format"] == 1 and [of["label"] for of in told["runs"]] == ["one", "two"]
    first = told["runs"][0]
    assert first["results"]["tasks"] and len(first["figures"]) == len(
        rows_of(csv_of(open_runs([runs / "one"])))
    )
    absolute = [of for of in told["compared"] if of["study"] == "addition" and of["metric"] == "absolute"]
    for of in absolute:
        values = [
            figure["value"]
            for figure in first["figures"]
            if (figure["study"], figure["row"], figure["metric"]) == ("addition", of["row"], "absolute")
        ]
        assert of["values"]["one"] == pytest.approx(fmean(values))


def test_tables_of_a_paper(runs: Path, report: Report) -> None:
    assert report(runs / "two", "--latex", "-o", runs / "tables.tex")[0] == 0
    text = (runs / "tables.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") > 3
    labels = re.findall(r"\\label\{tab:([^}]*)\}", text)
    assert len(set(labels)) == len(labels) and "\\documentclass" not in text and r"\textbf{" in text
    assert latex_tables(open_runs([runs / "one", runs / "two"])).count("What differs") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["one", "two"], "expected -o with the file of the page"),
        (["one", "--csv", "--json"], "expected one of them"),
        (["one", "--csv", "--title", "x"], "--title is of the page"),
        (["one", "one", "-o", "x.html"], "is given twice"),
        (["nowhere"], "no such folder"),
        (["."], "holds no run"),
        (["one", "-o", "there.html"], "exists; --force replaces it"),
        (["one", "-o", "two"], "is a folder, expected a file"),
        (["one", "-o", "no/x.html"], "no such folder"),
        (["analysis"], "holds an analysis, expected a run"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, runs: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    Path("there.html").write_text("mine")
    Path("analysis").mkdir()
    Path("analysis/record.json").write_text("{}")
    code, out, told = report(*arguments)
    assert (code, out) == (2, "") and said in " ".join(told.split()) and told.count("\n") == 1
    assert Path("there.html").read_text() == "mine"


def test_a_run_of_yesterday_and_a_run_cut_short(runs: Path, report: Report) -> None:
    records = runs / "one" / "records.jsonl"
    records.write_bytes(records.read_bytes() + b'{"cell": "addi')
    assert report(runs / "one", "--csv")[0] == 0
    (runs / "one" / "run.json").unlink()
    code, _, told = report(runs / "one")
    assert code == 2 and "run its experiment again in this folder" in told


def test_records_that_are_made_up_are_refused_in_one_line(runs: Path, report: Report) -> None:
    from taskvec.studies.store import key_of

    path = runs / "one" / "records.jsonl"
    lines = []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if record["cell"] == "addition":
            record["result"]["values"] = "none"
            record["digest"] = key_of(record["cell"], {"key": record["key"], "result": record["result"]})
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")
    code, _, told = report(runs / "one")
    assert code == 2 and "internal error" not in told and told.count("\n") == 1
    path.write_text("")
    assert report(runs / "one")[0] == 2


def test_inputs_are_left_out_with_their_folder(runs: Path, report: Report) -> None:
    assert report(runs / "one")[0] == 0
    page = (runs / "one" / "report.html").read_text()
    assert "data-confusion" in page
    shutil.rmtree(runs / "one" / "inspected")
    assert report(runs / "one")[0] == 0
    page = (runs / "one" / "report.html").read_text()
    assert "data-confusion" not in page and "Who is wrong" in page


WORDS = """
suite: words
control: cows
defaults: {kind: language, context: 8, data: {source: text, path: '{task}.txt', separator: "\\n"}}
tasks: {dogs: {}, cats: {}, cows: {}}
"""

PERPLEXITY = """
experiment: {name}
model: {model}
suite: words.yaml
limits: {{train: 12, validation: 6, test: 6}}
training: {{lr: {lr}, steps: 4, batch_size: 8, validations: 0}}
regimes: {{full: {{}}}}
search: {{step: 0.5, coarse: 1, limit: 1}}
addition: {{subsets: whole}}
negation: {{targets: [dogs], keep: 0.5, baselines: []}}
inspect: false
"""


@pytest.fixture(scope="module")
def languages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """Two runs whose tasks are measured by perplexity."""
    folder = tmp_path_factory.mktemp("languages")
    model = save_language_model(folder / "gpt")
    for task in ("dogs", "cats", "cows"):
        (folder / f"{task}.txt").write_text("\n".join(f"the {task} {word} bark" for word in "abcdefgh" * 3))
    (folder / "words.yaml").write_text(WORDS)
    for name, lr in (("slow", 1e-2), ("fast", 3e-2)):
        (folder / f"{name}.yaml").write_text(PERPLEXITY.format(name=name, model=model, lr=lr))
        with pytest.raises(SystemExit) as stopped:
            main(["run", str(folder / f"{name}.yaml"), "-o", str(folder / name), "--quiet"])
        assert stopped.value.code == 0
    slow, fast = open_runs([folder / "slow", folder / "fast"])
    return slow, fast


def test_changes_of_perplexities_are_in_their_unit(languages: tuple[Run, Run]) -> None:
    means = [{row.name: row for row in entries_of(run.results) if row.how != "searched"} for run in languages]
    _, same, by_task, *beside = aligned(languages)
    assert "below 0 is better" in same.note and not same.compared
    assert by_task.columns[1:] == ("dogs ↓", "cats ↓")
    changes = {str(row[0]).split(",")[0]: str(row[3]) for row in same.rows if "searched" not in str(row[0])}
    for name in ("addition", "single-task models"):
        before, after = (len(of) / sum(of) for of in (list(m[name].seeds[0].values.values()) for m in means))
        assert changes[name] == f"{after - before:+.3g}".replace("-", "−")
    [negated] = [table for table in beside if table.title == "Negation"]
    assert len({str(row[0]) for row in negated.rows}) == len(negated.rows)


def test_figures_of_negation_are_in_the_unit_of_their_tasks(languages: tuple[Run, Run]) -> None:
    run = languages[0]
    [record] = [each["result"] for each in run.records.values() if each["cell"] == "negation"]
    told = {(fact.row, fact.task): fact.value for fact in run.facts if fact.study == "negation" and fact.task}
    for row, of in record["rows"].items():
        assert told[f"dogs, {row}", "dogs"] == of["target_score"]["perplexity"] > 1
        assert told[f"dogs, {row}", "cows"] == of["controls"]["cows"] > 1
    places = [(fact.place, fact.seed) for fact in run.facts]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(("sizes", "apart"), [((10, 10), False), ((1000, 10), False), ((1000, 1000), True)])
def test_stars_of_tasks_are_of_each_runs_own_examples(sizes: tuple[int, int], apart: bool) -> None:
    assert _apart([0.5], [0.8], sizes) is apart


@pytest.mark.parametrize("name", ["run.json", "records.jsonl"])
def test_no_output_takes_the_place_of_what_is_read(runs: Path, report: Report, name: str) -> None:
    before = (runs / "one" / name).read_bytes()
    code, _, told = report(runs / "two", runs / "one", "--json", "-o", runs / "one" / name, "--force")
    assert code == 2 and "expected another file" in told and (runs / "one" / name).read_bytes() == before
