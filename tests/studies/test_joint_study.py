"""Joint training in an experiment: combiners side by side, and what stays as it was without them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskvec.cli import main
from taskvec.code import allowing_code
from taskvec.errors import InputError
from taskvec.runs.experiment import load_experiment
from taskvec.studies.joint import name_of

EXPERIMENT = """
experiment: together
model: {model}
suite: {suite}
training: {{lr: 2e-3, steps: 4, batch_size: 16, weight_decay: 0.01}}
regimes: {{full: {{}}}}
seeds: {seeds}
search: {{step: 0.5, coarse: 2, limit: 1}}
addition: {{subsets: whole}}
atm: {{rounds: [2]}}
joint: {joint}
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, tiny_model: Path, tiny_suite: Path) -> Write:
    def written(joint: str, seeds: str = "[0]") -> Path:
        path = tmp_path / "together.yaml"
        given = {"model": tiny_model, "suite": tiny_suite, "seeds": seeds}
        path.write_text(EXPERIMENT.format(joint=joint, **given))
        return path

    return written


def run(path: Path, *more: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(path), "-o", str(path.with_name("run")), "--quiet", *map(str, more)])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def facts(path: Path, seed: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path.with_name("run") / "results.json").read_text())
    return dict(found["seeds"][str(seed)]["full"])


def records(path: Path, cell: str) -> list[dict[str, Any]]:
    lines = (path.with_name("run") / "records.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["cell"] == cell]


def test_a_combiner_is_called_after_its_parameters() -> None:
    assert name_of({"combiner": "cagrad", "c": 0.4}) == "cagrad (c 0.4)"
    named = {"combiner": "wpcgrad", "priorities": {"pets": 2, "taste": 1}, "choice": "expected"}
    assert name_of(named) == "wpcgrad (priorities pets 2, taste 1, choice expected)"


def test_combiners_stand_side_by_side(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("{combiner: [null, pcgrad, {combiner: meta, target: pets}]}", seeds="[0, 1]")
    assert run(path) == 0
    shown = capsys.readouterr().out
    assert "Joint training, full" in shown
    report = (path.with_name("run") / "report.md").read_text()
    table = report[report.index("Joint training, full") :]
    names = ["addition, best α", "ATM, 2 rounds", "a task a step", "pcgrad", "meta (target pets)"]
    places = [table.index(f"| {name} |") for name in names]
    assert places == sorted(places)
    assert (path.with_name("run") / "figures" / "joint.png").exists()
    for seed in (0, 1):
        models = facts(path, seed)["combiners"]
        assert [model["combiner"] for model in models] == names[2:]
        assert all(set(model["values"]) == {"pets", "taste", "number"} for model in models)
        assert facts(path, seed)["joint"] == models[0]
        assert "course" not in models[1]
    plain, by_pcgrad = (record["result"] for record in records(path, "joint")[:2])
    assert plain["course"] is None and plain["seconds"] > 0
    assert by_pcgrad["course"]["steps"] == [1, 2, 3, 4]
    assert len(by_pcgrad["course"]["weights"]["pets"]) == len(by_pcgrad["course"]["conflict_rate"]) == 4
    trained = {record["result"]["file"].split("/")[-1].split("-")[0] for record in records(path, "vector")}
    assert trained == {"pets", "taste", "number", "pets+taste+number", "atm2"}


def test_all_read_as_many_examples(write: Write) -> None:
    path = write("{combiner: [null, mean]}")
    assert run(path) == 0
    logs = (path.with_name("run") / "logs").glob("seed0/full/pets+taste+number-*.jsonl")
    read = sorted(
        (
            len(lines := list(map(json.loads, log.read_text().splitlines()))),
            round(sum(line["seconds"] * line["examples_per_second"] for line in lines)),
        )
        for log in logs
    )
    assert read == [(4, 4 * 3 * 16), (12, 12 * 16)]


def test_trainings_by_a_combiner_may_have_settings_of_their_own(write: Write) -> None:
    path = write("{combiner: [null, mean], training: {steps: 12, batch_size: 5, lr: 4e-3}}")
    assert run(path) == 0
    plain, by_mean = (record["inputs"] for record in records(path, "joint"))
    assert "joint" not in plain and by_mean["joint"] == {"steps": 12, "batch_size": 5, "lr": 4e-3}
    logs = (path.with_name("run") / "logs").glob("seed0/full/pets+taste+number-*.jsonl")
    first, other = ([json.loads(line) for line in log.read_text().splitlines()] for log in logs)
    assert len(first) == len(other) == 12
    assert {max(line["lr"] for line in lines) for lines in (first, other)} == {2e-3, 4e-3}


def test_what_is_there_is_not_computed_again(write: Write) -> None:
    path = write("true")
    assert run(path) == 0
    [before] = records(path, "joint")
    assert set(before["result"]) - {"hits", "seconds"} == {"absolute", "normalized", "values"}
    assert "combiner" not in before["inputs"]
    assert "combiners" not in facts(path)
    write("{combiner: pcgrad}")
    assert run(path) == 0
    assert records(path, "joint")[0]["key"] == before["key"]
    assert facts(path)["joint"]["combiner"] == "pcgrad"
    course = records(path, "joint")[1]["result"]["course"]
    write("{combiner: [mean, pcgrad]}")
    (path.with_name("run") / "results.json").unlink()
    assert run(path) == 0
    assert len(records(path, "joint")) == 3 and records(path, "joint")[1]["result"]["course"] == course


@pytest.mark.parametrize(
    ("joint", "message"),
    [
        ("{combiner: pcgrat}", "joint: no combiner called 'pcgrat'; did you mean 'pcgrad'?"),
        ("{combiner: [mean, mean]}", "joint: combiner mean is listed twice"),
        ("{combiner: {combiner: mean, d: 1}}", "joint: combiner 'mean': unknown parameter 'd'"),
        ("{combiner: {c: 1}}", "expected a mapping with the key 'combiner'"),
        (
            "{combiner: {combiner: meta, target: pet}}",
            "joint: target: 'pet' is not trained; did you mean 'pets'",
        ),
        ("{combiner: 3}", "joint.combiner"),
        ("{combiner: mean, training: {rate: 1}}", "unknown key 'rate' in 'joint.training'"),
        ("{combiner: mean, training: {lr: 0}}", "joint.training.lr"),
        ("{combiners: mean}", "unknown key 'combiners' in 'joint'; did you mean 'combiner'?"),
        ("{combiner: 'combining:mine'}", "joint: combiner: names code to run, 'combining:mine'; read it"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_trained(write: Write, joint: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        load_experiment(write(joint))
    assert message in str(refused.value)


def test_a_function_of_the_users_own_runs_where_code_is_allowed(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("combining.py").write_text(
        "def mine(gram, scale=1.0):\n    return scale * gram.diagonal() * 0 + 1\n"
    )
    path = write("{combiner: [sum, {combiner: 'combining.py:mine', scale: 2.0}]}")
    with allowing_code():
        load_experiment(path)
    assert run(path, "--allow-code") == 0
    one, other = facts(path)["combiners"]
    assert other["values"] == one["values"]
