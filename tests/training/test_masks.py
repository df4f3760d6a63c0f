"""Masks: votes of near tasks, trainings inside of a mask, tuning and pruning in turns."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import taskvec as tv
from taskvec.errors import InputError
from taskvec.progress import Watch, unwatched
from taskvec.training.checkpoint import Checkpoint
from taskvec.training.masks import entries_of, fitted, largest

Masks = dict[str, torch.Tensor]


def mask(*kept: int, size: int = 6) -> Masks:
    return {"w": torch.tensor([place in kept for place in range(size)])}


NEAR = {"a": mask(0, 1), "b": mask(1, 2), "c": mask(4, 5)}


@pytest.mark.parametrize("similarity", [{"a": 0.9, "b": 0.5, "c": 0.1}, {"a": -0.1, "b": -0.5, "c": -0.9}])
def test_one_neighbour_gives_its_mask(similarity: dict[str, float]) -> None:
    assert_close(tv.mask_vote(NEAR, similarity, k=1), NEAR["a"])
    assert_close(tv.mask_vote(NEAR, similarity, k=1, keep=2 / 6), NEAR["a"])


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("shape", [(5,), (4, 3), ()], ids=str)
def test_neighbours_that_agree_give_their_mask(k: int, shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    same = {"w": torch.rand(shape, generator=draw) < 0.5, "v": torch.zeros(7, dtype=torch.bool)}
    masks = dict.fromkeys("abc", same)
    assert_close(tv.mask_vote(masks, {"a": 0.3, "b": 0.2, "c": 0.9}, k=k), same)


def test_to_keep_all_is_all() -> None:
    kept = tv.mask_vote(NEAR, {"a": 0.9, "b": 0.5, "c": 0.1}, k=2, keep=1.0)
    assert bool(kept["w"].all())


def test_votes_count_by_similarity() -> None:
    scores = tv.mask_vote(NEAR, {"a": 0.2, "b": 0.5, "c": 0.6}, k=3, keep=2 / 6)
    assert scores["w"].nonzero().flatten().tolist() == [1, 4]  # 1: a and b, 0.7; 4 and 5: c, 0.6
    assert tv.mask_vote(NEAR, {"a": 0.2, "b": 0.5, "c": 0.6}, k=1)["w"].tolist() == NEAR["c"]["w"].tolist()


def test_the_order_of_tasks_is_irrelevant() -> None:
    near = {"a": 0.4, "b": 0.4, "c": 0.4}
    one, other = tv.mask_vote(NEAR, near, k=2), tv.mask_vote(dict(reversed(NEAR.items())), near, k=2)
    assert_close(one, other)


def test_a_tensor_that_a_mask_lacks_is_not_kept_by_it() -> None:
    masks = {"a": {**mask(0), "v": torch.tensor([True, True, False, False])}, "b": mask(0)}
    kept = tv.mask_vote(masks, {"a": 0.5, "b": 0.5}, k=2)
    assert int(kept["v"].sum()) == 1 and kept["w"].tolist() == mask(0)["w"].tolist()


def test_where_there_are_fewer_than_three_all_vote() -> None:
    near = {"a": 0.6, "b": 0.5}
    two = {task: NEAR[task] for task in near}
    assert_close(tv.mask_vote(two, near), tv.mask_vote(two, near, k=2))
    with pytest.raises(InputError, match="masks: none, expected"):
        tv.mask_vote({}, {})


def test_a_name_that_is_none_is_answered_in_a_line(evaluator: tv.Evaluator) -> None:
    with pytest.raises(InputError) as refused:
        fitted({"w": torch.ones(2, dtype=torch.bool)}, evaluator.pretrained)
    assert "and 31 more" in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": 0}, "k: 0, expected 1 to 3, the number of masks"),
        ({"k": 4}, "k: 4, expected 1 to 3"),
        ({"keep": 0.0}, "keep: 0, expected a share above 0"),
        ({"keep": 1.5}, "keep: 1.5, expected a share"),
        ({"similarity": {"a": 1.0, "b": 0.0}}, "similarity: None for 'c', expected a number"),
        ({"similarity": {"a": 1.0, "b": 0.0, "c": float("nan")}}, "similarity: nan for 'c'"),
        ({"masks": {**NEAR, "c": mask(1, size=7)}}, "c: the mask of 'w' has shape"),
        ({"masks": {**NEAR, "c": {"w": torch.zeros(6)}}}, "expected torch.bool"),
    ],
)
def test_votes_that_do_not_fit_are_refused(changes: dict[str, object], words: str) -> None:
    given: dict[str, object] = {
        "masks": NEAR, "similarity": {"a": 0.1, "b": 0.2, "c": 0.3}, "k": 2, "keep": None, **changes
    }  # fmt: skip
    with pytest.raises(InputError, match=words):
        tv.mask_vote(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", [0.01, 0.25, 0.5, 1.0])
def test_the_largest_units_are_kept(keep: float) -> None:
    draw = torch.Generator().manual_seed(1)
    vector = {
        "w": torch.randn(8, 3, generator=draw),
        "b": torch.randn(8, generator=draw),
        "s": torch.ones(()),
    }
    rows, entries = largest(vector, keep), largest(vector, keep, "entry")
    assert rows["w"].shape == (8,) and entries["w"].shape == (8, 3) and bool(rows["s"])
    assert int(rows["w"].sum()) == max(1, round(8 * keep))
    norms = vector["w"].norm(dim=1)
    inside, outside = norms[rows["w"]], norms[~rows["w"]]
    assert not len(outside) or inside.min() >= outside.max()
    assert entries_of(rows["w"], vector["w"]).sum() == 3 * rows["w"].sum()


def settings(**values: object) -> tv.TrainSettings:
    return tv.TrainSettings.model_validate({"lr": 1e-3, "steps": 4, "batch_size": 16, **values})


def some_rows(evaluator: tv.Evaluator) -> Masks:
    draw = torch.Generator().manual_seed(2)
    names = [name for name in evaluator.pretrained if "query" in name or "LayerNorm" in name]
    return {name: torch.rand(len(evaluator.pretrained[name]), generator=draw) < 0.5 for name in names}


CASES = [
    ("full", {}),
    ("full", {"optimizer": "sgd", "lr": 0.1}),
    ("full", {"weight_decay": 0.5, "decay_towards": "pretrained"}),
    ("tangent", {"weight_decay": 0.5}),
]


@pytest.mark.parametrize(("regime", "changes"), CASES, ids=str)
def test_nothing_moves_outside_of_a_mask(
    evaluator: tv.Evaluator, regime: str, changes: dict[str, object]
) -> None:
    kept = some_rows(evaluator)
    vector = tv.finetune(
        evaluator.backbone, evaluator.part("pets"), regime=regime, settings=settings(**changes), mask=kept
    )
    moved = {name: vector[name] for name in vector if vector.terms_at(name)}
    assert set(moved) <= set(kept) and moved
    for name, delta in moved.items():
        inside = entries_of(kept[name], delta)
        assert not delta[~inside].any()
    some = "encoder.layer.1.attention.self.query.weight"
    assert bool(
        next(delta for name, delta in moved.items() if name.endswith(some))[kept_rows(kept, some)].any()
    )


def kept_rows(kept: Masks, some: str) -> torch.Tensor:
    return next(of for name, of in kept.items() if name.endswith(some))


@pytest.mark.parametrize("regime", ["full", "tangent"])
def test_a_mask_of_everything_changes_no_bit(evaluator: tv.Evaluator, regime: str) -> None:
    whole = {name: torch.ones(value.shape, dtype=torch.bool) for name, value in evaluator.pretrained.items()}
    part = evaluator.part("pets")
    plain = tv.finetune(evaluator.backbone, part, regime=regime, settings=settings(steps=2))
    inside = tv.finetune(evaluator.backbone, part, regime=regime, settings=settings(steps=2), mask=whole)
    assert all(torch.equal(plain[name], inside[name]) for name in plain)


def test_a_killed_training_goes_on_only_with_its_mask(
    evaluator: tv.Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "every", 0.0)
    kept, path = some_rows(evaluator), tmp_path / "state.pt"

    def die(label: str, done: int, total: int, **facts: float) -> None:
        if done == 2:
            raise KeyboardInterrupt

    def tuned(of: Masks, watch: Watch = unwatched) -> tv.TaskVector:
        return tv.finetune(
            evaluator.backbone,
            evaluator.part("pets"),
            settings=settings(),
            mask=of,
            checkpoint=path,
            watch=watch,
        )

    whole = tuned(kept)
    with pytest.raises(KeyboardInterrupt):
        tuned(kept, die)
    again = tuned(kept)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    with pytest.raises(KeyboardInterrupt):
        tuned(kept, die)
    other = {name: ~of for name, of in kept.items()}
    with pytest.raises(InputError):
        tuned(other)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"encoder.x": torch.ones(2, dtype=torch.bool)}, "mask: 'encoder.x' is not among what is trained"),
        ({"query": torch.ones(3, dtype=torch.bool)}, "expected bool"),
        ({"query": torch.zeros(0)}, "expected bool"),
        ({}, "mask: keeps nothing"),
    ],
)
def test_masks_that_do_not_fit_are_refused(evaluator: tv.Evaluator, given: Masks, words: str) -> None:
    query = next(name for name in evaluator.pretrained if name.endswith("query.weight"))
    named = {query if name == "query" else name: of for name, of in given.items()}
    with pytest.raises(InputError, match=words):
        fitted(named, evaluator.pretrained)


def test_factors_take_no_mask(evaluator: tv.Evaluator) -> None:
    with pytest.raises(InputError, match="mask: goes with regimes that train whole tensors"):
        tv.finetune(
            evaluator.backbone,
            evaluator.part("pets"),
            regime="lora",
            settings=settings(),
            mask=some_queries(evaluator),
        )


def some_queries(evaluator: tv.Evaluator) -> Masks:
    names = [name for name in evaluator.pretrained if name.endswith("query.weight")]
    return {name: torch.ones(len(evaluator.pretrained[name]), dtype=torch.bool) for name in names}


@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize(("unit", "regime"), [("row", "full"), ("entry", "full"), ("row", "tangent")])
def test_tuning_and_pruning_keeps_a_share_of_each_tensor(
    evaluator: tv.Evaluator, rounds: int, unit: Any, regime: str
) -> None:
    part = evaluator.part("pets")
    given = settings(steps=6)
    vector = tv.tune_sparse(
        evaluator.backbone, part, 0.25, rounds=rounds, unit=unit, regime=regime, settings=given
    )
    assert vector.info.regime == f"{regime} (sparse)" and vector.info.training is not None
    for name in vector:
        delta = vector[name]
        units = delta.flatten(1).any(1) if unit == "row" and delta.ndim > 1 else delta != 0
        assert int(units.sum()) <= max(1, round(0.25 * units.numel()))


def test_one_round_inside_of_a_voted_mask_is_a_training_inside_of_it(evaluator: tv.Evaluator) -> None:
    part, given = evaluator.part("pets"), settings()
    first = tv.finetune(evaluator.backbone, evaluator.part("taste"), settings=given)
    voted = tv.mask_vote({"taste": largest(first, 0.25)}, {"taste": 1.0}, k=1)
    sparse = tv.tune_sparse(evaluator.backbone, part, 0.25, mask=voted, rounds=1, settings=given)
    plain = tv.finetune(evaluator.backbone, part, settings=given, mask=voted)
    for name in plain:
        assert_close(sparse[name], plain[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rounds": 0}, "rounds: 0, expected 1 to 4, the number of steps"),
        ({"rounds": 5}, "rounds: 5, expected 1 to 4"),
        ({"regime": "lora"}, "regime: 'lora' is of space lora, expected ordinary or tangent"),
        ({"keep": 0.0}, "keep: 0, expected a share"),
    ],
)
def test_what_cannot_be_pruned_is_refused(
    evaluator: tv.Evaluator, values: dict[str, object], words: str
) -> None:
    given = {"keep": 0.5, "settings": settings(), **values}
    with pytest.raises(InputError, match=words):
        tv.tune_sparse(evaluator.backbone, evaluator.part("pets"), **given)  # type: ignore[arg-type]


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    backbone = tv.load_backbone("builtin")
    for seed, name in enumerate(("gabor", "greek")):
        draw = torch.Generator().manual_seed(seed)
        deltas = {
            n: 1e-3 * torch.randn(v.shape, generator=draw) for n, v in backbone.encoder_parameters().items()
        }
        tv.TaskVector.from_tensors(deltas, backbone.source).save(f"{name}.safetensors")
    page = (Path(__file__).parents[2] / "docs" / "mask-votes.md").read_text(encoding="utf-8")
    [snippet] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    small = snippet.replace('"pointing")])', '"pointing")], limits={"train": 32, "validation": 8})')
    names: dict[str, tv.TaskVector] = {}
    exec(small.replace("steps=20, batch_size=32", "steps=2, batch_size=4"), names)
    assert names["vector"].info.task == names["pruned"].info.task == "pointing"


@pytest.mark.parametrize("regime", ["full", "tangent"])
def test_rounds_that_keep_everything_differ_from_one_training_by_their_moments_alone(
    evaluator: tv.Evaluator, regime: str
) -> None:
    part, given = evaluator.part("pets"), settings(optimizer="sgd", lr=0.1)
    sparse = tv.tune_sparse(evaluator.backbone, part, 1.0, rounds=2, regime=regime, settings=given)
    plain = tv.finetune(evaluator.backbone, part, regime=regime, settings=given)
    for name in plain:
        assert_close(sparse[name], plain[name], rtol=1e-4, atol=1e-7)


def test_tuning_and_pruning_finds_its_rate_once(evaluator: tv.Evaluator) -> None:
    part, given = evaluator.part("pets"), settings(lr="auto", steps=8)
    sparse = tv.tune_sparse(evaluator.backbone, part, 0.3, settings=given)
    plain = tv.finetune(evaluator.backbone, part, settings=given)
    told, expected = sparse.info.training or {}, plain.info.training or {}
    assert (told["lr"], told["lr_search"]) == (expected["lr"], expected["lr_search"])


def test_penalties_read_other_tasks_in_every_round(evaluator: tv.Evaluator) -> None:
    def tuned(strength: float) -> tv.TaskVector:
        given = settings(steps=8, penalty={"kind": "tau_jp", "strength": strength})
        others = [evaluator.part("taste"), evaluator.part("pets")]
        part = evaluator.part("pets")
        return tv.tune_sparse(evaluator.backbone, part, 0.3, settings=given, references=others)

    free, bound = tuned(1e-9), tuned(100.0)
    assert bound.norm() < free.norm() and list((bound.info.training or {})["references"]) == ["taste"]
