"""A learning rate found before training: where it is looked for, what it is judged by, what is said of it."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import taskvec as tv
from taskvec.errors import InputError, TrainingDiverged
from taskvec.tasks.split import Split
from taskvec.training import rate
from taskvec.training.rate import Found, climb, rate_at
from taskvec.training.space import linearized

AUTO = tv.TrainSettings(lr="auto", steps=12, batch_size=16, weight_decay=0.01, validations=0)


def tuned(evaluator: tv.Evaluator, *tasks: str, **options: Any) -> tv.TaskVector:
    settings = options.pop("settings", AUTO)
    return tv.finetune(
        evaluator.backbone, [evaluator.part(task) for task in tasks], settings=settings, **options
    )


def search_of(vector: tv.TaskVector) -> dict[str, Any]:
    assert vector.info.training is not None
    return dict(vector.info.training["lr_search"])


@pytest.mark.parametrize("best", [-27, -14, -13, -9, 0, 7])
@pytest.mark.parametrize("first", [-14, -6])
def test_a_single_valley_is_found_from_anywhere(best: int, first: int) -> None:
    found = climb(lambda place: abs(place - best), first)
    assert min(found, key=lambda place: found[place]) == best
    assert len(found) <= 6 + abs(best - first) // 2


def test_the_search_goes_on_where_the_best_lies_at_the_edge_and_ends() -> None:
    assert min(climb(float, -14)) == rate.LOWEST
    assert max(climb(lambda place: -float(place), -14)) == rate.HIGHEST


def test_no_place_is_measured_twice() -> None:
    asked: list[int] = []

    def loss(place: int) -> float:
        asked.append(place)
        return abs(place + 8.0)

    climb(loss, -14)
    assert len(asked) == len(set(asked))


def test_rates_are_a_quarter_of_a_decade_apart() -> None:
    assert [rate_at(place) for place in range(-16, -11)] == [1e-4, 1.8e-4, 3.2e-4, 5.6e-4, 1e-3]


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        ({1e-4: 1.5, 1e-3: 0.40, 3e-3: 0.39}, 1e-3),  # almost as good, and smaller
        ({1e-4: 1.5, 1e-3: 0.60, 3e-3: 0.39}, 3e-3),
        ({1e-4: 1.5, 1e-3: 0.40, 3e-3: math.inf}, 1e-3),
        ({1e-4: 2.2, 1e-3: 2.1}, 1e-3),  # nothing helps: the least harm
    ],
)
def test_of_rates_that_gain_almost_as_much_the_smallest_is_taken(
    tried: Mapping[float, float], expected: float
) -> None:
    assert Found(tried, 2.0, 30, {}).rate == expected


@pytest.mark.parametrize("regime", ["attention", "tangent", "lora", "tangent-lora", "gated"])
def test_every_regime_finds_a_rate_that_learns(evaluator: tv.Evaluator, regime: str) -> None:
    vector = tuned(evaluator, "pets", regime=regime)
    search = search_of(vector)
    point = evaluator.points({"v": vector}, space=vector.info.space or "ordinary").at({"v": 1.0})
    usual = tuned(evaluator, "pets", regime=regime, settings=AUTO.model_copy(update={"lr": 1e-5}))
    before = evaluator.points({"v": usual}, space=usual.info.space or "ordinary").at({"v": 1.0})
    perplexity = evaluator.score(point, "pets", "test").perplexity
    assert perplexity < evaluator.score(before, "pets", "test").perplexity
    assert vector.info.training is not None
    assert search["lr"] == vector.info.training["lr"]


def test_the_vector_is_the_one_of_the_rate_that_was_found(evaluator: tv.Evaluator) -> None:
    found = tuned(evaluator, "pets")
    number = AUTO.model_copy(update={"lr": search_of(found)["lr"]})
    again = tuned(evaluator, "pets", settings=number)
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_the_loss_is_that_of_the_short_training_on_validation_data(evaluator: tv.Evaluator) -> None:
    search = search_of(tuned(evaluator, "pets"))
    assert search["consumed"] == "validation labels"
    assert search["examples"] == {"pets": 48}
    assert search["steps"] == 10 * len(search["losses"])
    short = AUTO.model_copy(update={"steps": 10, "lr": search["lr"]})
    for vector, loss in (
        (tuned(evaluator, "pets", settings=short), search["losses"][f"{search['lr']:g}"]),
        (None, search["untrained_loss"]),
    ):
        point = evaluator.points({"v": vector}).at({"v": 1.0}) if vector else evaluator.pretrained
        logits, labels = evaluator.logits(point, "pets", "validation")
        oracle = torch.nn.functional.cross_entropy(logits.double(), labels)
        assert loss == pytest.approx(float(oracle), rel=1e-5)


def test_in_tangent_space_the_linearized_model_is_judged(evaluator: tv.Evaluator) -> None:
    search = search_of(tuned(evaluator, "taste", regime="tangent"))
    short = AUTO.model_copy(update={"steps": 10, "lr": search["lr"]})
    vector, lin = tuned(evaluator, "taste", regime="tangent", settings=short), linearized(evaluator.backbone)
    split = evaluator.split("taste", "validation")
    tau = {name: vector[name] for name in lin.theta0}
    features = lin(tau, evaluator.backbone.collate(split.inputs))
    oracle = torch.nn.functional.cross_entropy(evaluator.head("taste")(features), split.labels)
    assert search["losses"][f"{search['lr']:g}"] == pytest.approx(float(oracle), rel=1e-4)


def test_a_short_training_is_a_quarter_of_a_long_one(evaluator: tv.Evaluator) -> None:
    search = search_of(tuned(evaluator, "pets", settings=AUTO.model_copy(update={"steps": 80})))
    assert search["steps"] == 20 * len(search["losses"])


@pytest.mark.parametrize("options", [{}, {"combiner": "pcgrad"}])
def test_tasks_trained_together_have_one_rate(evaluator: tv.Evaluator, options: dict[str, Any]) -> None:
    search = search_of(tuned(evaluator, "pets", "taste", **options))
    assert search["examples"] == {"pets": 48, "taste": 48}


def test_gradient_descent_has_rates_of_its_own(evaluator: tv.Evaluator) -> None:
    settings = AUTO.model_copy(update={"optimizer": "sgd", "clip": None, "weight_decay": 0.0})
    search = search_of(tuned(evaluator, "pets", settings=settings))
    assert 0.032 in map(float, search["losses"])


def test_ascent_climbs_at_the_rate_that_descends_best(evaluator: tv.Evaluator) -> None:
    down, up = tuned(evaluator, "pets"), tuned(evaluator, "pets", ascend=True)
    assert search_of(up) == search_of(down)


def test_the_first_step_tells_a_log_of_the_search(evaluator: tv.Evaluator) -> None:
    steps: list[tuple[int, Mapping[str, float]]] = []
    vector = tuned(evaluator, "pets", log=lambda step, values: steps.append((step, values)))
    search = search_of(vector)
    assert [step for step, _ in steps] == list(range(1, 13))
    assert (steps[0][1]["lr_found"], steps[0][1]["lr_search_steps"]) == (search["lr"], search["steps"])
    assert "lr_found" not in steps[1][1]


class Killed(BaseException):
    """Stands for a signal: nothing in between catches it."""


def killing(label: str, at: int) -> Callable[..., None]:
    def watch(told: str, done: int, total: int, **facts: float) -> None:
        if told.endswith(label) and done == at:
            raise Killed

    return watch


@pytest.mark.parametrize("label", ["lr 0.001", "full pets"])
def test_a_killed_search_goes_on_where_it_was(evaluator: tv.Evaluator, tmp_path: Path, label: str) -> None:
    path, whole = tmp_path / "training.pt", tuned(evaluator, "pets")
    with pytest.raises(Killed):
        tuned(evaluator, "pets", checkpoint=path, watch=killing(label, 5))
    [notes] = tmp_path.iterdir()
    finished = json.loads(notes.read_text())["losses"]
    seen: set[str] = set()
    vector = tuned(evaluator, "pets", checkpoint=path, watch=lambda label, *_, **__: seen.add(label))
    assert len([of for of in seen if ", lr " in of]) + len(finished) == len(search_of(vector)["losses"])
    assert search_of(vector) == search_of(whole)
    assert all(torch.equal(vector[name], whole[name]) for name in whole)
    assert list(tmp_path.iterdir()) == []


def test_notes_that_are_none_and_those_of_other_settings_are_not_used(
    evaluator: tv.Evaluator, tmp_path: Path
) -> None:
    path = tmp_path / "training.pt"
    with pytest.raises(Killed):
        tuned(evaluator, "pets", checkpoint=path, watch=killing("lr 0.001", 5))
    [file] = tmp_path.iterdir()
    digest = json.loads(file.read_text())["search"]
    assert list(rate.Notes(path, digest)) == [3.2e-4, 1e-4]
    assert not rate.Notes(path, "another")
    for content in (
        *("", "[]", "{", '{"search": 3}', '{"search": "DIGEST"}', '{"search": "DIGEST", "losses": []}'),
        '{"search": "DIGEST", "losses": {"x": 1.0}}',
        '{"search": "DIGEST", "losses": {"0.001": "0"}}',
        '{"search": "DIGEST", "losses": {"0.001": -1e999}}',
        '{"search": "another", "losses": {"0.00032": 0.0, "0.001": 0.0}}',
    ):
        file.write_text(content.replace("DIGEST", digest))
        assert not rate.Notes(path, digest)
    vector = tuned(evaluator, "pets", checkpoint=path)
    assert search_of(vector) == search_of(tuned(evaluator, "pets"))


def test_a_part_without_validation_data_is_refused(evaluator: tv.Evaluator) -> None:
    bare = replace(evaluator.part("pets"), validation=None)
    with pytest.raises(InputError, match=r"lr: auto is found on validation data, and 'pets' brings none"):
        tv.finetune(evaluator.backbone, bare, settings=AUTO)
    empty = replace(bare, validation=Split([], torch.tensor([], dtype=torch.int64)))
    with pytest.raises(InputError, match="pets: the validation split is empty"):
        tv.finetune(evaluator.backbone, empty, settings=AUTO)


def test_examples_of_ones_own_judge_a_part(evaluator: tv.Evaluator) -> None:
    own = replace(evaluator.part("pets"), validation=evaluator.split("pets", "test").first(20))
    vector = tv.finetune(evaluator.backbone, own, settings=AUTO)
    assert search_of(vector)["examples"] == {"pets": 20}


def test_a_limit_of_the_validation_split_holds(evaluator: tv.Evaluator) -> None:
    vector = tuned(evaluator.limited(validation=30), "pets")
    assert search_of(vector)["examples"] == {"pets": 30}


def test_a_training_that_always_diverges_says_so(
    evaluator: tv.Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(*_: object, **__: object) -> None:
        raise TrainingDiverged("the loss is nan")

    monkeypatch.setattr(rate, "train", diverging)
    with pytest.raises(TrainingDiverged, match=r"full pets: diverges within 10 steps at every learning rate"):
        tuned(evaluator, "pets")


def test_the_loop_itself_takes_a_number(evaluator: tv.Evaluator) -> None:
    with pytest.raises(InputError, match=r"lr: auto is found by finetune"):
        _ = AUTO.rate


@pytest.mark.parametrize("given", ["fast", "AUTO", 0, -1, math.nan, None])
def test_what_is_no_rate_is_one_complaint(given: object) -> None:
    with pytest.raises(InputError, match=r"^training: lr: input should be [^(]*\(found [^(]*\)$"):
        tv.TrainSettings.parse("training", {"lr": given})


def test_atm_finds_each_tasks_rate_once(evaluator: tv.Evaluator) -> None:
    parts, labels = [evaluator.part(task) for task in ("pets", "taste")], list[str]()

    def alternated(rounds: int) -> tv.TaskVector:
        labels.clear()
        return tv.atm(
            evaluator.backbone,
            parts,
            rounds=rounds,
            settings=AUTO,
            watch=lambda label, *_, **__: labels.append(label),
        )

    own = {task: tuned(evaluator, task) for task in ("pets", "taste")}
    for rounds in (1, 3):
        vector = alternated(rounds)
        assert search_of(vector) == {task: search_of(of) for task, of in own.items()}
        tried = {label for label in labels if ", lr " in label}
        assert len(tried) == sum(len(search_of(of)["losses"]) for of in own.values())
    merged, once = tv.combine("mean", list(own.values())), alternated(1)
    assert all(torch.equal(once[name], merged[name]) for name in once)
