"""SVC: its values by another way, its laws, and chains with it in each place that takes rules."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from taskvec.errors import InputError, NonFinite
from taskvec.rules import RULES
from taskvec.rules.rule import Place
from taskvec.vectors import TaskVector, apply, combine
from taskvec.weights import open_weights

few = settings(max_examples=25, deadline=None, derandomize=True)
CHAINS = ["tsv+svc", "ties+svc", "sum+lines+svc", "svc", "iso_cts+svc+lines", "dare+magmax+svc"]


@st.composite
def stacks(draw: st.DrawFn) -> Tensor:
    """Float64 matrices (task, m, n) of full or of low rank, some of them zero."""
    number, m, n = draw(st.integers(1, 5)), draw(st.integers(1, 8)), draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rank = draw(st.integers(1, 8))
    left, right = (torch.randn(number, *shape, generator=generator) for shape in ((m, rank), (rank, n)))
    stack = (left @ right).double()
    if number > 1 and draw(st.booleans()):
        stack[0] = 0
    return stack


def calibrated(merged: Tensor, stack: Tensor, least: float) -> Tensor:
    """Direction after direction, from the eigenvectors of M M^T."""
    matrix, tasks = merged.numpy(), stack.numpy()
    values, vectors = np.linalg.eigh(matrix @ matrix.T)
    result = np.zeros_like(matrix)
    for value, u in zip(values, vectors.T, strict=True):
        if value > 1e-14 * values[-1]:
            row = u @ matrix
            parts = [u @ task for task in tasks]
            shares = [part @ row / (part @ part) if part @ part > 1e-20 else least for part in parts]
            result += len(tasks) / sum(max(least, share) for share in shares) * np.outer(u, row)
    return torch.from_numpy(result)


@few
@given(stacks(), st.sampled_from([0.1, 0.5]))
def test_svc_by_eigenvectors(stack: Tensor, least: float) -> None:
    values = torch.linalg.svdvals(stack.sum(0))
    gaps = values[:-1] - values[1:]
    if not len(gaps) or bool((gaps[values[:-1] > 1e-9] > 1e-3 * values[0]).all()):
        assert_close(
            RULES["svc"](stack, least=least), calibrated(stack.sum(0), stack, least), atol=1e-6, rtol=1e-6
        )


@few
@given(stacks(), st.integers(1, 5), st.sampled_from(["sum", "mean", "ties", "magmax"]))
def test_copies_of_a_vector_count_once_after_any_merge(stack: Tensor, copies: int, rule: str) -> None:
    one = stack[-1:]
    params = {"keep": 1} if rule == "ties" else {}
    assert_close(RULES[f"{rule}+svc"](one.expand(copies, -1, -1), **params), one[0])


@few
@given(stacks(), st.floats(0.2, 100))
def test_a_factor_of_what_was_merged_cancels(stack: Tensor, factor: float) -> None:
    tiny = 1e-9  # nothing is clamped
    once = RULES["svc"](stack.abs(), least=tiny)
    again = RULES["svc"](stack.abs(), least=tiny, weights=[factor] * len(stack))
    assert_close(again, once, atol=1e-6, rtol=1e-6)


def test_what_belongs_to_one_task_grows_and_what_all_share_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(9, 9, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(7, 7, generator=generator, dtype=torch.float64)).Q
    shared = 5 * torch.outer(left[:, 0], right[0])
    own = [(t + 1) * torch.outer(left[:, t + 1], right[t + 1]) for t in range(4)]
    made = RULES["svc"](torch.stack([shared + part for part in own]))
    # Four tasks in 5 of the sum's 20; one in its own, of which the others have nothing.
    assert_close(made, shared + 4 / (1 + 3 * 0.1) * torch.stack(own).sum(0))


@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (1, 6), (6, 1), (1, 1)])
@pytest.mark.parametrize("tasks", [1, 2, 12])
def test_wide_and_tall_and_many_tasks(shape: tuple[int, int], tasks: int) -> None:
    stack = torch.randn(tasks, *shape, generator=torch.Generator().manual_seed(0))
    made = RULES["tsv+svc"](stack)
    assert made.isfinite().all() and made.shape == shape and made.norm() > 0


def test_what_is_no_matrix_or_excluded_stays_as_it_was_merged() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in [(), (5,), (4, 3, 2), (0, 3), (4, 3)]:
        stack = torch.randn(3, *shape, generator=generator)
        place = Place("embed.weight", axes=len(shape))
        plain, after = (RULES[rule](stack, exclude="embed", _place=place) for rule in ("tsv", "tsv+svc"))
        assert_close(plain, after)


def test_exclude_is_one_parameter_of_a_chain_and_other_names_twice_are_refused() -> None:
    assert RULES["tsv+svc"].parameters() == {"exclude": None, "least": 0.1}
    with pytest.raises(InputError, match=r"rule 'tsv\+svc': exclude is '\('"):
        RULES["tsv+svc"].settings({"exclude": "("})
    with pytest.raises(InputError, match="two of its rules have the parameter 't'"):
        RULES["nearswap+slerp+svc"]
    for wrong in ("svc+svc", "tsv+svc+svc", "svc+tsv", "lines+svc+lines"):
        with pytest.raises(InputError, match="of after, several different ones"):
            RULES[wrong]


def test_nan_is_refused_with_the_name_of_the_matrix() -> None:
    stack = torch.ones(2, 3, 3)
    stack[1, 0, 0] = torch.nan
    with pytest.raises(NonFinite, match=r"'w' holds NaN .* exclude"):
        RULES["svc"](stack, _place=Place("w"))


def test_it_sees_the_vectors_and_not_what_was_left_of_them() -> None:
    generator = torch.Generator().manual_seed(0)
    stack = torch.randn(3, 6, 5, generator=generator, dtype=torch.float64)
    left = RULES["breadcrumbs+ties"](stack, density=0.5, keep=1)
    made = RULES["breadcrumbs+ties+svc"](stack, density=0.5, keep=1)
    assert_close(made, calibrated(left, stack, 0.1))


@pytest.mark.parametrize("rule", ["tsv", "dc_merge", "knots"])
def test_rounding_of_low_rank_vectors_is_no_direction_of_theirs(rule: str) -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(3, *shape, generator=generator) for shape in ((32, 4), (4, 48)))
    stack = left @ right  # as LoRA adapters: what is beyond rank 4 is rounding
    made = RULES[f"{rule}+svc"](stack)
    assert_close(made, RULES["sum+svc"].stages[-1](RULES[rule](stack), _given=stack), atol=0.01, rtol=0.01)


def model(dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"layers.0.w": (6, 4), "layers.1.w": (4, 6), "layers.1.b": (4,), "embed.w": (8, 4)}
    base = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    tuned = {
        label: {
            name: (value.float() + 0.1 * torch.randn(value.shape, generator=generator)).to(dtype)
            for name, value in base.items()
        }
        for label in "abc"
    }
    return base, tuned


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", CHAINS)
def test_chains_in_combine_apply_and_recipes_are_the_same(
    rule: str, dtype: torch.dtype, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from taskvec.cli import main

    base, tuned = model(dtype)
    for label, weights in {"base": base, **tuned}.items():
        (tmp_path / label).mkdir()
        (tmp_path / label / "config.json").write_text("{}")
        save_file(weights, tmp_path / label / "model.safetensors", {"format": "pt"})
        if label != "base":
            vector = TaskVector.between(tmp_path / "base", tmp_path / label)
            vector.save(tmp_path / f"{label}.safetensors")
    recipe = {"base": "base", "models": {label: label for label in "abc"}, "rule": rule, "scale": 0.5}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    vectors = [word for label in "abc" for word in ("-v", f"{label}={tmp_path / label}.safetensors")]
    line = ["apply", str(tmp_path / "base"), *vectors, "--rule", rule, "--scale", "0.5"]
    for words in (
        [*line, "-o", str(tmp_path / "applied")],
        ["merge", str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "merged")],
    ):
        with pytest.raises(SystemExit) as done:
            main(words)
        assert not done.value.code, capsys.readouterr().err
    made = combine(rule, [TaskVector.between(base, one) for one in tuned.values()])
    expected = apply(base, 0.5 * made)
    for folder in ("applied", "merged"):
        written = open_weights(tmp_path / folder)
        assert all(torch.equal(written.read(name), value) for name, value in expected.items())
    assert not torch.equal(expected["layers.0.w"], base["layers.0.w"])
