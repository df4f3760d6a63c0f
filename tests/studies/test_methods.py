"""Methods side by side: the same models as by hand, and what each of them consumed."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import taskvec as tv
from language_models import save_language_model
from taskvec.errors import InputError, UnknownName
from taskvec.merging import every_method, method_of
from taskvec.merging.method import Bench
from taskvec.studies.compared.records import Compared
from taskvec.studies.compared.tables import tables_of
from taskvec.studies.methods import check_split
from taskvec.studies.numerics.paired import paired_difference

RECIPE = tv.TrainSettings(lr=2e-3, steps=15, batch_size=16, weight_decay=0.01, validations=0)
TASKS = ["pets", "taste", "number"]

Vectors = dict[str, tv.TaskVector]
Singles = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def vectors(evaluator: tv.Evaluator) -> Vectors:
    return {task: tv.finetune(evaluator.backbone, evaluator.part(task), settings=RECIPE) for task in TASKS}


@pytest.fixture(scope="module")
def single(evaluator: tv.Evaluator, vectors: Vectors) -> Singles:
    return tv.single_task(evaluator, evaluator.points(vectors), TASKS)


def compared(evaluator: tv.Evaluator, vectors: Vectors, single: Singles, **more: Any) -> dict[str, Any]:
    records = tv.methods(evaluator, vectors, single=single, **more)
    return {str(record["name"]): record for record in records}


def test_a_rule_gives_what_its_vector_gives_by_hand(
    evaluator: tv.Evaluator, vectors: Vectors, single: Singles
) -> None:
    found = compared(evaluator, vectors, single, rules=["ties", {"rule": "ties", "keep": 0.5}])
    asked: dict[str, dict[str, Any]] = {"ties": {}, "ties (keep 0.5)": {"keep": 0.5}}
    for name, params in asked.items():
        merged = tv.combine("ties", list(vectors.values()), **params)
        points = evaluator.points({"merged": merged})
        for outcome in found[name]["outcomes"]:
            at = points.at({"merged": outcome["coefficient"]})
            assert outcome["values"] == evaluator.values(at, TASKS, "test")


def test_baselines_stand_first_and_say_what_they_consumed(
    evaluator: tv.Evaluator, vectors: Vectors, single: Singles
) -> None:
    found = compared(evaluator, vectors, single, rules=["sum", "mean", "adamerging"])
    assert list(found) == ["zero-shot", "single models", "mean", "sum", "adamerging"]
    assert [of["how"] for of in found["sum"]["outcomes"]] == ["default", "searched"]
    assert found["sum"]["outcomes"][0]["coefficient"] == 0.3
    consumed = {name: [of["consumed"] for of in record["outcomes"]] for name, record in found.items()}
    assert consumed["sum"] == [[], ["validation labels"]]
    assert consumed["zero-shot"] == [[]] and consumed["single models"] == [["task id"]]
    assert consumed["adamerging"] == [["unlabelled validation inputs"]]
    assert found["single models"]["outcomes"][0]["normalized"] == pytest.approx(1)


def test_a_searched_sum_is_that_of_addition(
    evaluator: tv.Evaluator, vectors: Vectors, single: Singles
) -> None:
    record = compared(evaluator, vectors, single, rules=["sum"], coefficient="searched")["sum"]
    added: dict[str, Any] = tv.addition(evaluator, evaluator.points(vectors), TASKS, single)
    [outcome] = record["outcomes"]
    assert outcome["coefficient"] == added["coefficient"]
    assert outcome["values"] == pytest.approx(added["values"])


def test_each_outcome_costs_one_pass_over_the_test_examples(
    evaluator: tv.Evaluator, vectors: Vectors, single: Singles, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Counter[str]()
    tally = tv.Evaluator.tally

    def counted(self: tv.Evaluator, point: Any, name: str, split: Any) -> Any:
        passes[f"{name} {split}"] += 1
        return tally(self, point, name, split)

    monkeypatch.setattr(tv.Evaluator, "tally", counted)
    found = compared(evaluator, vectors, single, rules=["sum"], coefficient="default")
    assert passes == {f"{task} test": len(found) for task in TASKS}


def test_answers_that_a_language_model_ranks_are_compared_too(tmp_path: Path) -> None:
    rows = [
        {"split": split, "text": f"the {word}", "label": word}
        for split in ("train", "validation", "test")
        for word in ("cat", "ox")
    ]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "suite: s\ntasks:\n  words: {kind: generation, answers: [cat, ox], "
        "data: {source: jsonl, path: words.jsonl}}\n"
    )
    backbone = tv.load_backbone(save_language_model(tmp_path / "llama", "llama"), outputs="tokens")
    evaluator = tv.Evaluator(backbone, list(tv.load_suite(suite).tasks.values()))
    vector = tv.finetune(backbone, evaluator.part("words"), settings=RECIPE)
    single = {"validation": {"words": 1.0}, "test": {"words": 1.0}}
    found = compared(evaluator, {"words": vector}, single, rules=["sum"], coefficient="default")
    [outcome] = found["sum"]["outcomes"]
    assert outcome["values"]["words"] in (0, 0.5, 1)
    assert outcome["hits"] == {}


def test_a_method_that_does_not_fit_says_why(
    evaluator: tv.Evaluator, vectors: Vectors, single: Singles
) -> None:
    found = compared(evaluator, vectors, single, rules=["slerp"])
    assert found["slerp"] == {"name": "slerp", "tasks": TASKS, "left_out": "takes 2"}


def test_statistics_are_of_the_split_that_is_named(
    evaluator: tv.Evaluator, vectors: Vectors, single: Singles
) -> None:
    found = compared(evaluator, vectors, single, rules=["fisher"], split="test", allow_test_inputs=True)
    assert found["fisher"]["outcomes"][0]["consumed"] == ["unlabelled test inputs"]


@pytest.mark.parametrize("rule", ["fisher", "regmean"])
def test_statistics_keep_to_the_limits(evaluator: tv.Evaluator, vectors: Vectors, rule: str) -> None:
    def merged(of: tv.Evaluator) -> Any:
        return method_of(rule).make(Bench(of, vectors)).point("pets", 1.0)

    few, name = merged(evaluator.limited(validation=3)), "encoder.layer.0.output.dense.weight"
    assert not (few[name] == merged(evaluator)[name]).all()
    rows = {task: evaluator.task(task).split("validation", limit=3) for task in TASKS}
    alone = [evaluator.task(task).model_copy() for task in TASKS]
    for task in alone:
        task._loaded["validation"] = rows[task.name]
    assert (merged(tv.Evaluator(evaluator.backbone, alone))[name] == few[name]).all()


@pytest.mark.parametrize("rule", ["fisher", "adamerging", {"rule": "regmean", "ridge": 1e-3}])
def test_test_inputs_are_refused_unless_allowed(
    evaluator: tv.Evaluator, vectors: Vectors, single: Singles, rule: Any
) -> None:
    with pytest.raises(InputError, match="allow_test_inputs"):
        compared(evaluator, vectors, single, rules=[rule], split="test")


def test_labels_of_the_test_split_are_never_read(
    evaluator: tv.Evaluator, vectors: Vectors, single: Singles
) -> None:
    with pytest.raises(InputError, match="labels"):
        compared(evaluator, vectors, single, rules=["supervised"], split="test", allow_test_inputs=True)


@pytest.mark.parametrize(
    ("entry", "kind", "words"),
    [
        ("tise", InputError, "ties"),
        ({"rule": "ties", "kep": 0.2}, InputError, "keep"),
        ({"rule": "adamerging", "stepps": 3}, InputError, "steps"),
        ({"density": 0.2}, InputError, "rule"),
        (3, InputError, "rule"),
        ("ties+tise", (InputError, UnknownName), "ties"),
    ],
)
def test_entries_that_name_no_method(entry: object, kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words):
        method_of(entry)


def test_all_methods_have_distinct_names_and_settings() -> None:
    methods = list(every_method())
    assert len({method.name for method in methods}) == len(methods)
    assert len({f"{method.family} {method.settings()}" for method in methods}) == len(methods)


def test_methods_leave_the_vectors_and_the_model_alone(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    before = {name: value.clone() for name, value in evaluator.pretrained.items()}
    for method in every_method():
        bench = Bench(evaluator, vectors)
        if method.family == "rule" and not method.unfit(bench):
            model = method.make(bench)
            model.value("pets", "validation", 0.7)
    assert all(bool((value == before[name]).all()) for name, value in evaluator.pretrained.items())


def test_a_paired_difference_is_that_of_a_long_simulation() -> None:
    generator = np.random.default_rng(0)
    first = [generator.random((1, n)) < 0.7 for n in (300, 500)]
    second = [generator.random((1, n)) < 0.6 for n in (300, 500)]
    pairs = [mine.astype(float) - other for mine, other in zip(first, second, strict=True)]
    found = paired_difference(pairs)
    draws = [
        np.mean([of[0][generator.integers(0, of.shape[1], of.shape[1])].mean() for of in pairs])
        for _ in range(4000)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found.interval == pytest.approx((low, high), abs=0.004)
    assert found.p < 0.05


def test_equal_models_differ_by_nothing() -> None:
    found = paired_difference([np.zeros((3, 10)), np.zeros((3, 7))])
    assert (found.mean, found.p) == (0, 1)


def test_models_of_a_task_or_of_an_input_stand_beside_rules(
    evaluator: tv.Evaluator, vectors: Vectors, single: Singles
) -> None:
    rules = ["library", "emr (task id)", "tall", "tsv-compress", {"rule": "tall", "lam": "validation"}]
    found = compared(evaluator, vectors, single, rules=rules)
    consumed = {name: record["outcomes"][0]["consumed"] for name, record in found.items()}
    assert consumed["library"] == ["unlabelled validation inputs"]
    assert consumed["tsv-compress"] == consumed["tall"] == consumed["emr (task id)"] == ["task id"]
    assert consumed["tall (lam validation)"] == ["validation labels", "task id"]
    assert found["tsv-compress"]["outcomes"][0]["normalized"] > 0.9
    records = [[Compared.model_validate(record)] for record in found.values()]
    *_, stored = tables_of(records, dict.fromkeys(TASKS, "accuracy"), "")
    assert stored.title == "Bytes of models that know the task"
    assert {row[0]: str(row[2]) for row in stored.rows if "tall" in str(row[0])} == {
        "tall": "3.2", "tall (lam validation)": "3.2"
    }  # fmt: skip
    routing = found["library"]["facts"]["routing"]
    assert {task: sum(shares.values()) for task, shares in routing.items()} == pytest.approx(
        dict.fromkeys(TASKS, 1.0)
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"vectors": {}}, "vectors: none"),
        ({"single": {}}, "single: no validation value of 'pets'.*tv.single_task"),
        ({"single": {"validation": {"pets": 1.0}}}, "single: no validation value of 'taste'"),
        ({"coefficient": "best"}, "coefficient"),
        ({"split": "valid"}, "split"),
        ({"space": "Tangent"}, "space: 'Tangent', expected ordinary or tangent"),
        ({"rules": "tise"}, "did you mean 'ties'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    given: dict[str, Any], words: str, evaluator: tv.Evaluator, vectors: Vectors, single: Singles
) -> None:
    asked: dict[str, Any] = {"vectors": vectors, "single": single, "rules": ["ties"], **given}
    with pytest.raises(InputError, match=words):
        tv.methods(evaluator, **asked)


def test_a_vector_of_no_task_is_refused(evaluator: tv.Evaluator, vectors: Vectors, single: Singles) -> None:
    with pytest.raises(InputError, match="no task called 'pest' here; did you mean 'pets'"):
        tv.methods(evaluator, {**vectors, "pest": vectors["pets"]}, "ties", single=single)


def test_one_name_is_a_list_of_one(evaluator: tv.Evaluator, vectors: Vectors, single: Singles) -> None:
    found = compared(evaluator, vectors, single, rules="ties", coefficient="default")
    assert list(found)[-1] == "ties"


def test_what_does_not_read_the_split_goes_with_the_test_split() -> None:
    """Masks are chosen on validation data, whatever split other methods read."""
    for entry in (
        "tall",
        "tsv-compress",
        {"rule": "tall", "lam": "validation"},
        {"rule": "supervised", "split": "train"},
    ):
        check_split("methods", [method_of(entry)], "test", allow_test_inputs=False)


@pytest.mark.parametrize(
    "entry",
    [
        {"rule": "adamerging", "split": "test", "allow_test_inputs": True},
        {"after": "learned_lines", "of": "ties", "split": "test", "allow_test_inputs": True},
    ],
)
def test_a_name_tells_the_split_and_the_column_that_it_was_allowed(entry: dict[str, Any]) -> None:
    method = method_of(entry)
    assert method.name.endswith(" (split test)")
    assert method.consumes("validation") == ("unlabelled test inputs",)
