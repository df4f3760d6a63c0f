"""Sums of adapters written as one adapter: exactly, or as the nearest of a rank."""

import json
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import taskvec as tv
from adapters import Network, bert, convnext, gpt2, llama, loaded, merged, save_adapter_of, save_base
from taskvec.errors import InputError, NonFinite
from taskvec.vectors import TaskVector, save_adapter
from taskvec.vectors.lora.lowrank import leading, leading_of_product, norm_of_product
from tiny_networks import build

LINEAR = {"target_modules": "all-linear"}
Case = tuple[Callable[[], Network], list[dict[str, Any]], list[float]]
CASES: dict[str, Case] = {
    "one adapter at weight one": (llama, [LINEAR], [1.0]),
    "unequal ranks and alphas, one forgotten": (
        llama,
        [{"r": 4, "lora_alpha": 8}, {"r": 3, "lora_alpha": 1, "target_modules": ["q_proj", "up_proj"]}],
        [0.7, -1.3],
    ),
    "rank-stabilized and plain": (
        llama,
        [{"use_rslora": True, "r": 4, **LINEAR}, {"r": 2, **LINEAR}],
        [1, 0.5],
    ),
    "patterns of ranks and alphas": (
        llama,
        [
            {
                "rank_pattern": {"q_proj": 2, "layers.0.mlp.up_proj": 5},
                "alpha_pattern": {"v_proj": 3},
                **LINEAR,
            },
            {"rank_pattern": {"^model.layers.1.self_attn.q_proj": 7}, **LINEAR},
        ],
        [0.4, 0.6],
    ),
    "three classifiers": (bert, [{"target_modules": ["query", "dense"]}] * 3, [0.2, 0.3, -0.1]),
    "layers stored as inputs by outputs": (
        gpt2,
        [{"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}] * 2,
        [2.0, -0.5],
    ),
    "embeddings": (
        llama,
        [{"target_modules": ["embed_tokens", "q_proj"]}, {"target_modules": ["embed_tokens"], "r": 2}],
        [0.5, 0.5],
    ),
    "convolutions": (
        convnext,
        [
            {"target_modules": ["pwconv1", "downsampling_layer.1"]},
            {"target_modules": ["downsampling_layer.1"]},
        ],
        [1.5, -0.5],
    ),
}


def save_adapters(case: str, folder: Path) -> tuple[Callable[[], Network], list[Path], list[float]]:
    make, configs, weights = CASES[case]
    base = save_base(make, folder / "base")
    adapters = [
        save_adapter_of(base, make, folder / f"adapter{seed}", seed=seed, **config)
        for seed, config in enumerate(configs)
    ]
    return make, adapters, weights


def weighted(
    make: Callable[[], Network], folder: Path, adapters: list[Path], weights: list[float]
) -> dict[str, Tensor]:
    """Base plus the weighted sum of what each adapter changes, as PEFT merges it."""
    base = loaded(make, folder / "base").state_dict()
    tuned = [merged(folder / "base", make, adapter) for adapter in adapters]
    return {
        name: tensor + sum(w * (one[name] - tensor) for w, one in zip(weights, tuned, strict=True))
        for name, tensor in base.items()
    }


def summed(adapters: list[Path], weights: list[float]) -> TaskVector:
    first, *others = (w * TaskVector.load(adapter) for w, adapter in zip(weights, adapters, strict=True))
    return sum(others, first)


@pytest.mark.parametrize("bound", [False, True], ids=["no base", "with its base"])
@pytest.mark.parametrize("case", CASES)
def test_peft_merges_the_written_sum_to_the_sum_of_what_it_merges(
    case: str, bound: bool, tmp_path: Path
) -> None:
    make, adapters, weights = save_adapters(case, tmp_path)
    vector = summed(adapters, weights)
    if case == "embeddings" and not bound:  # PEFT saves the embedding of the base too, to be compared with it
        with pytest.raises(InputError, match="known only relative to the base"):
            save_adapter(vector, tmp_path / "sum")
        return
    made = save_adapter(vector.with_base(tmp_path / "base") if bound else vector, tmp_path / "sum")
    assert made.error == 0 and not made.left_out and not made.notes
    expected = weighted(make, tmp_path, adapters, weights)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        network = PeftModel.from_pretrained(
            loaded(make, tmp_path / "base"), str(made.path), autocast_adapter_dtype=False
        )
    assert not [one for one in said if "missing" in str(one.message) or "pattern" in str(one.message)]
    written = network.merge_and_unload().state_dict()
    again = tv.apply(tmp_path / "base", TaskVector.load(made.path))
    for name, tensor in expected.items():
        torch.testing.assert_close(written[name], tensor, rtol=1e-6, atol=2e-7)
        if name in again:  # which lacks the aliases of tied tensors
            torch.testing.assert_close(again[name], tensor, rtol=1e-6, atol=2e-7)


STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
MIXTURES: dict[str, list[dict[str, Any]]] = {
    "mixtral": [
        {"target_modules": ["q_proj"], "target_parameters": [*STACKS, "mlp.gate.weight"]},
        {"target_modules": ["q_proj", "o_proj"], "target_parameters": STACKS, "r": 2},
    ],
    "gpt_oss": [
        {"target_modules": ["v_proj"], "target_parameters": STACKS, "r": 3, "lora_alpha": 1},
        {"target_modules": ["v_proj"], "target_parameters": [*STACKS, "mlp.router.weight"]},
    ],
    "qwen3_moe": [{"target_modules": ["k_proj"], "target_parameters": STACKS, "use_rslora": True}] * 2,
}


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("kind", MIXTURES)
def test_factors_of_stacked_experts_add_up(kind: str, rank: int | None, tmp_path: Path) -> None:
    make, weights = partial(build, kind), [0.75, -0.5]
    base = save_base(make, tmp_path / "base", torch.float32)
    adapters = [
        save_adapter_of(base, make, tmp_path / f"adapter{seed}", seed=seed, **config)
        for seed, config in enumerate(MIXTURES[kind])
    ]
    vector = summed(adapters, weights)
    with pytest.raises(InputError, match="unknown without the base"):
        save_adapter(vector, tmp_path / "sum")
    made = save_adapter(vector.with_base(base), tmp_path / "sum", rank=rank)
    assert not made.left_out
    if rank is None:
        expected = weighted(make, tmp_path, adapters, weights)
        written = merged(base, make, made.path)
        for name, tensor in expected.items():
            torch.testing.assert_close(written[name], tensor, rtol=1e-5, atol=1e-6)
    else:
        read = TaskVector.load(made.path).with_base(base)
        missed = (vector.with_base(base) - read).norm() / vector.with_base(base).norm()
        assert made.error == pytest.approx(missed, rel=1e-4) and 0.05 < missed < 1


def test_ranks_add_up_and_most_layers_have_the_usual_one(tmp_path: Path) -> None:
    _, adapters, weights = save_adapters("patterns of ranks and alphas", tmp_path)
    made = save_adapter(summed(adapters, weights), tmp_path / "sum")
    settings = json.loads((made.path / "adapter_config.json").read_text())
    pattern = {
        r"^model\.layers\.0\.self_attn\.q_proj": 6,
        r"^model\.layers\.1\.self_attn\.q_proj": 9,
        r"^model\.layers\.0\.mlp\.up_proj": 9,
    }
    assert made.rank == 9 and settings["r"] == settings["lora_alpha"] == 8
    assert settings["rank_pattern"] == settings["alpha_pattern"] == pattern
    assert settings["base_model_name_or_path"] == str(tmp_path / "base")


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.3, -2.0]])
def test_it_is_what_peft_concatenates(weights: list[float], tmp_path: Path) -> None:
    _, adapters, _ = save_adapters("unequal ranks and alphas, one forgotten", tmp_path)
    one = save_adapter_of(tmp_path / "base", llama, tmp_path / "same", seed=9, r=4, lora_alpha=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = PeftModel.from_pretrained(
            loaded(llama, tmp_path / "base"), str(adapters[0]), adapter_name="a", autocast_adapter_dtype=False
        )
        network.load_adapter(str(one), "b", autocast_adapter_dtype=False)
    network.add_weighted_adapter(["a", "b"], weights, "both", combination_type="cat")
    network.set_adapter("both")
    theirs = network.merge_and_unload().state_dict()
    made = save_adapter(summed([adapters[0], one], weights), tmp_path / "sum")
    ours = merged(tmp_path / "base", llama, made.path)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("case", ["unequal ranks and alphas, one forgotten", "convolutions", "embeddings"])
def test_a_sum_of_a_rank_is_the_nearest_and_its_error_is_said(case: str, tmp_path: Path) -> None:
    _, adapters, weights = save_adapters(case, tmp_path)
    vector = summed(adapters, weights).with_base(tmp_path / "base")
    made = save_adapter(vector, tmp_path / "sum", rank=2)
    written = TaskVector.load(made.path).with_base(tmp_path / "base")
    for name, error in made.errors.items():
        matrix = vector[name].flatten(1)
        strengths = torch.linalg.svdvals(matrix)
        missed = (matrix - written[name].flatten(1)).norm() / matrix.norm()
        assert error == pytest.approx(float(strengths[2:].norm() / strengths.norm()), abs=1e-7)
        assert error == pytest.approx(float(missed), abs=1e-7)


def test_what_is_no_sum_of_plain_adapters_takes_a_rank(tmp_path: Path) -> None:
    base = save_base(llama, tmp_path / "base")
    plain = save_adapter_of(base, llama, tmp_path / "plain", seed=1)
    dora = save_adapter_of(base, llama, tmp_path / "dora", seed=2, use_dora=True)
    whole = save_adapter_of(base, llama, tmp_path / "whole", seed=3, modules_to_save=["norm"])
    for other, name in ((dora, "self_attn.[qv]_proj.weight"), (whole, r"model\.\S*norm\.weight")):
        vector = (TaskVector.load(plain) + TaskVector.load(other)).with_base(base)
        with pytest.raises(InputError, match=f"{name}' is not changed by factors alone.*--rank"):
            save_adapter(vector, tmp_path / "exact")
        made = save_adapter(vector, tmp_path / "sum", rank=16, force=True)
        assert made.matrices_error < 1e-6
        assert bool(made.left_out) == (other is whole)
    ties = tv.combine("ties", [TaskVector.load(plain), TaskVector.load(plain) * 2], keep=0.5)
    with pytest.raises(InputError, match="is not changed by factors alone"):
        save_adapter(ties, tmp_path / "ties")
    assert 0.1 < save_adapter(ties, tmp_path / "ties", rank=2).error < 1
    assert not list(tmp_path.glob(".*"))


def test_factors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    base = save_base(llama, tmp_path / "base")
    adapter = save_adapter_of(base, llama, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    factors = load_file(file)
    next(iter(factors.values()))[0, 0] = math.inf
    save_file(factors, file)
    with pytest.raises(NonFinite, match="self_attn"):
        save_adapter(TaskVector.load(adapter), tmp_path / "sum")


@pytest.mark.parametrize(("rows", "columns", "inner"), [(30, 20, 6), (20, 30, 25), (700, 600, 9), (5, 4, 1)])
def test_products_are_cut_without_being_made(rows: int, columns: int, inner: int) -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, inner, generator=generator, dtype=torch.float64)
    right = torch.randn(inner, columns, generator=generator, dtype=torch.float64)
    u, s, v = torch.linalg.svd(left @ right, full_matrices=False)
    assert norm_of_product(left, right) == pytest.approx(float(s.norm()), rel=1e-12)
    for rank in (1, 4, 40):
        one, other = leading_of_product(left, right, rank)
        assert one.shape == (rows, rank) and other.shape == (rank, columns)
        nearest = (u[:, :rank] * s[:rank]) @ v[:rank]
        torch.testing.assert_close(one @ other, nearest, rtol=1e-10, atol=1e-10 * float(s[0]))
    dense = leading(left @ right, 4)
    one, other = leading_of_product(left, right, 4)
    if max(rows, columns) <= 512:
        torch.testing.assert_close(one @ other, dense[0] @ dense[1], rtol=1e-10, atol=1e-10)
