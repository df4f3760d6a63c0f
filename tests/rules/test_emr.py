"""EMR's unified vector, and the masked vectors of EMR and TALL, against numpy and their invariants."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.testing import assert_close

import taskvec as tv
from rules.stacks import stacks
from taskvec.errors import BaseMismatch, CorruptFile, InputError, NonFinite, OutputExists, UnknownName
from taskvec.rules.emr import emr as rule
from taskvec.weights import blocks
from taskvec.weights.blocks import rows_of

few = settings(max_examples=30, deadline=None, derandomize=True)
SHAPES = {
    "embed.weight": (37, 5),
    "layer.0.weight": (9, 4),
    "layer.0.bias": (4,),
    "conv.weight": (40, 2, 3),
    "scale": (),
    "none": (0, 3),
}


def base() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    floats = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {**floats, "frozen": torch.ones(3, 2), "position_ids": torch.arange(4)}


def vectors(tasks: str = "abc", dtype: torch.dtype = torch.float32) -> dict[str, tv.TaskVector]:
    """A vector a task; ``frozen`` stays, the bias of the second task as well."""
    found = {}
    for place, task in enumerate(tasks):
        generator = torch.Generator().manual_seed(place)
        still = {"frozen", "position_ids", *(["layer.0.bias"] if place == 1 else [])}
        start = {name: v.to(dtype) if v.is_floating_point() else v for name, v in base().items()}
        tuned = {
            name: value if name in still else value + torch.randn(value.shape, generator=generator).to(dtype)
            for name, value in start.items()
        }
        found[task] = tv.TaskVector.between(start, tuned)
    return found


def flat(vector: Mapping[str, Tensor]) -> np.ndarray:
    return np.concatenate([vector[name].double().numpy().ravel() for name in sorted(vector)])


def unified_of(own: np.ndarray) -> np.ndarray:
    """The definition, entry by entry, (task, n) -> (n,)."""
    made = []
    for column in own.T:
        sign = 1 if sum(column) > 0 else -1
        made.append(sign * max((abs(value) for value in column if value * sign > 0), default=0.0))
    return np.array(made)


@few
@given(stacks())
def test_the_rule_is_its_definition(stack: Tensor) -> None:
    assert_close(rule(stack), torch.from_numpy(unified_of(stack.numpy())), rtol=0, atol=0)


def test_the_sign_is_that_of_the_exact_sum() -> None:
    stack = torch.tensor([[1.0], [1e-9], [-1.0]])  # float32 adds this to zero in this order
    assert rule(stack).item() == 1.0
    assert rule(stack.flip(0)).item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rescaler", ["global", "tensor_mean"])
def test_emr_is_its_definition(dtype: torch.dtype, rescaler: Any) -> None:
    given_ = vectors(dtype=dtype)
    own = np.stack([flat(vector) for vector in given_.values()])
    unified = unified_of(own)
    masked = tv.emr(given_, rescaler=rescaler)
    assert_close(flat(masked.unified), unified)
    names = sorted(given_["a"])
    ends = np.cumsum([given_["a"][name].numel() for name in names])[:-1]
    for place, task in enumerate(given_):
        left = np.where(own[place] * unified > 0, unified, 0.0)
        if rescaler == "global":
            factor = np.abs(own[place]).sum() / np.abs(left).sum()
        else:
            own_means, left_means = (
                sum(np.abs(part).mean() for part in np.split(row, ends) if part.size)
                for row in (own[place], left)
            )
            factor = own_means / left_means
        assert masked.info.factors[task] == pytest.approx(factor, rel=1e-6)
        assert_close(flat(masked.vector(task)), factor * left, rtol=1e-6, atol=1e-7)


def test_emr_keeps_the_l1_norm_of_every_task() -> None:
    given_ = vectors("abcde")
    masked = tv.emr(given_)
    for task, vector in given_.items():
        sizes = [np.abs(flat(each)).sum() for each in (masked.vector(task), vector)]
        assert sizes[0] == pytest.approx(sizes[1], rel=1e-6)


def test_one_task_alone_comes_back_from_emr_as_it_is() -> None:
    one = vectors("a")
    masked = tv.emr(one)
    assert masked.info.factors == {"a": 1.0}
    assert all(torch.equal(masked.vector("a")[name], one["a"][name]) for name in one["a"])


def test_a_task_that_never_agrees_has_the_factor_one_and_a_zero_vector() -> None:
    start = {"w": torch.zeros(3)}
    pair = {
        task: tv.TaskVector.from_tensors({"w": torch.full((3,), value)}, start)
        for task, value in {"large": 2.0, "small": -1.0}.items()
    }
    masked = tv.emr(pair)
    assert masked.info.factors["small"] == 1.0
    assert not masked.vector("small")["w"].any()


@pytest.mark.parametrize("lam", [0.4, {"a": 0.2, "b": 0.6, "c": 0.0}])
def test_tall_masks_are_their_definition_at_scale_one(lam: Any) -> None:
    given_ = vectors()
    own = np.stack([flat(vector) for vector in given_.values()])
    total = own.sum(0)
    masked = tv.tall_masks(given_, lam=lam)
    for place, task in enumerate(given_):
        mine = lam[task] if isinstance(lam, dict) else lam
        expected = np.where(np.abs(own[place]) > mine * np.abs(total - own[place]), total, 0.0)
        found = flat(masked.vector(task))
        # Where both sides of the comparison are equal to rounding, either may be right.
        edge = np.isclose(np.abs(own[place]), mine * np.abs(total - own[place]), rtol=1e-5)
        assert_close(found[~edge], expected[~edge], rtol=1e-5, atol=1e-6)


def test_tall_masks_of_one_task_or_of_lam_zero_keep_all_that_is_not_zero() -> None:
    one = vectors("a")
    assert_close(flat(tv.tall_masks(one, lam=0.6).vector("a")), flat(one["a"]), rtol=0, atol=0)
    three = vectors()
    kept = flat(tv.tall_masks(three, lam=0).vector("a"))
    everything = flat(three["a"] + three["b"] + three["c"])
    assert np.array_equal(kept, np.where(flat(three["a"]) != 0, everything, 0.0))


@pytest.mark.parametrize("method", [tv.emr, tv.tall_masks])
@pytest.mark.parametrize("shape", ["masked.safetensors", "masked"])
@pytest.mark.parametrize("block", [8, 64, 1 << 20])
def test_a_file_gives_back_every_bit_of_every_task(
    method: Any, shape: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    masked = method(vectors())
    path = masked.save(tmp_path / shape, max_shard_size=300)
    loaded = tv.MaskedVectors.load(path)
    assert loaded.tasks == masked.tasks and loaded.info == masked.info
    for task in masked.tasks:
        vector, expected = tv.TaskVector.load(f"{path}#{task}"), masked.vector(task)
        assert vector == loaded.vector(task) and vector.by_rows
        assert list(vector.specs) == list(expected.specs) or set(vector) == set(expected)
        assert vector.info.task == task and vector.info.base == expected.info.base
        for name in expected:
            assert torch.equal(vector[name], expected[name])
            for rows in (slice(1, 4), slice(3, None), slice(0, 0), slice(None, None, 2)):
                if vector[name].dim():
                    assert torch.equal(vector.read(name, rows), rows_of(expected[name], rows))
    again = loaded.save(tmp_path / f"again-{shape}", max_shard_size=300)
    assert torch.equal(tv.TaskVector.load(f"{again}#b")["embed.weight"], loaded.vector("b")["embed.weight"])


def test_a_task_of_a_file_is_applied_and_calculated_with_like_any_vector(tmp_path: Path) -> None:
    given_ = vectors()
    path = tv.emr(given_).save(tmp_path / "m.safetensors", dtype=torch.bfloat16)
    one = tv.TaskVector.load(f"{path}#a")
    edited = tv.apply(base(), one)
    assert_close(edited["layer.0.weight"], base()["layer.0.weight"] + one["layer.0.weight"])
    assert torch.equal(edited["frozen"], base()["frozen"])
    assert (one - one).norm() == 0 and (one + given_["b"]).norm() > 0
    stored = tv.TaskVector.load(one.save(tmp_path / "one.safetensors"))
    assert all(torch.equal(stored[name], one[name]) for name in one)
    assert stored.info.format == 1 and stored.info.rule is not None
    assert stored.info.rule["name"] == "emr"
    with pytest.raises(BaseMismatch):
        tv.apply({name: value + 1 for name, value in base().items()}, one)


def test_masks_take_one_bit_an_entry(tmp_path: Path) -> None:
    path = tv.tall_masks(vectors()).save(tmp_path / "m.safetensors")
    stored = tv.open_weights(path)
    assert stored.spec("embed.weight#a").nbytes == -(-37 * 5 // 8)
    assert stored.spec("embed.weight").nbytes == 37 * 5 * 4


def test_a_path_that_has_a_mark_in_its_name_is_a_path(tmp_path: Path) -> None:
    vector = vectors("a")["a"]
    path = vector.save(tmp_path / "a#1.safetensors")
    assert torch.equal(tv.TaskVector.load(path)["scale"], vector["scale"])
    masked = tv.emr(vectors()).save(tmp_path / "m#2.safetensors")
    assert tv.TaskVector.load(f"{masked}#c").info.task == "c"


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    given_ = vectors()
    path = tv.emr(given_).save(tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"masked vectors of several tasks, expected one; .*it has a, b, c"):
        tv.TaskVector.load(path)
    with pytest.raises(UnknownName, match="no task called 'd'; known: a, b, c"):
        tv.TaskVector.load(f"{path}#d")
    with pytest.raises(OutputExists):
        tv.emr(given_).save(path)
    plain = given_["a"].save(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="holds one task vector, expected masked ones"):
        tv.TaskVector.load(f"{plain}#a")
    with pytest.raises(OutputExists, match="input of this very edit"):
        tv.emr({"a": tv.TaskVector.load(plain)}).save(plain, force=True)
    for wrong in ({}, {"a#b": given_["a"]}, {"": given_["a"]}):
        with pytest.raises(InputError, match="emr: "):
            tv.emr(wrong)
    with pytest.raises(InputError, match="rescaler is 'local', expected one of global, tensor_mean"):
        tv.emr(given_, rescaler="local")  # type: ignore[arg-type]
    for lam in (-1, float("nan"), float("inf"), "0.4", True):
        with pytest.raises(InputError, match=r"tall.*: lam is .*, expected (a finite number|float)"):
            tv.tall_masks(given_, lam=lam)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tall: lam for a, expected one for each of a, b, c"):
        tv.tall_masks(given_, lam={"a": 0.4})
    other = tv.TaskVector.between({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    with pytest.raises(BaseMismatch):
        tv.emr({**given_, "other": other})
    bad = tv.TaskVector.from_tensors({"w": torch.tensor([1.0, float("nan")])}, None)
    with pytest.raises(NonFinite, match="bad: 'w' holds"):
        tv.emr({"bad": bad})
    with pytest.raises(NonFinite):
        tv.tall_masks({"bad": bad}).save(tmp_path / "bad.safetensors")
    assert not (tmp_path / "bad.safetensors").exists()
    clash = {
        "t": tv.TaskVector.from_tensors({"w": torch.ones(2), "w#t": torch.ones(2)}, None),
    }
    with pytest.raises(InputError, match="'w#t' is a tensor, expected no such name"):
        tv.emr(clash).save(tmp_path / "clash.safetensors")


def test_damaged_masks_are_refused_by_name(tmp_path: Path) -> None:
    path = tv.emr(vectors()).save(tmp_path / "m.safetensors")
    stored = tv.open_weights(path)
    whole = {name: stored[name] for name in stored}
    damages: dict[str, dict[str, Tensor]] = {
        "'embed.weight#b' is missing": {n: t for n, t in whole.items() if n != "embed.weight#b"},
        "'embed.weight#b' is ": {**whole, "embed.weight#b": torch.zeros(3, dtype=torch.uint8)},
        "'junk#a' is missing": {**whole, "junk": torch.zeros(3)},
        "'junk' found, expected floating point": {
            **whole,
            "junk": torch.zeros(8, dtype=torch.int64),
            **{f"junk#{task}": torch.zeros(1, dtype=torch.uint8) for task in "abc"},
        },
    }
    for number, (message, tensors) in enumerate(damages.items()):
        damaged = tv.save_weights(tensors, tmp_path / f"{number}.safetensors", metadata=stored.metadata)
        with pytest.raises(CorruptFile, match=message):
            tv.TaskVector.load(f"{damaged}#a")
