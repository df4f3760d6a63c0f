"""What every registered combiner obeys: the laws that ``taskvec.combiners.combiner`` lists."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from taskvec.combiners import COMBINERS, Combiner, combiner_called
from taskvec.errors import InputError, NonFinite

NAMES = [name for name in COMBINERS if not COMBINERS[name].entries]
every_combiner = pytest.mark.parametrize("name", NAMES)


def vectors(tasks: int, size: int, seed: int = 0) -> Tensor:
    """Rows that conflict: some of them point away from their mean."""
    return torch.randn(tasks, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram(rows: Tensor) -> Tensor:
    return rows @ rows.T


# Every kind of input that a step, or a set of models, may bring.
HARD: dict[str, Tensor] = {
    "one": vectors(1, 5),
    "two opposed": torch.tensor([[1.0, 2], [-1, -2]], dtype=torch.float64),
    "nearly opposed": torch.tensor([[1.0, 0], [-1, 1e-9]], dtype=torch.float64),
    "nothing": torch.zeros(3, 4, dtype=torch.float64),
    "zero row": vectors(4, 9) * torch.tensor([1.0, 0, 1, 1], dtype=torch.float64)[:, None],
    "only one moves": vectors(4, 9) * torch.tensor([0.0, 0, 1, 0], dtype=torch.float64)[:, None],
    "identical": vectors(1, 6).expand(5, 6),
    "rank two": vectors(6, 2),
    "rank one": vectors(5, 1),
    "thirty": vectors(30, 100),
    "thirty of rank ten": vectors(30, 10),
    "small": 1e-12 * vectors(4, 20),
    "large": 1e12 * vectors(4, 20),
    "tiny": 1e-150 * vectors(4, 20),
    "huge": 1e150 * vectors(3, 20),
    "of all sizes": vectors(5, 20) * torch.logspace(-12, 12, 5, dtype=torch.float64)[:, None],
    "float32": vectors(12, 5).float() @ vectors(12, 5).float().T,  # a Gram matrix, of rank 5 but for noise
}


def hard_gram(kind: str) -> Tensor:
    return HARD[kind] if kind == "float32" else gram(HARD[kind])


@every_combiner
@pytest.mark.parametrize("kind", HARD)
def test_weights_are_finite(name: str, kind: str) -> None:
    given = hard_gram(kind)
    before = given.clone()
    weights = COMBINERS[name].chosen(given)
    assert weights.shape == (len(given),) and weights.dtype == torch.float64
    assert bool(weights.isfinite().all())
    assert torch.equal(given, before)


@every_combiner
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(name: str, bad: float) -> None:
    given = gram(vectors(3, 4))
    given[1, 1] = bad
    with pytest.raises(NonFinite, match="gram: inner products of vector 1 are NaN or infinite"):
        COMBINERS[name].chosen(given)


@every_combiner
@pytest.mark.parametrize("shape", [(3,), (2, 3), (0, 0)])
def test_what_is_no_gram_matrix_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"gram: shape .*, expected \(tasks, tasks\)"):
        COMBINERS[name].chosen(torch.zeros(shape))


@every_combiner
def test_a_seed_decides_everything_random(name: str) -> None:
    given = gram(vectors(6, 3))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    combiner = COMBINERS[name]
    seeds = [0, 0, 1, 2, -3, 2**70]
    first, again, *others = (combiner.chosen(given, seed) for seed in seeds)
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert combiner.draws != all(torch.equal(first, other) for other in others)


@every_combiner
def test_an_unknown_parameter_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"combiner '{name}': unknown parameter 'zzz'; known: "):
        combiner_called(name, zzz=1)


def test_a_misspelt_combiner_is_named() -> None:
    with pytest.raises(InputError, match="no combiner called 'pcgard'; did you mean 'pcgrad'"):
        combiner_called("pcgard")


def halves(given: Tensor) -> Tensor:
    return torch.full((len(given),), 0.5)


def shifted(given: Tensor, *, by: float = 0.0) -> Tensor:
    return given.diagonal() + by


def test_a_function_of_the_gram_matrix_is_a_combiner() -> None:
    assert combiner_called(halves).chosen(torch.eye(3)).tolist() == [0.5] * 3
    assert combiner_called(shifted, by=1.0).chosen(2 * torch.eye(2)).tolist() == [3, 3]
    assert combiner_called("torch:ones_like").name == "ones_like"
    combiner = combiner_called(halves)
    assert isinstance(combiner, Combiner) and combiner_called(combiner).name == "halves"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda given: given, r"returned weights of shape \(3, 3\), expected \(3,\), a weight for each task"),
        (lambda given: given.sum(), r"returned weights of shape \(\), expected \(3,\)"),
        (lambda given: given.diagonal() / 0, r"returned \[inf, inf, inf\], expected finite weights"),
    ],
)
def test_what_a_function_returns_is_checked(function: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"combiner '<lambda>': {message}"):
        combiner_called(function).chosen(torch.eye(3))


@pytest.mark.parametrize(
    ("function", "params", "message"),
    [
        (None, {}, "combiner: None found, expected a name or a function of the Gram matrix"),
        (3, {}, "combiner: 3 found"),
        (shifted, {"bye": 1}, "combiner 'shifted': takes .*, got an unexpected keyword argument 'bye'"),
        (lambda: 1, {}, "combiner '<lambda>': takes \\(\\), too many positional arguments"),
    ],
)
def test_what_is_no_function_of_the_gram_matrix_is_refused_at_once(
    function: Any, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        combiner_called(function, **params)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda given: given.nothing, "combiner '<lambda>': raised AttributeError: .*nothing"),
        (lambda given: ["much"] * len(given), "raised ValueError: could not convert"),
        (lambda given: None, "raised TypeError|returned weights of shape"),
    ],
)
def test_what_a_function_raises_is_told(function: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        combiner_called(function).chosen(torch.eye(3))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", [list, tuple, torch.Tensor.numpy, torch.Tensor.float])
def test_weights_in_any_form_are_taken(form: Any) -> None:
    assert combiner_called(lambda given: form(given.sum(1))).chosen(torch.eye(2)).tolist() == [1, 1]
    unwritable: Any = np.diag
    assert combiner_called(unwritable).chosen(torch.eye(2)).tolist() == [1, 1]


def update(name: str, rows: Tensor, seed: int = 0) -> Tensor:
    return COMBINERS[name].chosen(gram(rows), seed) @ rows


@every_combiner
@pytest.mark.parametrize("size", [1e-8, 1.0, 1e5])
def test_one_vector_stays_as_it_is(name: str, size: float) -> None:
    row = size * vectors(1, 5)
    own = {"nash_mtl": 1 / row.norm(), "cagrad": torch.tensor(1.5)}.get(name, torch.tensor(1.0))
    assert torch.allclose(update(name, row), own.double() * row, rtol=1e-12)


@every_combiner
def test_copies_of_a_vector_give_a_multiple_of_it(name: str) -> None:
    row = vectors(1, 6)
    made = update(name, row.expand(5, 6))
    ratio = made / row[0]
    assert torch.allclose(ratio, ratio[0].expand(6)) and ratio[0] > 0


@every_combiner
@pytest.mark.parametrize("tasks", [2, 5, 30])
def test_orthogonal_vectors_of_one_length_give_a_multiple_of_their_mean(name: str, tasks: int) -> None:
    axes = torch.linalg.qr(vectors(40, tasks))[0].T * 3
    made = update(name, axes)
    wanted = axes.mean(0) if name != "cosine" else axes[0]  # the others do not agree with the target
    ratio = made @ wanted / (wanted @ wanted)
    assert ratio > 0 and torch.allclose(made, ratio * wanted, atol=1e-9)


TAME = ["one", "two opposed", "zero row", "identical", "rank two", "thirty", "small", "large"]


@every_combiner
@pytest.mark.parametrize("kind", TAME)
def test_tasks_may_come_in_any_order(name: str, kind: str) -> None:
    rows = HARD[kind]
    if "order" not in COMBINERS[name].breaks:
        turned = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
        slack = 1e-6 if name == "nash_mtl" and kind in ("two opposed", "rank two") else 1e-9
        size = rows.abs().max() if name != "nash_mtl" else 1
        assert (update(name, rows[turned]) - update(name, rows)).abs().max() <= slack * size


@every_combiner
@pytest.mark.parametrize("kind", TAME)
@pytest.mark.parametrize("factor", [1e-6, 0.5, 1e8])
def test_longer_vectors_have_the_same_weights(name: str, kind: str, factor: float) -> None:
    rows = HARD[kind]
    if "scale" in COMBINERS[name].breaks:
        assert (update(name, factor * rows) - update(name, rows)).abs().max() < 1e-6
    else:
        change = update(name, factor * rows) - factor * update(name, rows)
        assert change.abs().max() <= 1e-9 * factor * rows.abs().max()


@pytest.mark.parametrize("name", ["mgda", "upgrad", "dualproj"])
@pytest.mark.parametrize("kind", [kind for kind in HARD if kind != "float32"])
def test_no_task_loses(name: str, kind: str) -> None:
    """The gain of a task along its own direction, as a share of the largest vector."""
    rows = HARD[kind]
    made = update(name, rows)
    lengths = rows.norm(dim=1)
    largest = lengths.max().clamp(min=1e-300)
    gains = rows @ (made / largest) / lengths.clamp(min=1e-300)
    assert bool((gains >= -1e-9).all())


def test_vectors_of_all_sizes_keep_their_say() -> None:
    rows = HARD["of all sizes"]
    lengths = rows.norm(dim=1)
    impartial, agreed = update("imtl_g", rows), update("nash_mtl", rows)
    projections = rows @ impartial / lengths
    assert torch.allclose(projections, projections[:1].expand(5), rtol=1e-6)
    assert bool((rows @ agreed / lengths > 0.05).all())
    shortest = update("mgda", rows)
    assert shortest.norm() <= lengths.min() * (1 + 1e-9)


@every_combiner
def test_the_same_bits_every_time(name: str) -> None:
    given = gram(vectors(9, 5))
    first = COMBINERS[name].chosen(given, 3)
    assert all(torch.equal(COMBINERS[name].chosen(given, 3), first) for _ in range(3))


@every_combiner
def test_float32_and_rounded_symmetry_change_little(name: str) -> None:
    rows = vectors(5, 30)
    exact = COMBINERS[name].chosen(gram(rows))
    assert torch.allclose(COMBINERS[name].chosen(gram(rows).float()), exact, rtol=1e-3, atol=1e-4)


@every_combiner
def test_a_combiner_says_what_it_is(name: str) -> None:
    combiner = COMBINERS[name]
    assert combiner.name == name
    assert combiner.summary.endswith(".") and len(combiner.summary) < 105
    assert name in ("mean", "sum") or "Source:" in str(combiner.function.__doc__)


def test_the_page_has_a_row_for_every_combiner_with_its_parameters() -> None:
    page = (Path(__file__).parents[2] / "docs" / "combiners.md").read_text(encoding="utf-8")
    rows = {row[0]: row[1] for row in re.findall(r"^\| `(\w+)` \|(.*)\|$", page, re.MULTILINE)}
    assert list(rows) == list(COMBINERS)
    for name, row in rows.items():
        assert set(re.findall(r"`(\w+)`", row.split("|")[2])) == set(COMBINERS[name].defaults())


def test_weights_and_entries_are_not_mixed_up() -> None:
    with pytest.raises(InputError, match="combiner 'graddrop': works on single entries"):
        COMBINERS["graddrop"].chosen(torch.eye(2))
    with pytest.raises(InputError, match="combiner 'mgda': gives weights"):
        COMBINERS["mgda"].merge(torch.ones(2, 3), torch.ones(3))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("cagrad", {"c": -1}, "c is -1: input should be greater than or equal to 0"),
        ("cagrad", {"c": "much"}, "c is 'much': input should be a valid number"),
        ("nash_mtl", {"max_norm": 0}, "max_norm is 0: input should be greater than 0"),
        ("aligned_mtl", {"scale": "max"}, "scale is 'max': input should be 'min', 'median' or 'mean'"),
        ("upgrad", {"ridge": float("nan")}, "ridge is nan: input should be a finite number"),
        ("cosine", {"target": -1}, "target is -1: input should be greater than or equal to 0"),
        ("wpcgrad", {"priorities": [0, 0]}, "priorities are all 0, expected one above 0"),
        ("wpcgrad", {"prioritys": [1, 2]}, "unknown parameter 'prioritys'; did you mean 'priorities'"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"combiner '{name}': {message}"):
        combiner_called(name, **params)


def test_parameters_are_for_the_number_of_tasks() -> None:
    three = torch.eye(3)
    with pytest.raises(InputError, match="priorities: 2 values, expected 3, one for each task"):
        combiner_called("wpcgrad", priorities=[1, 2]).chosen(three)
    with pytest.raises(InputError, match="target is 3, expected a number below 3"):
        combiner_called("cosine", target=3).chosen(three)


def test_parameters_are_added_to_those_that_a_combiner_has() -> None:
    combiner = combiner_called("wpcgrad", choice="expected")
    assert dict(combiner_called(combiner, priorities=[1, 2]).params) == {
        "choice": "expected",
        "priorities": [1, 2],
    }
    assert dict(combiner_called("cagrad", c=0.5).params) == {}  # the default
