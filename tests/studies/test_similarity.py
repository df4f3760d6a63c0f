"""Angles, signs and ranks of task vectors against closed forms."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import taskvec as tv
from taskvec.errors import BaseMismatch, InputError
from taskvec.studies.numerics.similarity import cosines, count_signs, effective_rank, rank_of_set
from taskvec.studies.similarity import compare_vectors


def base() -> dict[str, Tensor]:
    return {"layer.0.w": torch.zeros(4, 4), "layer.0.b": torch.zeros(4), "layer.1.w": torch.zeros(3, 4)}


def vector(folder: Path, name: str, **tensors: Tensor) -> tv.TaskVector:
    if not (folder / "base.safetensors").exists():
        tv.save_weights(base(), folder / "base.safetensors")
    moved = {key.replace("_", "."): value for key, value in tensors.items()}
    made = tv.TaskVector.from_tensors(moved, base=folder / "base.safetensors", task=name)
    return tv.TaskVector.load(made.save(folder / f"{name}.safetensors"))


def test_the_effective_rank_of_equal_singular_values_is_their_number() -> None:
    assert effective_rank(torch.ones(7)) == pytest.approx(7)


def test_the_effective_rank_of_one_direction_is_one_and_of_nothing_zero() -> None:
    assert effective_rank(torch.tensor([5.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0


def test_the_effective_rank_is_exp_of_the_entropy() -> None:
    expected = math.exp(0.5 * math.log(2) + 2 * 0.25 * math.log(4))
    assert effective_rank(torch.tensor([2.0, 1.0, 1.0])) == pytest.approx(expected)


@settings(max_examples=30)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8), st.floats(0.1, 10))
def test_the_effective_rank_lies_between_one_and_full_and_ignores_scale(
    values: list[float], factor: float
) -> None:
    found = effective_rank(torch.tensor(values))
    assert 1 - 1e-9 <= found <= len(values) + 1e-9
    assert effective_rank(factor * torch.tensor(values)) == pytest.approx(found, rel=1e-5)


def test_orthogonal_vectors_count_fully_and_parallel_ones_once() -> None:
    assert rank_of_set(torch.diag(torch.tensor([1.0, 4.0, 9.0]))) == pytest.approx(3)
    assert rank_of_set(torch.full((3, 3), 2.0)) == pytest.approx(1)


def test_signs_by_hand() -> None:
    entries = torch.tensor([[1.0, -1.0, 0.0, 2.0], [1.0, 1.0, 1.0, 3.0], [-1.0, -1.0, 0.0, 1.0]])
    found = count_signs(entries)
    assert found.opposite.tolist() == [[0, 1, 1], [1, 0, 2], [1, 2, 0]]
    assert found.both.tolist() == [[3, 3, 3], [3, 4, 3], [3, 3, 3]]
    assert (found.unanimous, found.shared) == (1, 3)  # the last column, of all but the third
    assert_close(found.conflict()[0], torch.tensor([0, 1 / 3, 1 / 3], dtype=torch.float64))
    assert found.agreement() == pytest.approx(1 / 3)


def test_vectors_that_share_no_entry_are_in_no_conflict() -> None:
    found = count_signs(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    assert found.conflict().max() == 0
    assert found.agreement() is None


def test_counts_of_pieces_add_up_to_the_whole() -> None:
    entries = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).round()
    whole, pieces = count_signs(entries), count_signs(entries[:, :20]) + count_signs(entries[:, 20:])
    assert torch.equal(whole.opposite, pieces.opposite)
    assert torch.equal(whole.both, pieces.both)
    assert (whole.unanimous, whole.shared) == (pieces.unanimous, pieces.shared)


def test_a_zero_vector_has_no_angle() -> None:
    assert cosines(torch.diag(torch.tensor([4.0, 0.0]))).tolist() == [[1, 0], [0, 1]]


def test_a_record_holds_every_layer_and_agrees_with_the_vectors_themselves(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    first = vector(tmp_path, "a", layer_0_w=torch.eye(4), layer_1_w=torch.randn(3, 4, generator=draw))
    other = vector(tmp_path, "b", layer_0_w=torch.ones(4, 4), layer_0_b=torch.randn(4, generator=draw))
    record = compare_vectors({"a": first, "b": other})
    assert record.cosine[0][1] == pytest.approx(first.cosine(other))
    assert record.norms == pytest.approx([first.norm(), other.norm()])
    zero, one = record.layers["layer.0"], record.layers["layer.1"]
    assert zero.effective_rank == pytest.approx([1.0, 0.25])
    assert zero.cosine[0][1] == pytest.approx(4 / (2 * other.norm()))
    assert zero.conflict[0][1] == 0
    assert one.effective_rank[1] is None
    assert one.norms[1] == 0
    shares = [layer.share[0] for layer in record.layers.values()]
    assert sum(shares) == pytest.approx(1)


def test_a_vector_and_its_negative_are_in_conflict_everywhere(tmp_path: Path) -> None:
    made = vector(tmp_path, "a", layer_0_w=torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    record = compare_vectors({"a": made, "-a": -made}, ranks=False)
    assert record.conflict == [[0.0, 1.0], [1.0, 0.0]]
    assert record.agreement == 0
    assert record.cosine[0][1] == pytest.approx(-1)
    assert record.rank_of_set == pytest.approx(1)
    assert record.effective_rank == [None, None]


def test_vectors_of_different_bases_do_not_compare(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one = vector(tmp_path, "a", layer_0_w=torch.eye(4))
    tv.save_weights({**base(), "layer.0.b": torch.ones(4)}, tmp_path / "other" / "base.safetensors")
    with pytest.raises(BaseMismatch):
        compare_vectors({"a": one, "b": vector(tmp_path / "other", "b", layer_0_w=torch.eye(4))})


def test_one_vector_is_too_few_and_zeros_are_nothing(tmp_path: Path) -> None:
    made = vector(tmp_path, "a", layer_0_w=torch.eye(4))
    with pytest.raises(InputError, match="two or more"):
        compare_vectors({"a": made})
    with pytest.raises(InputError, match="every vector is zero"):
        compare_vectors({"a": 0 * made, "b": 0 * made})
