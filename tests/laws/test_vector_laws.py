"""Laws that every kind of task vector obeys."""

import math

import pytest
import torch
from hypothesis import strategies as st
from torch.testing import assert_close

from laws.worlds import DTYPES, KINDS, World, between, dense, fact, law, path, same_bits, same_model, worlds
from taskvec.errors import BaseMismatch
from taskvec.vectors import TaskVector, apply, gram, similarity
from taskvec.weights import WeightsLike, open_weights, save_weights

coefficients = st.floats(-3, 3).map(lambda c: round(c, 3))


def pair(kind: str, world: World) -> tuple[TaskVector, TaskVector]:
    return KINDS[kind](world, 1), KINDS[kind](world, 2)


def assert_same(first: TaskVector, other: TaskVector) -> None:
    """Equal tensors to rounding, at the size of the largest entry."""
    one, two = dense(first), dense(other)
    assert one.keys() == two.keys()
    for name in one:
        size = max(1e-30, *(t.abs().max().item() if t.numel() else 0.0 for t in (one[name], two[name])))
        assert_close(one[name], two[name], rtol=0, atol=2e-6 * size)


@law(worlds())
def test_a_vector_minus_itself_is_zero_and_keeps_its_names(kind: str, world: World) -> None:
    vector = KINDS[kind](world, 1)
    for zero in (vector + (-vector), vector - vector, 0 * vector):
        assert list(zero) == list(vector)
        assert all(not tensor.any() for tensor in zero.values())
        assert zero.norm() == 0


@law(worlds())
def test_addition_commutes_to_the_bit(kind: str, world: World) -> None:
    u, v = pair(kind, world)
    assert all(same_bits((u + v)[name], (v + u)[name]) for name in u)
    assert u + v == v + u


@law(worlds())
def test_addition_is_associative_to_the_bit(kind: str, world: World) -> None:
    u, v = pair(kind, world)
    w = KINDS[kind](world, 3)
    assert (u + v) + w == u + (v + w)
    assert all(same_bits(((u + v) + w)[name], (u + (v + w))[name]) for name in u)


@law(worlds())
def test_adding_and_taking_away_again_changes_nothing(kind: str, world: World) -> None:
    u, v = pair(kind, world)
    assert (u + u) - u == u
    assert (u + v) - v == u
    assert sum([u]) == u == 1 * u == +u == -1 * (-u)


@law(worlds(), coefficients, coefficients)
def test_scaling_distributes(kind: str, world: World, c: float, d: float) -> None:
    u, v = pair(kind, world)
    assert_same(c * (u + v), c * u + c * v)
    assert_same((c + d) * u, c * u + d * u)
    assert_same(c * (d * u), (c * d) * u)
    assert_same(u / 4, 0.25 * u)


@law(worlds(), coefficients, coefficients)
def test_a_form_is_the_sum_of_its_tensors(kind: str, world: World, c: float, d: float) -> None:
    u, v = pair(kind, world)
    one, two = dense(u), dense(v)
    for name, tensor in dense(c * u + d * v).items():
        expected = c * one[name] + d * two[name]
        size = max((t.abs().max().item() for t in (one[name], two[name]) if t.numel()), default=0.0)
        assert_close(tensor, expected, rtol=0, atol=5e-6 * size + 1e-30)


@law(worlds())
def test_scale_zero_gives_the_base_bit_for_bit(kind: str, world: World) -> None:
    base = open_weights(world.base)
    u, v = pair(kind, world)
    assert same_model(apply(base, u, 0.0), base)
    assert same_model(base + (u + v - u - v), base)


@law(worlds(), coefficients)
def test_an_edit_is_rounded_once_to_the_dtype_of_the_base(kind: str, world: World, c: float) -> None:
    base = open_weights(world.base)
    vector = KINDS[kind](world, 1)
    edited = apply(base, vector, c)
    finest = {torch.float64: 1e-14, torch.float32: 2e-7}.get(world.dtype, 2e-6)
    for name, delta in dense(vector).items():
        assert edited[name].dtype == base[name].dtype
        exact = base[name].double() + c * delta
        # Half a unit from rounding to the dtype, and float32 noise from computing.
        unit = torch.finfo(world.dtype)
        room = 0.5 * unit.eps * exact.abs() + unit.smallest_normal * unit.eps
        noise = finest * (base[name].double().abs() + (c * delta).abs())
        assert bool(((edited[name].double() - exact).abs() <= room + noise).all())


@law(worlds())
def test_integers_and_booleans_stay_with_the_base(kind: str, world: World) -> None:
    base = open_weights(world.base)
    vector = KINDS[kind](world, 1)
    assert not {"position_ids", "mask"} & set(vector)
    edited = base + 2.5 * vector
    for name in ("position_ids", "mask"):
        assert same_bits(edited[name], base[name])
    assert torch.equal(edited["frozen"], base["frozen"])


@law(worlds())
def test_a_file_gives_back_every_bit(kind: str, world: World) -> None:
    vector = KINDS[kind](world, 1)
    single = TaskVector.load(vector.save(path(".safetensors")))
    shards = TaskVector.load(vector.save(path(), max_shard_size=40))
    assert set(single) == set(shards) == set(vector)
    for name in vector:
        assert same_bits(single[name] + 0.0, vector[name] + 0.0)
        assert same_bits(single[name], shards[name])
    assert single.info.base == vector.info.base


@law(worlds(), coefficients)
def test_an_edited_model_on_disk_is_the_lazy_one(kind: str, world: World, c: float) -> None:
    edited = apply(world.base, KINDS[kind](world, 1), c)
    for written in (
        save_weights(edited, path(".safetensors")),
        save_weights(edited, path(), max_shard_size=50),
    ):
        assert same_model(open_weights(written), edited)
        assert open_weights(written).fingerprint() == edited.fingerprint()


@law(worlds(), coefficients)
def test_nothing_that_was_passed_in_changes(kind: str, world: World, c: float) -> None:
    base = open_weights(world.base)
    before = base.fingerprint()
    u, v = pair(kind, world)
    kept = {name: u[name] for name in u}
    result = base + (c * u - v / 2 + u)
    result.fingerprint()
    (u + v).save(path(".safetensors"))
    similarity([u, v])
    for name in u:
        u[name].add_(1.0)  # what was read is ours to write into
    assert open_weights(base).fingerprint() == before
    assert all(same_bits(u[name], kept[name]) for name in u)


@law(worlds(), coefficients)
def test_geometry_is_that_of_the_flat_vectors(kind: str, world: World, c: float) -> None:
    u, v = pair(kind, world)
    flat_u, flat_v = (torch.cat([t.reshape(-1) for t in dense(x).values()]) for x in (u, v))
    assert u.norm() == pytest.approx(flat_u.norm().item(), rel=1e-9)
    assert u.dot(v) == pytest.approx(flat_u.dot(flat_v).item(), rel=1e-9, abs=1e-12)
    assert (c * u).norm() == pytest.approx(abs(c) * u.norm(), rel=1e-6)
    assert math.hypot(*u.norms().values()) == pytest.approx(u.norm(), rel=1e-9)
    assert u.cosine(2 * u) == pytest.approx(1) and u.cosine(-u) == pytest.approx(-1)
    matrix = similarity([u, v, u])
    assert_close(matrix, matrix.T)
    assert matrix[0, 1].item() == pytest.approx(u.cosine(v))
    assert_close(gram([u, v])[0, 0].item(), u.norm() ** 2)


@law(worlds())
def test_vectors_of_different_bases_do_not_mix(kind: str, world: World) -> None:
    other = World(world.seed + 1, world.dtype)
    here, there = KINDS[kind](world, 1), KINDS[kind](other, 1)
    prints = [here.base.fingerprint(), there.base.fingerprint()]
    for mix in (
        lambda: here + there,
        lambda: here - there,
        lambda: here.dot(there),
        lambda: apply(world.base, there),
    ):
        with pytest.raises(BaseMismatch) as caught:
            mix()
        assert all(str(known) in str(caught.value) for known in prints)
    assert same_model(
        apply(world.base, there, allow_other_base=True), apply(world.base, there.with_base(world.base))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_points_and_directions_are_not_the_same_thing(kind: str) -> None:
    world = World(0, torch.float32)
    base, vector = open_weights(world.base), KINDS[kind](world, 1)
    with pytest.raises(TypeError, match="add a task vector"):
        base + base
    with pytest.raises(TypeError, match="TaskVector"):
        base - base
    with pytest.raises(TypeError, match="direction"):
        save_weights(vector, path())
    with pytest.raises(TypeError, match="direction"):
        TaskVector.between(vector, vector)
    with pytest.raises(TypeError):
        vector * vector  # type: ignore[operator]
    with pytest.raises(TypeError):
        vector + 1  # type: ignore[operator]


@fact(worlds())
def test_the_base_plus_a_lazy_vector_is_the_tuned_model_bit_for_bit(world: World) -> None:
    base, tuned = open_weights(world.base), open_weights(world.tuned(1))
    vector = TaskVector.between(base, tuned)
    other = between(world, 2)
    for edited in (base + vector, apply(base, 0.25 * vector, 4.0), base + (vector + other - other)):
        assert set(edited) == set(base)
        for name in base:
            assert same_bits(edited[name], tuned[name])


@fact(worlds())
def test_the_base_plus_a_stored_vector_is_the_tuned_model_within_one_unit(world: World) -> None:
    base, tuned = open_weights(world.base), open_weights(world.tuned(1))
    edited = base + KINDS["stored"](world, 1)
    for name in base:
        if not base[name].is_floating_point():
            continue
        larger = torch.maximum(base[name].abs(), tuned[name].abs())
        # One unit is the step to the next number; in float16 and bfloat16 computed there, not in float64.
        unit = (torch.nextafter(larger, torch.full_like(larger, math.inf)) - larger).double()
        assert bool(((edited[name].double() - tuned[name].double()).abs() <= unit).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_how_a_base_is_stored_does_not_matter(dtype: torch.dtype) -> None:
    world = World(3, dtype)
    pickled = path(".bin")
    torch.save(world.base, pickled)
    places: list[WeightsLike] = [
        world.base,
        save_weights(world.base, path(".safetensors")),
        save_weights(world.base, path(), max_shard_size=30),
        pickled,
    ]
    opened = [open_weights(place) for place in places]
    assert len({weights.fingerprint() for weights in opened}) == 1
    vector = KINDS["stored"](world, 1)
    assert all(same_model(weights + vector, opened[0] + vector) for weights in opened)
