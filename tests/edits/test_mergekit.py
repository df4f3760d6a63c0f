"""mergekit's methods: what they make is what the definitions make in float64."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from edits.mergekit_models import SHAPES, STATES, check, document, merge

# The definitions, in float64


def weighted(deltas: Tensor, *weights: float) -> Tensor:
    return torch.einsum("t,t...->...", torch.tensor(weights, dtype=deltas.dtype), deltas)


def elected(deltas: Tensor, weights: tuple[float, ...], *, mean: bool) -> Tensor:
    scaled = torch.stack([w * delta for w, delta in zip(weights, deltas, strict=True)])
    positive = scaled.sum(0) >= 0
    agree = torch.where(positive, scaled > 0, scaled < 0)
    total = torch.where(agree, scaled, 0.0).sum(0)
    if not mean:
        return total
    shares = torch.einsum("t,t...->...", torch.tensor(weights, dtype=deltas.dtype), agree.double())
    return total / torch.where(shares == 0, 1.0, shares)


def largest(delta: Tensor, density: float, gamma: float = 0.0) -> Tensor:
    n = delta.numel()
    kept = max(1, round(density * n))
    top = min(int(gamma * n), n - kept)
    order = delta.abs().flatten().argsort(descending=True)
    mask = torch.zeros(n, dtype=torch.bool)
    mask[order[top : top + kept]] = True
    return torch.where(mask.reshape(delta.shape), delta, 0.0)


def sparse(deltas: Tensor, densities: tuple[float, ...], gammas: tuple[float, ...] = (0.0, 0.0)) -> Tensor:
    return torch.stack([largest(*one) for one in zip(deltas, densities, gammas, strict=True)])


def restored(deltas: Tensor, kept: Tensor) -> Tensor:
    """Each of what is kept, brought back to the L1 norm of all."""
    pairs = zip(deltas, kept, strict=True)
    return torch.stack([left * (whole.abs().sum() / left.abs().sum()) for whole, left in pairs])


def arc(first: Tensor, second: Tensor, t: float, dim: int | None = None) -> Tensor:
    """SLERP by rotating in the plane of the two, without the formula's sines of multiples."""
    axes = tuple(range(first.dim())) if dim is None else (dim,)
    one, other = (v.norm(dim=axes, keepdim=True) for v in (first, second))
    angle = torch.arccos(((first / one) * (second / other)).sum(axes, keepdim=True))
    # The unit point at the angle t w is c e_1 + s e_2, with e_2 made upright of the second vector.
    c, s = (t * angle).cos(), (t * angle).sin()
    share = s / angle.sin()
    return (c - share * angle.cos()) * first + share * second


def karcher_mean(points: Tensor) -> Tensor:
    """Gradient descent on the sphere to the end."""
    flat = points.flatten(1)
    size = flat.norm(dim=1, keepdim=True)
    units = flat / size
    mean = units.mean(0) / units.mean(0).norm()
    for _ in range(200):
        dots = units @ mean
        away = units - dots[:, None] * mean
        step = (torch.atan2(away.norm(dim=1), dots) / away.norm(dim=1))[:, None] * away
        move = step.mean(0)
        mean = mean * move.norm().cos() + torch.sinc(move.norm() / torch.pi) * move
        mean = mean / mean.norm()
    found: Tensor = size.mean() * mean
    return found.reshape(points.shape[1:])


# Methods


def test_linear_averages_models_by_weight(here: Path) -> None:
    made = document("linear", "abc", base=None, weight=True)
    check(made, lambda base, deltas: base + weighted(deltas, 0.7, 0.4, 0.5) / 1.6, "abc")


def test_linear_without_normalize_adds_weights(here: Path) -> None:
    made = document("linear", base=None, weight=True, normalize=False)
    check(made, lambda base, deltas: 0.7 * (base + deltas[0]) + 0.4 * (base + deltas[1]))


@pytest.mark.parametrize(("normalize", "factor"), [(False, 0.5), (True, 0.5 / 1.1)])
def test_task_arithmetic(here: Path, normalize: bool, factor: float) -> None:
    made = document("task_arithmetic", weight=True, normalize=normalize, lambda_=0.5)
    check(made, lambda base, deltas: base + factor * weighted(deltas, 0.7, 0.4))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_ties(here: Path, density: float, normalize: bool) -> None:
    made = document("ties", weight=True, density=density, normalize=normalize, lambda_=1.5)
    check(
        made,
        lambda base, deltas: base + 1.5 * elected(sparse(deltas, (density,) * 2), (0.7, 0.4), mean=normalize),
    )


def test_ties_with_a_density_for_each_model(here: Path) -> None:
    made = merge("""
        merge_method: ties
        base_model: base
        models:
          - {model: a, parameters: {weight: 0.7, density: 0.25}}
          - {model: b, parameters: {weight: -0.4, density: 0.75}}
    """)
    check(made, lambda base, deltas: base + elected(sparse(deltas, (0.25, 0.75)), (0.7, -0.4), mean=True))


@pytest.mark.parametrize(
    ("density", "gamma", "removed"), [(0.5, 0.1, 0.1), (0.5, 0, 0), (0.9, 0.3, 0.1), (1, 0.01, 0)]
)
def test_breadcrumbs(here: Path, density: float, gamma: float, removed: float) -> None:
    made = document("breadcrumbs", weight=True, density=density, gamma=gamma)
    check(
        made,
        lambda base, deltas: base + weighted(sparse(deltas, (density,) * 2, (removed + 1e-9,) * 2), 0.7, 0.4),
    )


def test_ties_and_breadcrumbs_rescale_what_is_kept(here: Path) -> None:
    made = document("ties", weight=True, density=0.3, rescale=True)
    check(
        made,
        lambda base, deltas: (
            base + elected(restored(deltas, sparse(deltas, (0.3, 0.3))), (0.7, 0.4), mean=True)
        ),
    )
    made = merge("""
        merge_method: breadcrumbs
        base_model: base
        models:
          - {model: a, parameters: {weight: 0.7, density: 0.5, gamma: 0.125}}
          - {model: b, parameters: {weight: 0.4, density: 1, gamma: 0.1}}
        parameters: {rescale: true}
    """)
    check(
        made,
        lambda base, deltas: (
            base + weighted(restored(deltas, sparse(deltas, (0.5, 1), (0.125, 0))), 0.7, 0.4)
        ),
    )


def test_rescaling_may_differ_from_tensor_to_tensor(here: Path) -> None:
    made = merge("""
        merge_method: ties
        base_model: base
        models:
          - {model: a, parameters: {weight: 1, density: 0.25}}
        parameters:
          rescale: [{filter: norm, value: false}, {value: true}]
    """).weights
    for name in SHAPES:
        base, deltas = (
            STATES["base"][name].double(),
            (STATES["a"][name].double() - STATES["base"][name])[None],
        )
        kept = largest(deltas[0], 0.25)[None]
        expected = kept if "norm" in name else restored(deltas, kept)
        torch.testing.assert_close(made[name].double(), base + expected[0], rtol=0, atol=1e-6)


def test_breadcrumbs_ties_with_values_for_each_model(here: Path) -> None:
    made = merge("""
        merge_method: breadcrumbs_ties
        base_model: base
        models:
          - {model: a, parameters: {weight: 0.7, density: 0.5, gamma: 0.125}}
          - {model: b, parameters: {weight: 0.4, density: 0.25, gamma: 0}}
    """)
    check(
        made,
        lambda base, deltas: (
            base + elected(sparse(deltas, (0.5, 0.25), (0.125, 0.0)), (0.7, 0.4), mean=False)
        ),
    )


@pytest.mark.parametrize("rescale", [True, False])
def test_dare_keeps_entries_whole_or_drops_them(here: Path, rescale: bool) -> None:
    made = document("dare_linear", "a", weight=True, density=0.5, rescale=rescale)
    ratios = []
    for name in SHAPES:
        base = STATES["base"][name].double()
        ratios.append(((made.weights[name] - base) / (0.7 * (STATES["a"][name] - base))).flatten())
    ratio = torch.cat(ratios)
    full = 2.0 if rescale else 1.0
    kept = ratio > full / 2
    torch.testing.assert_close(ratio[kept], torch.full_like(ratio[kept], full), rtol=1e-3, atol=0)
    assert ratio[~kept].abs().max() < 1e-3
    assert abs(kept.double().mean() - 0.5) < 4 * (0.25 / len(ratio)) ** 0.5


def test_dare_drops_other_entries_of_each_model(here: Path) -> None:
    same = "{weight: 1, density: 0.5}", "{weight: 1, density: 0.4999}"
    made = merge(f"""
        merge_method: dare_linear
        base_model: base
        models:
          - {{model: a, parameters: {same[0]}}}
          - {{model: b, parameters: {same[1]}}}
    """)
    name = "model.embed_tokens.weight"
    changed = made.weights[name] - STATES["base"][name]
    neither = (changed.abs() < 1e-6).double().mean()
    assert 0.1 < neither < 0.4  # a quarter if the masks are independent, half if they are one


def test_dare_ties_of_everything_is_an_election(here: Path) -> None:
    made = document("dare_ties", weight=True, normalize=True)
    check(made, lambda base, deltas: base + elected(deltas, (0.7, 0.4), mean=True))


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_matches_the_l1_norm(here: Path, method: str) -> None:
    made = document(method, "a", weight=True, density=0.5, epsilon=0.2)
    factor = 1.0 if method == "della" else 0.7  # one vector alone is divided by its own weight
    for name in SHAPES:
        delta = STATES["a"][name] - STATES["base"][name]
        changed = made.weights[name] - STATES["base"][name]
        if changed.any():  # in a tensor of six entries all may be dropped
            torch.testing.assert_close(changed.abs().sum(), factor * delta.abs().sum(), rtol=1e-4, atol=1e-4)
        else:
            assert delta.numel() == 6


def test_slerp_goes_from_the_base_to_the_other(here: Path) -> None:
    made = merge(
        "{merge_method: slerp, base_model: a, models: [{model: b}, {model: a}], parameters: {t: 0.3}}"
    )
    check(made, lambda base, deltas: arc(base + deltas[0], base + deltas[1], 0.3), tolerance=1e-5)


@pytest.mark.parametrize("t", [0, 1])
def test_slerp_ends_at_the_models(here: Path, t: int) -> None:
    made = merge(f"{{merge_method: slerp, base_model: a, models: [{{model: b}}], parameters: {{t: {t}}}}}")
    for name in SHAPES:
        assert torch.equal(made.weights[name], STATES["ab"[t]][name])


@pytest.mark.parametrize(
    ("flatten", "by_rows", "dim"), [(True, False, None), (False, False, -1), (False, True, 0)]
)
def test_nuslerp_turns_task_vectors(here: Path, flatten: bool, by_rows: bool, dim: int | None) -> None:
    made = document("nuslerp", weight=True, nuslerp_flatten=flatten, nuslerp_row_wise=by_rows)
    check(made, lambda base, deltas: base + arc(deltas[0], deltas[1], 0.4 / 1.1, dim), tolerance=1e-5)


def test_nuslerp_without_a_base_turns_weights(here: Path) -> None:
    made = document("nuslerp", base=None, weight=True)
    check(made, lambda base, deltas: arc(base + deltas[0], base + deltas[1], 0.4 / 1.1), tolerance=1e-5)


@pytest.mark.parametrize(("base", "normalize"), [("base", True), ("base", False), (None, True)])
def test_multislerp(here: Path, base: str | None, normalize: bool) -> None:
    made = document("multislerp", "abc", base=base, weight=True, normalize_weights=normalize)

    def rule(start: Tensor, deltas: Tensor) -> Tensor:
        points = deltas if base else start + deltas
        weights = torch.tensor([0.7, 0.4, 0.5], dtype=torch.float64)
        weights = weights / weights.sum() if normalize else weights
        size = points.flatten(1).norm(dim=1)
        mean = torch.einsum("t,t...->...", weights / size, points)
        turned: Tensor = (weights * size).sum() * mean / mean.norm()
        return start + turned if base else turned

    check(made, rule, "abc", tolerance=1e-5)


def test_karcher(here: Path) -> None:
    made = document("karcher", "abc", base=None, max_iter=100, tol=1e-12)
    check(made, lambda base, deltas: karcher_mean(base + deltas), "abc", tolerance=1e-5)


def test_karcher_counts_a_base_that_is_given_as_a_model(here: Path) -> None:
    made = document("karcher", "a", base="base", max_iter=100, tol=1e-12)
    check(made, lambda base, deltas: karcher_mean(torch.stack([base + deltas[0], base])), "a", tolerance=1e-5)


@pytest.mark.parametrize("by_filter", [True, False])
def test_model_stock(here: Path, by_filter: bool) -> None:
    made = document("model_stock", "abc", filter_wise=by_filter)

    def rule(base: Tensor, deltas: Tensor) -> Tensor:
        rows = deltas.reshape(
            3, -1 if by_filter and base.dim() > 1 else 1, base.shape[-1] if by_filter else base.numel()
        )
        unit = rows / rows.norm(dim=2, keepdim=True)
        pairs = [(unit[i] * unit[j]).sum(1) for i in range(3) for j in range(i)]
        cosine = torch.stack(pairs).mean(0).clamp(min=0)
        ratio = 3 * cosine / (1 + 2 * cosine)
        return base + (ratio[:, None] * rows.mean(0)).reshape(base.shape)

    check(made, rule, "abc")


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_sce(here: Path, fraction: float) -> None:
    made = document("sce", "abc", select_topk=fraction)

    def rule(base: Tensor, deltas: Tensor) -> Tensor:
        variance = deltas.var(0, unbiased=False)
        chosen = deltas * (largest(variance, fraction) > 0)
        energy = (chosen**2).flatten(1).sum(1)
        return base + agreeing_mean(chosen, energy / energy.sum())

    check(made, rule, "abc")


def agreeing_mean(deltas: Tensor, weights: Tensor) -> Tensor:
    agree = torch.where(deltas.sum(0) >= 0, deltas > 0, deltas < 0).double()
    total = torch.einsum("t,t...->...", weights, agree)
    return torch.einsum("t,t...->...", weights, agree * deltas) / torch.where(total == 0, 1.0, total)


@pytest.mark.parametrize("t", [0.05, "5e-2"])
def test_nearswap_also_by_a_number_that_yaml_takes_for_a_word(here: Path, t: object) -> None:
    made = document("nearswap", "a", t=t)
    check(made, lambda base, deltas: base + deltas[0].clamp(-0.05, 0.05), "a")


def test_arcee_fusion(here: Path) -> None:
    made = document("arcee_fusion", "a")

    def rule(base: Tensor, deltas: Tensor) -> Tensor:
        after, before = (torch.softmax(x, -1) + 1e-8 for x in (base + deltas[0], base))
        importance = (deltas[0].abs() * (after * (after / before).log()).sum(-1, keepdim=True)).flatten()
        ordered, last = importance.sort().values, importance.numel() - 1
        low, middle, high = (ordered[int(q * last)] for q in (0.25, 0.5, 0.75))
        return base + deltas[0] * (importance >= middle + 1.5 * (high - low)).reshape(base.shape)

    check(made, rule, "a")


def test_passthrough_is_the_model_bit_for_bit_but_where_scaled(here: Path) -> None:
    made = merge("""
        merge_method: passthrough
        models:
          - {model: a, parameters: {scale: [{filter: o_proj, value: 0.25}]}}
    """)
    for name in SHAPES:
        factor = 0.25 if "o_proj" in name else 1.0
        assert torch.equal(made.weights[name], factor * STATES["a"][name])
