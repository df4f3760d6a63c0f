"""Few-shot adaptation in an experiment: rows that read the same shots, and nothing of the target besides."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import taskvec as tv
from taskvec.errors import InputError
from taskvec.runs.experiment import load_experiment
from taskvec.runs.report import write_report
from taskvec.runs.runner import Runner
from taskvec.studies.few_shot import ROWS, _counted, entries_of
from taskvec.studies.numerics.few_shot import best_single, choose_steps, mean_loss, probe
from taskvec.studies.store import Store
from taskvec.tasks.split import Split

Vectors = dict[str, tv.TaskVector]


def experiment(folder: Path, model: Path, suite: Path, block: str, regimes: str = "{full: {}}") -> Path:
    path = folder / "few.yaml"
    path.write_text(
        f"experiment: few\nmodel: {model}\nsuite: {suite}\nseeds: [0, 1]\n"
        f"regimes: {regimes}\ntraining: {{steps: 2, batch_size: 8, lr: 1e-3}}\n"
        f"limits: {{train: 24, validation: 8, test: 16}}\nfew_shot: {block}\n"
    )
    return path


def test_shots_are_run_recorded_and_shown(tiny_model: Path, tiny_suite: Path, tmp_path: Path) -> None:
    block = "{shots: [1, 2], targets: [pets], steps: [1, 2], coefficients: {steps: 2}, draws: 2}"
    regimes = "{full: {}, tangent: {}}"
    path, folder = experiment(tmp_path, tiny_model, tiny_suite, block, regimes), tmp_path / "run"
    results = Runner(*load_experiment(path), Store(folder)).run()
    titles = [table.title for table in write_report(results, folder)]
    assert {"Few-shot adaptation, full", "Few-shot adaptation, tangent"} <= set(titles)
    facts: Any = json.loads((folder / "results.json").read_text())
    for seed in ("0", "1"):
        for regime in ("full", "tangent"):
            found = facts["seeds"][seed][regime]["few_shot"]
            assert [(of["shots"], of["draw"], of["examples"]) for of in found] == [
                (1, 0, 2), (1, 1, 2), (2, 0, 4), (2, 1, 4),
            ]  # fmt: skip
            for of in found:
                assert set(of["values"]) == set(ROWS)
                assert set(of["coefficients"]) == {"taste", "number"} and of["single"] in ("taste", "number")
                assert of["steps"] in (0, 1, 2)
    report = (folder / "report.md").read_text()
    assert (
        "labels of each class" in report
        and "own vector, all labels" in report
        and "figures/few-shot.png" in report
    )
    before = (folder / "records.jsonl").read_text()
    Runner(*load_experiment(path), Store(folder)).run()
    assert (folder / "records.jsonl").read_text() == before


def test_a_pool_of_expressions_leaves_out_what_names_the_target() -> None:
    tasks = ["a", "b", "c"]
    assert entries_of("others", tasks, "b") == {"a": ["a"], "c": ["c"]}
    assert entries_of(("a - c", "a - b", "c"), tasks, "b") == {"a - c": ["a", "c"], "c": ["c"]}
    with pytest.raises(InputError, match=r"few_shot\.pool: 'a - d' names no task"):
        entries_of(("a - d",), tasks, "b")


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("{targets: [pet]}", "few_shot.targets: 'pet' is not among the tasks"),
        ("{pool: [pets], targets: [pets]}", "few_shot.pool: nothing is left for 'pets'"),
        ("{pool: [pest]}", "few_shot.pool: 'pest' names no task of the experiment"),
        ("{coefficients: {split: validation}}", "few_shot.coefficients: expected signal: labels and split"),
        ("{coefficients: {stepps: 1}}", "few_shot.coefficients: unknown key 'stepps'"),
        ("{shots: [0]}", "few_shot.shots"),
        ("{regimes: [fulll]}", "few_shot: 'fulll' is not among"),
    ],
)
def test_a_block_that_does_not_fit_is_refused(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, block: str, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        load_experiment(experiment(tmp_path, tiny_model, tiny_suite, block))


def test_the_loss_is_the_mean_cross_entropy(evaluator: tv.Evaluator) -> None:
    logits, labels = evaluator.logits(evaluator.pretrained, "pets", "test")
    wanted = torch.nn.functional.cross_entropy(logits, labels).item()
    assert mean_loss(evaluator, evaluator.pretrained, "pets", "test") == pytest.approx(wanted, rel=1e-5)


def test_the_best_single_vector_is_that_of_least_loss(evaluator: tv.Evaluator) -> None:
    settings = tv.TrainSettings(lr=1e-3, steps=20, batch_size=32)
    good = tv.finetune(evaluator.backbone, evaluator.part("pets"), settings=settings)
    pool = {"bad": -1.0 * good, "good": good, "half": 0.1 * good}
    assert best_single(evaluator, "pets", pool, "ordinary")[0] == "good"


def test_steps_are_those_of_least_loss_on_held_out_shots(evaluator: tv.Evaluator) -> None:
    settings = tv.TrainSettings(lr=1e-3, steps=20, batch_size=32)
    good = tv.finetune(evaluator.backbone, evaluator.part("pets"), settings=settings)
    shots, seen = evaluator.split("pets", "train").first(9), list[int]()

    def tune(examples: Split, steps: int, note: Any) -> tv.TaskVector:
        seen.append(len(examples))
        for step in range(1, steps + 1):
            note(step, (-1.0 if step > 3 else step / 3) * good)  # best at the third
        return good

    assert choose_steps(evaluator, "pets", shots, "ordinary", (1, 2, 3, 4), tune) == 3
    assert seen == [6, 6, 6]
    assert choose_steps(evaluator, "pets", shots, "ordinary", (4,), tune) == 0
    assert choose_steps(evaluator, "pets", shots.first(1), "ordinary", (3,), tune) == 0


def test_the_probe_reads_the_shots_alone(evaluator: tv.Evaluator) -> None:
    from sklearn.linear_model import LogisticRegression

    shots = evaluator.split("pets", "train").first(8)
    few = evaluator.on_examples("train", {"pets": shots})
    features, labels = few.features(few.pretrained, "pets", "train")
    test, wanted = evaluator.features(evaluator.pretrained, "pets", "test")
    unit = [torch.nn.functional.normalize(of.double(), dim=1).numpy() for of in (features, test)]
    fitted = LogisticRegression(C=0.5, max_iter=1000).fit(unit[0], labels.numpy())
    assert probe(few, "pets", 0.5) == pytest.approx(fitted.score(unit[1], wanted.numpy()))
    alike = evaluator.on_examples("train", {"pets": shots.at(shots.labels.argwhere().flatten()[:2])})
    assert probe(alike, "pets", 0.5) is None


def test_shots_are_not_tuned_at_a_rate_that_more_examples_chose(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path
) -> None:
    path = experiment(tmp_path, tiny_model, tiny_suite, "{shots: [1]}", "{full: {lr: auto}}")
    with pytest.raises(InputError, match="few_shot: lr: auto of regime 'full' reads the whole validation"):
        load_experiment(path)


def test_tuning_has_the_penalty_and_a_probe_is_told_of(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path
) -> None:
    for data in tiny_suite.parent.glob("*.jsonl"):
        (tmp_path / data.name).write_text(data.read_text())
    text = tiny_suite.read_text().replace("classes: [cat, dog]", "classes: [cat, dog], head: linear-probe")
    (tmp_path / "tiny.yaml").write_text(text)
    block = "{shots: [1], targets: [pets, taste], steps: [1], coefficients: {steps: 1}}"
    regimes = "{full: {penalty: {kind: tau_jp, strength: 1}}}"
    path = experiment(tmp_path, tiny_model, tmp_path / "tiny.yaml", block, regimes)
    path.write_text(path.read_text().replace("seeds: [0, 1]", "seeds: [0]"))
    results = Runner(*load_experiment(path), Store(tmp_path / "run")).run()
    [table] = [of for of in write_report(results, tmp_path / "run") if of.title.startswith("Few-shot")]
    assert "But for the heads of pets: they are probes of the whole training split" in table.note


def test_shots_are_of_each_class_where_there_are_classes() -> None:
    suite = SimpleNamespace(task=lambda kind: SimpleNamespace(kind=kind))
    results: Any = SimpleNamespace(plan=SimpleNamespace(suite=suite))
    assert _counted(results, ["classification"], "labels") == "labels of each class"
    assert _counted(results, ["language", "regression"], "labels") == "labels"
    assert _counted(results, ["classification", "language"], "labels") == "labels (of each class)"
