"""An experiment in which every regime is evaluated in its own space."""

import json
import shutil
from pathlib import Path
from time import time_ns
from typing import Any

import pytest
import torch

import taskvec as tv
from taskvec.cli import main
from taskvec.runs.experiment import load_experiment
from taskvec.runs.report import facts_of
from taskvec.runs.runner import Runner
from taskvec.studies.cost import Memory, training_costs
from taskvec.studies.store import Store
from taskvec.studies.trial import recipe
from taskvec.training.settings import TrainSettings

TASKS = ["pets", "taste", "number"]
ORDINARY = ["full", "attention"]
TRAINED = [*ORDINARY, "tangent", "tangent-attention"]
TANGENT = ["tangent", "tangent-attention", "post-hoc", "post-hoc-attention"]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["run", *map(str, arguments), "--quiet"])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture(scope="module")
def finished(spaces_experiment: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all six regimes. Not to be written to."""
    folder = tmp_path_factory.mktemp("spaces")
    (folder / "spaces.yaml").write_text(spaces_experiment)
    assert run(folder / "spaces.yaml", "-o", folder / "run") == 0
    return folder / "run"


@pytest.fixture
def seed(finished: Path) -> dict[str, Any]:
    results = json.loads((finished / "results.json").read_text())
    found: dict[str, Any] = results["seeds"]["0"]
    return found


def vectors(finished: Path, regime: str) -> dict[str, tv.TaskVector]:
    folder = finished / "vectors" / "seed0" / regime
    return {task: tv.TaskVector.load(next(folder.glob(f"{task}-*"))) for task in TASKS}


def test_six_regimes_fill_every_table_and_figure(finished: Path, seed: dict[str, Any]) -> None:
    report = (finished / "report.md").read_text()
    for title in (
        "Single tasks",
        "Addition of all 3 tasks",
        "Negation of pets",
        "Analogies, post-hoc",
        "A coefficient for every task",
        "What each vector contributes",
        "Non-linear advantage",
        "Weight disentanglement error",
    ):
        assert title in report
    assert (finished / "figures" / "disentanglement-pets-taste.png").exists()
    assert list(seed) == [*ORDINARY, *TANGENT]
    for regime, found in seed.items():
        assert ("atm" in found) == (regime in ORDINARY)
        assert ("each" in found["addition"][-1]) == (regime in ("tangent", "post-hoc"))
        assert not any("each" in pair for pair in found["addition"][:-1])
    assert "Cosine of task vectors, post-hoc" not in report


def test_the_pre_trained_model_is_measured_in_the_space_it_is_compared_in(
    finished: Path, seed: dict[str, Any]
) -> None:
    report = (finished / "report.md").read_text()
    section = report[report.index("**Negation of pets**") :]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| pre-trained")]
    assert [row[1].strip() for row in rows] == ["pre-trained", "pre-trained, tangent space"]
    for row, regime in zip(rows, ("full", "tangent"), strict=True):
        cell = seed[regime]["negation"][0]["rows"]["pretrained"]
        assert [float(row[3]), float(row[4])] == pytest.approx(
            [100 * cell["target"], 100 * cell["control"]], abs=0.05
        )


def test_negation_of_some_regimes_has_its_table(
    finished: Path, spaces_experiment: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    text = spaces_experiment.replace("keep: 0.5,", "keep: 0.5, regimes: [tangent],")
    (tmp_path / "some.yaml").write_text(text)
    assert run(tmp_path / "some.yaml", "-o", folder) == 0
    report = (folder / "report.md").read_text()
    assert "Negation of pets" in report
    assert "tangent: negative fine-tuned" in report
    assert "full: negative fine-tuned" not in report


def test_post_hoc_regimes_train_nothing(finished: Path, seed: dict[str, Any]) -> None:
    folders = {path.name for path in (finished / "vectors" / "seed0").iterdir()}
    assert folders == set(TRAINED)
    assert seed["post-hoc"]["norms"] == seed["full"]["norms"]
    assert seed["post-hoc"]["single"] != seed["full"]["single"]


@pytest.mark.parametrize(
    ("regime", "trained", "space"),
    [
        ("full", "full", "ordinary"),
        ("tangent", "tangent", "tangent"),
        ("post-hoc-attention", "attention", "tangent"),
    ],
)
def test_a_regime_is_divided_by_single_tasks_in_its_own_space(
    finished: Path, seed: dict[str, Any], evaluator: tv.Evaluator, regime: str, trained: str, space: Any
) -> None:
    points = evaluator.points(vectors(finished, trained), space=space)
    single = {task: evaluator.score(points.at({task: 1.0}), task, "test").value for task in TASKS}
    assert seed[regime]["single"]["test"] == single
    whole = seed[regime]["addition"][-1]
    values = evaluator.values(points.shared(TASKS, whole["coefficient"]), TASKS, "test")
    assert {task: whole["test"][task]["value"] for task in TASKS} == values
    assert whole["normalized"] == pytest.approx(sum(values[t] / single[t] for t in TASKS) / 3)


def test_the_advantage_compares_a_regime_with_the_same_parameters_in_ordinary_space(
    seed: dict[str, Any],
) -> None:
    for linear, ordinary in (("tangent", "full"), ("post-hoc", "full"), ("tangent-attention", "attention")):
        single = {regime: seed[regime]["single"]["test"]["taste"] for regime in (linear, ordinary)}
        expected = (single[ordinary] - single[linear]) / (1 - 1 / 2)
        assert seed[linear]["nonlinear_advantage"]["taste"] == pytest.approx(expected)
    assert "nonlinear_advantage" not in seed["full"]


def test_heat_maps_are_of_the_first_examples_and_zero_at_the_origin(seed: dict[str, Any]) -> None:
    for found in seed.values():
        [pair] = found["disentanglement"]
        assert pair["grid"] == [-3.0, -1.5, 0.0, 1.5, 3.0]
        assert pair["examples"] == [10, 10]
        assert pair["maps"]["prediction"][2][2] == 0


def test_a_run_that_lost_half_its_cells_goes_on_to_the_same_results(
    finished: Path, spaces_experiment: str, tmp_path: Path
) -> None:
    """Also in tangent space, where what is kept in memory depends on what was computed in this process."""
    lines = (finished / "records.jsonl").read_text().splitlines(keepends=True)
    trained = [line for line in lines if json.loads(line)["cell"] == "vector"]
    cells = [line for line in lines if json.loads(line)["cell"] != "vector"]
    path = tmp_path / "spaces.yaml"
    path.write_text(spaces_experiment)
    for place in range(2):
        folder = tmp_path / str(place)
        folder.mkdir()
        (folder / "vectors").symlink_to(finished / "vectors")
        (folder / "records.jsonl").write_text("".join([*trained, *cells[place::2]]))
        found = Runner(*load_experiment(path), Store(folder)).run()
        assert json.dumps(facts_of(found), indent=1) == (finished / "results.json").read_text()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("post-hoc: {}", "post-hoc: {lr: 1e-3}"), "regimes.post-hoc: trains nothing, so it has no settings"),
        (("full: {}, ", ""), "'post-hoc' evaluates the vectors of 'full', which is not there"),
        (("rounds: [1]", "rounds: [1], regimes: [post-hoc]"), "atm.regimes: 'post-hoc' trains nothing"),
        (
            ("[pets, taste]", "[pets, pets]"),
            "disentanglement.pairs: pets pets, expected two of the tasks pets",
        ),
        (
            ("[tangent, post-hoc]", "[tangents]"),
            "addition: 'tangents' is not among this experiment's regimes",
        ),
        (("points: 5", "points: 1"), "disentanglement.grid.points: input should be greater than"),
        (("points: 5", "start: 4"), "start < stop must hold"),
        (("post-hoc: {}", "posthoc: {}"), "no regime called 'posthoc'; did you mean 'post-hoc'?"),
    ],
)
def test_a_mistake_is_one_line(
    spaces_experiment: str,
    tmp_path: Path,
    change: tuple[str, str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert change[0] in spaces_experiment
    path = tmp_path / "spaces.yaml"
    path.write_text(spaces_experiment.replace(*change, 1))
    assert run(path, "-o", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert complaint in error


def test_atm_without_a_regime_it_can_be_about_is_refused(
    spaces_experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, text = tmp_path / "spaces.yaml", spaces_experiment
    for ordinary in ("full: {}, attention: {}, ", "post-hoc: {}, post-hoc-attention: {}", ", post-hoc"):
        text = text.replace(ordinary, "", 1)
    path.write_text(text)
    assert run(path, "-o", tmp_path / "run") == 2
    assert "atm: every regime is of tangent space" in capsys.readouterr().err


def test_settings_that_came_later_leave_the_keys_of_earlier_runs_alone() -> None:
    plain, other = TrainSettings(), TrainSettings(decay_towards="pretrained")
    assert "decay_towards" not in recipe(plain)
    assert recipe(other) == {**recipe(plain), "decay_towards": "pretrained"}


def test_memory_is_the_most_that_was_there_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with Memory() as memory:
        before = torch.zeros(2_000_000)  # 8 MB that are there already
        begin = time_ns()
        one = torch.zeros(1_000_000)  # 4 MB
        two = torch.zeros(500_000)  # 6 MB
        del one  # 2 MB
        three = torch.zeros(750_000)  # 5 MB
        end = time_ns()
        after = torch.zeros(3_000_000)
    assert memory.peak(begin, end) == 6_000_000
    assert len(before) + len(two) + len(three) + len(after) == 6_250_000
    assert capfd.readouterr().err == ""


def test_the_cost_of_a_step_is_measured_for_every_regime(
    evaluator: tv.Evaluator, capfd: pytest.CaptureFixture[str]
) -> None:
    part, settings = evaluator.part("pets"), tv.TrainSettings(batch_size=16)
    recipes = dict.fromkeys(TRAINED, settings)
    cost = training_costs(evaluator.backbone, part, recipes)
    assert all(found["seconds"] > 0 for found in cost.values())
    trained = sum(value.nbytes for value in evaluator.pretrained.values())
    assert cost["full"]["peak_bytes"] > trained  # a gradient for every parameter
    assert cost["attention"]["peak_bytes"] < cost["full"]["peak_bytes"]
    again = training_costs(evaluator.backbone, part, {"full": settings})
    assert again["full"]["peak_bytes"] == pytest.approx(cost["full"]["peak_bytes"], rel=0.05)
    assert capfd.readouterr().err == ""


def test_costs_are_shown(spaces_experiment: str, tmp_path: Path) -> None:
    text = spaces_experiment[: spaces_experiment.index("addition:")] + "costs: true\n"
    path = tmp_path / "costs.yaml"
    path.write_text(text.replace(",\n  post-hoc: {}, post-hoc-attention: {}", ""))
    assert run(path, "-o", tmp_path / "run") == 0
    report = (tmp_path / "run" / "report.md").read_text()
    assert "Training cost" in report
    assert report.count("MiB") == 1
