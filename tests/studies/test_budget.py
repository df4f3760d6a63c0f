"""The study of equal training steps, and ATM's options in experiment files."""

import json
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from taskvec.cli import main
from taskvec.studies.atm import sent_once
from taskvec.training.regimes import REGIMES

EXPERIMENT = """
experiment: budget
model: {model}
suite: {suite}
limits: {{validation: 20, test: 20}}
training: {{lr: 3e-3, steps: 6, batch_size: 16, validations: 2}}
regimes: {{attention: {{}}, tangent-attention: {{}}, post-hoc-attention: {{}}}}
search: {{step: 0.5, coarse: 1, limit: 1}}
atm: {{rounds: [3], regimes: [tangent-attention], rule: ties, params: {{keep: 0.5}}, participation: 2}}
budget:
  {{rounds: [1, 2, 3], regimes: [attention], state: kept, schedule: budget,
  post_hoc: {{rounds: 2, steps: 2}}}}
"""


def run(experiment: Path, folder: Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(experiment), "-o", str(folder), "--quiet"])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture(scope="module")
def experiment(tiny_model: Path, tiny_suite: Path) -> str:
    return EXPERIMENT.format(model=tiny_model, suite=tiny_suite)


@pytest.fixture(scope="module")
def folder(experiment: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the experiment."""
    place = tmp_path_factory.mktemp("budget")
    (place / "budget.yaml").write_text(experiment)
    assert run(place / "budget.yaml", place / "run") == 0
    return place / "run"


def test_all_rows_spend_the_same_steps_and_say_what_they_used(folder: Path) -> None:
    seed: dict[str, Any] = json.loads((folder / "results.json").read_text())["seeds"]["0"]
    rows = {row["name"]: row for row in seed["attention"]["budget"]}
    assert list(rows) == [
        "a model for each task",
        "mean; addition",
        "ties",
        "joint training",
        "ATM, 2 rounds",
        "ATM, 3 rounds",
        "addition, then 2 rounds",
        "addition, then joint tuning",
    ]
    assert {row["steps"] for row in rows.values()} == {3 * 6}
    labels = {name: row.get("labels", 0) for name, row in rows.items()}
    assert labels["joint training"] == labels["a model for each task"] == 0
    assert {labels[name] for name in list(rows)[1:3] + list(rows)[4:]} == {60}
    once = rows["mean; addition"]["bytes"]
    assert [rows[f"ATM, {count} rounds"]["bytes"] / once for count in (2, 3)] == [2, 3]
    assert rows["a model for each task"]["plain"]["normalized"] == 1
    for row in (rows["addition, then 2 rounds"], rows["addition, then joint tuning"]):
        assert row["kept"] == 12 and row["rounds"] in (0, 1, 2) and "before" in row
    assert "budget" not in seed["tangent-attention"] and "budget" not in seed["post-hoc-attention"]


def test_the_table_and_the_figures_are_there(folder: Path) -> None:
    report = (folder / "report.md").read_text()
    section = report[report.index("**Equal training steps, attention**") :]
    section = section[: section.index("\n**", 5)] if "\n**" in section[5:] else section
    for head in ("trained apart, merged once", "trained together", "merged once, tuned on validation labels"):
        assert head in section
    assert "a fifth is kept apart" in section and "taken" in section and section.count(" → ") == 2
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert {"budget", "budget-rounds", "atm", "atm-rounds"} <= figures


def test_rounds_in_tangent_space_have_options_and_a_history(folder: Path) -> None:
    seed: dict[str, Any] = json.loads((folder / "results.json").read_text())["seeds"]["0"]
    [run] = seed["tangent-attention"]["atm"]
    assert [len(record["tasks"]) for record in run["history"]] == [2, 2, 2]
    assert ["validation" in record for record in run["history"]] == [False, True, True]
    assert "atm" not in seed["attention"]
    [log] = folder.glob("logs/seed0/tangent-attention/atm3-*.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 3 * 2 * 2 + 1))
    assert [line["step"] for line in lines if "loss_of_mean" in line] == [8, 12]


def test_running_again_computes_nothing(folder: Path) -> None:
    before = (folder / "records.jsonl").read_bytes()
    assert run(folder.parent / "budget.yaml", folder) == 0
    assert (folder / "records.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("rule: ties, params: {keep: 0.5}", "rule: fisher"), "atm: rule 'fisher' needs statistics"),
        (("keep: 0.5", "kep: 0.5"), "atm: rule 'ties': unknown parameter 'kep'"),
        (("participation: 2", "participation: 7"), "atm: participation: 7 tasks a round, expected 1 to 3"),
        (
            ("regimes: [tangent-attention]", "regimes: [post-hoc-attention]"),
            "atm.regimes: 'post-hoc-attention' trains nothing",
        ),
        (
            ("rounds: [1, 2, 3]", "rules: [regmean], rounds: [1]"),
            "budget.rules: rule 'regmean' needs statistics",
        ),
        (
            ("rounds: [1, 2, 3]", "rounds: [7]"),
            "budget.rounds: 7 is more than the 6 training steps of a task in regime 'attention'",
        ),
        (
            ("search:", "per_task: {pets: {epochs: 2}}\nsearch:"),
            "budget: compares trainings of equal steps, and per_task.pets has epochs of its own",
        ),
        (("state: kept", "state: keep"), "budget.state: input should be 'fresh' or 'kept'"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(
    experiment: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, str],
    complaint: str,
) -> None:
    assert change[0] in experiment
    (tmp_path / "budget.yaml").write_text(experiment.replace(*change, 1))
    assert run(tmp_path / "budget.yaml", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1


UNEQUAL = """
experiment: unequal
model: {model}
suite: {suite}
limits: {{validation: 10, test: 10}}
training: {{lr: 3e-3, epochs: 1, batch_size: 16, validations: 2, penalty: {{kind: tau_jp, strength: 1}}}}
regimes: {{attention: {{}}}}
search: {{step: 0.5, coarse: 1, limit: 1}}
budget: {{rounds: [2], rules: [], participation: 2, post_hoc: {{rounds: 2}}}}
"""


def test_steps_are_those_that_were_taken(tiny_model: Path, tiny_suite: Path, tmp_path: Path) -> None:
    """Of tasks of unequal length, some of which sit out; the bill is the lines of the logs."""
    for name, rows in {"pets": 96, "taste": 60, "number": 46}.items():
        lines = (tiny_suite.parent / f"{name}.jsonl").read_text().splitlines()
        (tmp_path / f"{name}.jsonl").write_text("\n".join([*lines[:rows], *lines[96:]]))
    (tmp_path / "tiny.yaml").write_text(tiny_suite.read_text())
    (tmp_path / "unequal.yaml").write_text(UNEQUAL.format(model=tiny_model, suite=tmp_path / "tiny.yaml"))
    assert run(tmp_path / "unequal.yaml", tmp_path / "run") == 0
    facts: Any = json.loads((tmp_path / "run" / "results.json").read_text())
    steps = {row["name"]: row["steps"] for row in facts["seeds"]["0"]["attention"]["budget"]}
    [log] = (tmp_path / "run").glob("logs/seed0/attention/atm2-*.jsonl")
    # 6, 4 and 3 steps; no joint training, whose penalty has no other task to read
    assert steps == {
        "a model for each task": 13,
        "mean; addition": 13,
        "ATM, 2 rounds": len(log.read_text().splitlines()),
        "addition, then 2 rounds": 13,
    }


@pytest.mark.parametrize("regime", ["attention", "lora", "tangent-lora"])
def test_a_single_round_sends_what_merging_once_does(evaluator: tv.Evaluator, regime: str) -> None:
    recipe = tv.TrainSettings(lr=3e-3, steps=1, batch_size=16, validations=0)
    some = [evaluator.part(task) for task in ("pets", "taste")]
    vectors = {
        part.name: tv.finetune(evaluator.backbone, part, settings=recipe, regime=regime) for part in some
    }
    training: Any = tv.atm(evaluator.backbone, some, rounds=1, settings=recipe, regime=regime).info.training
    assert sent_once(vectors, REGIMES[regime].lora) == training["history"][0]["bytes"]
