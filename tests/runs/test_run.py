"""``taskvec run`` on a whole tiny experiment, through the command."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from taskvec.cli import main


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["run", *map(str, arguments), "--quiet"])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tiny_experiment: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went through undisturbed, and beside it what it showed. Not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(tiny_experiment)
    with redirect_stdout(StringIO()) as shown:
        assert run(folder / "tiny.yaml", "-o", folder / "run") == 0
    (folder / "shown").write_text(shown.getvalue())
    return folder / "run"


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def short(experiment: Path) -> Path:
    """The experiment with one regime, and neither joint training nor what comes after it."""
    text = experiment.read_text()
    text = text[: text.index("joint:")]
    experiment.write_text(text.replace("{full: {}, attention: {lr: 4e-3}}", "{full: {}}"))
    return experiment


def test_a_run_leaves_records_vectors_tables_and_figures(finished: Path) -> None:
    folder, shown = finished, finished.with_name("shown").read_text()
    for title in ("Single tasks", "Addition of all 3 tasks", "ATM", "Negation of pets", "Analogies, full"):
        assert title in shown
        assert title in (folder / "report.md").read_text()
        assert title in (folder / "report.html").read_text()
    assert {path.stem for path in (folder / "figures").iterdir()} == {
        "single",
        "addition",
        "atm",
        "negation",
        "cosine",
        "overview",
        "explore-measured",
    }
    trained = len(list(folder.glob("vectors/seed0/*/*.safetensors")))
    assert trained == 2 * (3 + 2) + 1  # tasks, joint, ascent; ATM of two rounds
    assert not list(folder.glob("partial/*"))
    logs = {path.relative_to(folder / "logs").with_suffix("") for path in folder.glob("logs/*/*/*.jsonl")}
    vectors = folder.glob("vectors/*/*/*.safetensors")
    assert logs == {path.relative_to(folder / "vectors").with_suffix("") for path in vectors}
    for log in folder.glob("logs/*/full/pets-*.jsonl"):
        assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    cells = [record["cell"] for record in records(folder)]
    assert cells.count("addition") == 2 * 4
    assert all({"inputs", "result", "seconds", "versions"} <= record.keys() for record in records(folder))


PATTERN = r"re:.*layer\.1.*(query|key)\.weight"


def test_a_selection_is_a_regime_and_joint_training_is_for_the_regimes_that_ask(
    experiment: Path, tmp_path: Path
) -> None:
    text = experiment.read_text()
    text = text[: text.index("atm:")].replace(
        "{full: {}, attention: {lr: 4e-3}}", f"{{full: {{}}, '{PATTERN}': {{}}}}"
    )
    experiment.write_text(text.replace("joint: true", "joint: {regimes: [full]}"))
    assert run(experiment, "-o", tmp_path / "run") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    found = results["seeds"]["0"]
    assert list(found) == ["full", PATTERN]
    assert ("joint" in found["full"], "joint" in found[PATTERN]) == (True, False)
    folders = sorted(path.name for path in (tmp_path / "run" / "vectors" / "seed0").iterdir())
    assert folders[0] == "full" and folders[1].startswith("pattern-")
    vectors = list((tmp_path / "run" / "vectors" / "seed0" / folders[1]).iterdir())
    assert len(vectors) == 3 and tv.TaskVector.load(vectors[0]).info.regime == PATTERN
    lines = (tmp_path / "run" / "report.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|") and "query" in line]
    assert rows and all("(query\\|key)" in row for row in rows)


def test_one_round_of_atm_is_addition_in_another_unit(finished: Path) -> None:
    """The mean of three vectors at three times alpha is their sum at alpha: searched alike, found alike."""
    found = json.loads((finished / "results.json").read_text())["seeds"]["0"]["full"]
    [added] = [edit for edit in found["addition"] if len(edit["tasks"]) == 3]
    one, two = (run["tuned"] for run in found["atm"])
    assert one["coefficient"] == pytest.approx(3 * added["coefficient"])
    assert one["validation"] == added["validation"]
    assert one["absolute"] == pytest.approx(added["absolute"])
    for key in ("grid_extended", "at_grid_limit", "measured", "points"):
        assert one[key] == added[key]
    assert [alpha for alpha, _ in one["trace"]] == pytest.approx([3 * alpha for alpha, _ in added["trace"]])
    assert two["trace"][-1][0] == 3 * 1.5  # as far as one round, in steps of addition's own
    assert two["points"] == 4.5 / 0.25 + 1


def test_every_table_of_searched_coefficients_says_how_much_was_measured(finished: Path) -> None:
    report = (finished / "report.md").read_text()
    for title in ("Addition of all 3 tasks", "ATM", "Negation of pets", "Analogies, full"):
        section = report[report.index(f"**{title}**") :]
        assert "points of the grid were measured" in section[: section.index("\n**")]


def test_running_again_computes_nothing(folder: Path, experiment: Path) -> None:
    before = (folder / "records.jsonl").read_bytes()
    results = (folder / "results.json").read_bytes()
    assert run(experiment, "-o", folder) == 0
    assert (folder / "records.jsonl").read_bytes() == before
    assert (folder / "results.json").read_bytes() == results


def test_running_again_imports_nothing_that_it_does_not_use(folder: Path, experiment: Path) -> None:
    code = """
import sys
from taskvec.cli import main
try:
    main(["run", *sys.argv[1:], "--quiet"])
except SystemExit as stopped:
    heavy = {"datasets", "matplotlib", "numba", "pandas", "PIL", "scipy", "sklearn", "transformers"}
    sys.exit(stopped.code or " ".join(sorted(heavy & sys.modules.keys())) or 0)
"""
    command = [sys.executable, "-c", code, str(experiment), "-o", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_figures_of_unchanged_results_stay_and_all_else_is_drawn_again(
    folder: Path, experiment: Path
) -> None:
    figures = folder / "figures"
    before = {path.name: path.stat().st_mtime_ns for path in figures.iterdir()}
    assert run(experiment, "-o", folder) == 0
    assert {path.name: path.stat().st_mtime_ns for path in figures.iterdir()} == before
    (figures / "single.png").unlink()
    (figures / "atm.png").write_bytes(b"damaged")
    (figures / "old.png").write_bytes(b"of results that are gone")
    (figures / "notes.txt").write_text("of somebody's own")
    assert run(experiment, "-o", folder) == 0
    assert (figures / "notes.txt").read_text() == "of somebody's own"
    after = {path.name: path.stat().st_mtime_ns for path in figures.glob("*.png")}
    assert {name for name in before if after[name] != before[name]} == {"single.png", "atm.png"}
    assert after.keys() == before.keys()


def test_a_changed_file_computes_only_what_changed(folder: Path, experiment: Path) -> None:
    before = len(records(folder))
    experiment.write_text(experiment.read_text().replace("keep: 0.5", "keep: 0.6"))
    assert run(experiment, "-o", folder) == 0
    assert [record["cell"] for record in records(folder)[before:]] == ["negation"] * 2


def test_several_seeds_give_a_spread_and_the_same_seed_the_same(
    finished: Path, short: Path, tmp_path: Path
) -> None:
    assert run(short, "-o", tmp_path / "run", "--seeds", 0, 1) == 0
    first, both = (
        {seed: found["full"] for seed, found in json.loads(path.read_text())["seeds"].items()}
        for path in (finished / "results.json", tmp_path / "run" / "results.json")
    )
    assert list(both) == ["0", "1"]
    assert all(both["0"][part] == first["0"][part] for part in ("norms", "single", "addition"))
    assert both["1"]["norms"] != both["0"]["norms"]
    report = (tmp_path / "run" / "report.md").read_text()
    assert "±" in report
    assert "over 2 seeds" in report


def test_a_killed_run_goes_on_to_the_same_results(finished: Path, experiment: Path, tmp_path: Path) -> None:
    target = tmp_path / "killed"
    command = [sys.executable, "-m", "taskvec", "run", str(experiment), "-o", str(target), "--quiet"]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    path = target / "records.jsonl"
    while process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= 7:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = len(records(target))
    assert 7 <= done < len(records(finished))
    assert run(experiment, "-o", target) == 0
    assert (target / "results.json").read_bytes() == (finished / "results.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("addition:", "additon:"), "unknown key 'additon'; did you mean 'addition'?"),
        (("subsets: all", "subset: all"), "unknown key 'subset' in 'addition'; did you mean 'subsets'?"),
        (("full: {}", "ful: {}"), "no regime called 'ful'; did you mean 'full'?"),
        (("lr: 4e-3", "lr: -1"), "regimes.attention: lr: input should be greater than 0"),
        (("steps: 6", "epochss: 6"), "unknown key 'epochss'; did you mean 'epochs'?"),
        (
            ("targets: [pets]", "targets: [petz]"),
            "no task called 'petz' in suite 'tiny'; did you mean 'pets'?",
        ),
        (("full: {}", "'re:(': {}"), "regimes: regime 're:(': '(' is not a regular expression"),
        (
            ("full: {}", "full: {}, post-hoc-tangent: {}, tangent: {}"),
            "'tangent' is of tangent space already",
        ),
        (("joint: true", "joint: {regimes: [tangent]}"), "joint: 'tangent' is not among this experiment's"),
        (
            ("joint: true", "joint: {regime: [full]}"),
            "unknown key 'regime' in 'joint'; did you mean 'regimes'?",
        ),
        (("rounds: [1, 2]", "rounds: [0]"), "atm.rounds.0: input should be greater than 0"),
        (("rounds: [1, 2]", "rounds: [1], rule: meen"), "no rule called 'meen'; did you mean 'mean'?"),
        (("step: 0.25", "step: 0.3"), "search: stop 1 is not a whole number of steps of 0.3 from 0"),
        (("{lr: 2e-3", "{seed: 3, lr: 2e-3"), "training: a seed is given under 'seeds'"),
        (("limit: 1.5", "limit: .nan"), "search.limit: input should be a finite number"),
        (("experiment: tiny", "experiment: tiny\nexperiment: two"), "key 'experiment' is given twice"),
        (("experiment: tiny", "experiment: !!python/name:os.system"), "not valid YAML"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_and_exit_code_2(
    experiment: Path,
    tmp_path: Path,
    change: tuple[str, str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert change[0] in experiment.read_text()
    experiment.write_text(experiment.read_text().replace(*change, 1))
    assert run(experiment, "-o", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "tiny.yaml" in error
    assert complaint in error
    assert not (tmp_path / "run").exists()


def test_missing_files_and_foreign_folders_are_refused(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "nothing.yaml", "-o", tmp_path / "run") == 2
    assert "nothing.yaml: no such file" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    assert run(experiment, "-o", tmp_path / "full") == 2
    assert run(experiment, "-o", tmp_path / "full", "--force") == 2
    assert (tmp_path / "full" / "thesis.tex").read_text() == "years of work"


def test_an_interrupt_leaves_a_folder_that_can_be_gone_on_with(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return tv.finetune(*arguments, **options)

    monkeypatch.setattr("taskvec.studies.trial.finetune", interrupted)
    assert run(short, "-o", tmp_path / "run") == 130
    assert "interrupted" in capsys.readouterr().err
    assert run(short, "-o", tmp_path / "run") == 0


@pytest.mark.parametrize("change", [("model: ", "model: nowhere #"), ("suite: ", "suite: gone.yaml #")])
def test_what_is_missing_is_told_before_anything_is_removed(
    folder: Path, experiment: Path, change: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "records.jsonl").read_bytes()
    experiment.write_text(experiment.read_text().replace(*change))
    assert run(experiment, "-o", folder, "--force") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (folder / "records.jsonl").read_bytes() == before
    assert run(experiment, "-o", folder.parent / "new") == 2
    assert not (folder.parent / "new").exists()


def test_a_vector_that_was_lost_is_trained_again_and_a_damaged_one_is_named(
    folder: Path, experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = (folder / "results.json").read_bytes()
    lost, damaged = (next(folder.glob(f"vectors/seed0/full/{task}-*")) for task in ("pets", "taste"))
    content = lost.read_bytes()
    lost.unlink()
    assert run(experiment, "-o", folder) == 0
    assert lost.read_bytes() == content
    assert (folder / "results.json").read_bytes() == results
    damaged.write_bytes(damaged.read_bytes()[:-100])
    capsys.readouterr()
    assert run(experiment, "-o", folder) == 2
    assert str(damaged) in capsys.readouterr().err
