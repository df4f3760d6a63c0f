"""Methods side by side as an experiment: tables, records, and what goes wrong."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

import taskvec as tv
from taskvec.cli import main
from taskvec.errors import OutOfMemory
from taskvec.merging import method_of
from taskvec.merging.method import Bench, Method, Model, Plain
from taskvec.merging.rules import RuleMethod

EXPERIMENT = """
experiment: side by side
model: {model}
suite: {suite}
training: {{lr: 2e-3, steps: 6, batch_size: 16, weight_decay: 0.01}}
regimes: {regimes}
seeds: {seeds}
search: {{step: 0.5, coarse: 2, limit: 1.5}}
methods: {methods}
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, tiny_model: Path, tiny_suite: Path) -> Write:
    def written(methods: str, regimes: str = "{full: {}}", seeds: str = "[0]") -> Path:
        path = tmp_path / "methods.yaml"
        given = {"model": tiny_model, "suite": tiny_suite, "regimes": regimes, "seeds": seeds}
        path.write_text(EXPERIMENT.format(methods=methods, **given))
        return path

    return written


def run(path: Path, *more: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(path), "-o", str(path.with_name("run")), "--quiet", *map(str, more)])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def compared(path: Path, seed: int = 0, regime: str = "full") -> dict[str, dict[str, Any]]:
    facts = json.loads((path.with_name("run") / "results.json").read_text())
    return {of["name"]: of for of in facts["seeds"][str(seed)][regime]["methods"]}


def test_a_run_shows_methods_by_what_they_consumed(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    rules = "[ties, {rule: ties, keep: 0.5}, {rule: adamerging, steps: 2}, slerp]"
    path = write(f"{{rules: {rules}}}", seeds="[0, 1]")
    assert run(path) == 0
    shown, report = capsys.readouterr().out, (path.with_name("run") / "report.md").read_text()
    page = (path.with_name("run") / "report.html").read_text()
    for text in (shown, report, page):
        for head in ("nothing", "unlabelled validation inputs", "validation labels", "training", "task id"):
            assert head in text
        assert "Left out: slerp (takes 2)" in text and "given these 2 seeds" in text
    assert "| ties (keep 0.5) | 0.5 |" in report or "| ties (keep 0.5) | 1 |" in report
    assert set(compared(path)) == {
        *("zero-shot", "single models", "mean", "sum", "ties", "ties (keep 0.5)", "slerp"),
        *("adamerging (steps 2)", "joint training"),
    }
    figures = {figure.stem for figure in (path.with_name("run") / "figures").iterdir()}
    assert {"methods", "methods-coefficients"} <= figures
    before = (path.with_name("run") / "records.jsonl").read_text()
    assert run(path) == 0 and (path.with_name("run") / "records.jsonl").read_text() == before


@pytest.mark.parametrize(("length", "steps"), [("steps: 6", 18), ("epochs: 1", None)])
def test_joint_training_lasts_as_long_as_all_vectors(write: Write, length: str, steps: int | None) -> None:
    path = write("{rules: [sum], coefficient: default}")
    path.write_text(path.read_text().replace("steps: 6", length))
    assert run(path) == 0
    logs = list((path.with_name("run") / "logs").rglob("*.jsonl"))
    lengths = {file.stem.rsplit("-", 1)[0]: len(file.read_text().splitlines()) for file in logs}
    whole = lengths.pop("pets+taste+number")
    assert whole == sum(lengths.values()) and steps in (None, whole)


def test_subsets_are_tables_by_number_of_tasks(write: Write) -> None:
    path = write("{rules: [slerp], subsets: pairs, coefficient: default}")
    assert run(path) == 0
    report = (path.with_name("run") / "report.md").read_text()
    assert "**Methods by number of tasks**" in report
    [row] = [line for line in report.splitlines() if line.startswith("| slerp | ")]
    two, three = row.split("|")[2:4]
    assert float(two) > 0 and three.strip() == "–"


@dataclass(frozen=True)
class Broken(Method):
    """Runs out of memory until it is mended."""

    mended: ClassVar[bool] = False
    name: str = "broken"
    family: ClassVar[str] = "broken"

    def settings(self) -> Plain:
        return {}

    def make(self, bench: Bench) -> Model:
        if not Broken.mended:
            raise OutOfMemory("device cpu: out of memory in making broken; take fewer tasks")
        return RuleMethod("sum").make(bench)


def test_a_method_that_fails_loses_no_other(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"broken": Broken()}
    monkeypatch.setattr(
        "taskvec.studies.methods.method_of", lambda entry: known.get(entry) or method_of(entry)
    )
    path = write("{rules: [broken, ties], coefficient: default}")
    assert run(path) == 1
    said = capsys.readouterr()
    assert "Failed: broken: device cpu: out of memory" in said.out
    assert said.err.strip().endswith("the rest is done: run it again to try what failed")
    assert compared(path)["ties"]["outcomes"] and "out of memory" in compared(path)["broken"]["failed"]
    before = (path.with_name("run") / "records.jsonl").read_text()
    assert "out of memory" not in before
    monkeypatch.setattr(Broken, "mended", True)
    assert run(path) == 0
    assert (path.with_name("run") / "records.jsonl").read_text().startswith(before)
    assert compared(path)["broken"]["outcomes"]


def test_a_coefficient_without_finite_outputs_has_no_row(write: Write) -> None:
    path = write("{rules: [{rule: dare, density: 0.5}], coefficient: both}")
    path.write_text(path.read_text().replace("limit: 1.5", "start: 1.0e+30, stop: 1.0e+31, limit: 1.0e+31"))
    path.write_text(path.read_text().replace("step: 0.5", "step: 1.0e+30"))
    assert run(path) == 0
    found = compared(path)["dare (density 0.5)"]
    assert [outcome["how"] for outcome in found["outcomes"]] == ["default"]
    assert "not finite" in found["diverged"]["searched"] or "finite at no" in found["diverged"]["searched"]
    report = (path.with_name("run") / "report.md").read_text()
    assert "Outputs not finite: mean (α searched, 1 of 1 seeds)" in report


def test_a_metric_that_is_no_mean_over_examples_has_no_test(
    write: Write, tmp_path: Path, tiny_suite: Path
) -> None:
    path = write("{rules: [ties], coefficient: default}")
    copied = Path(shutil.copytree(tiny_suite.parent, tmp_path / "suite")) / tiny_suite.name
    copied.write_text(copied.read_text().replace("pets: {", "pets: {metric: macro_f1, "))
    path.write_text(path.read_text().replace(str(tiny_suite), str(copied)))
    assert run(path) == 0
    report = (path.with_name("run") / "report.md").read_text()
    assert "no test, as single examples of pets are not right or wrong" in report
    assert [cell.strip() for cell in report.split("| ties | ")[1].split("|")][2] == "–"
    assert "hits" not in (path.with_name("run") / "results.json").read_text()


@pytest.mark.parametrize("regime", ["tangent", "attention"])
def test_methods_in_other_regimes(write: Write, regime: str) -> None:
    path = write(
        "{rules: [ties, fisher, {rule: adamerging, steps: 2}], coefficient: default}",
        regimes=f"{{{regime}: {{}}}}",
    )
    assert run(path) == 0
    found = compared(path, regime=regime)
    assert found["single models"]["outcomes"][0]["normalized"] == pytest.approx(1)
    assert found["ties"]["outcomes"]
    if regime == "tangent":
        assert "tangent" in found["fisher"]["left_out"]


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ("{rules: [tise]}", "methods: no rule or method called 'tise'"),
        ("{rules: [{rule: ties, kep: 1}]}", "keep"),
        ("{rules: [adamerging], split: test}", "allow_test_inputs: true"),
        ("{rules: [supervised], split: test, allow_test_inputs: true}", "never those of the test split"),
        ("{rules: [{rule: adamerging, split: test}]}", "allow_test_inputs: true"),
        ("{rules: all, coefficient: best}", "coefficient"),
        ("{rulez: all}", "rules"),
        ("{regimes: [tangent]}", "not among this experiment's regimes"),
    ],
)
def test_blocks_that_are_refused(
    write: Write, methods: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write(methods)) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_a_learned_method_goes_on_where_it_was_killed(evaluator: tv.Evaluator, tmp_path: Path) -> None:
    from taskvec.merging.learned import LearnedMethod

    bench = Bench(evaluator, {}, scratch=tmp_path / "partial")
    first = bench.checkpoint(LearnedMethod("adamerging"))
    assert first == bench.checkpoint(LearnedMethod("adamerging"))
    assert first != bench.checkpoint(LearnedMethod("adamerging", {"steps": 3}))


def test_what_decides_a_learned_method_is_in_its_key() -> None:
    entries: list[Any] = [
        "adamerging",
        {"rule": "adamerging", "split": "train"},
        {"rule": "adamerging", "steps": 500},
        {"rule": "adamerging", "steps": 501},
    ]
    plain, other_split, same, more = (method_of(entry).settings() for entry in entries)
    assert plain == same and len({str(settings) for settings in (plain, other_split, more)}) == 3
    assert plain == {"box": "clamp", "batches": 2, "steps": 500, "lr": 1e-3}, "defaults stay out of keys"


def test_the_command_lists_methods(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["methods"])
    shown = capsys.readouterr().out
    assert "adamerging-layer++" in shown and "dare+ties" in shown and "unlabelled validation inputs" in shown
    with pytest.raises(SystemExit):
        main(["methods", "adamerging", "--json"])
    assert json.loads(capsys.readouterr().out)["consumes"] == ["unlabelled validation inputs"]
