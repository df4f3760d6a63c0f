"""Task vectors extracted as LoRA adapters: the nearest of their rank, and loadable by PEFT."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

import taskvec as tv
from adapters import Network, bert, gpt2, llama, loaded, merged, save_base, untied_gpt2
from taskvec.cli import main
from taskvec.errors import InputError, NonFinite, OutputExists
from taskvec.vectors import Extraction, TaskVector, apply, save_adapter
from taskvec.vectors.lora.lowrank import leading, multiplied
from taskvec.weights import open_weights

MODELS: dict[str, tuple[Callable[[], Network], int]] = {
    "llama": (llama, 15),
    "gpt2, Conv1D": (gpt2, 8),
    "gpt2, Conv1D and Linear": (untied_gpt2, 9),
    "bert": (bert, 14),
}


def save_pair(make: Callable[[], Network], folder: Path, dtype: torch.dtype = torch.float64) -> TaskVector:
    """A base, the same with every parameter moved, and the vector between them."""
    base = save_base(make, folder / "base", dtype)
    network = loaded(make, base)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    network.save_pretrained(folder / "tuned")
    return TaskVector.between(base, folder / "tuned")


def best_error(delta: Tensor, rank: int) -> float:
    """What the nearest matrix of that rank misses of a matrix, relative to it."""
    strengths = torch.linalg.svdvals(delta.double())
    return float(strengths[rank:].norm() / strengths.norm())


@pytest.mark.parametrize("case", MODELS)
def test_peft_loads_an_extracted_adapter_without_a_word(case: str, tmp_path: Path) -> None:
    make, matrices = MODELS[case]
    vector = save_pair(make, tmp_path)
    made = save_adapter(vector, tmp_path / "lora", rank=3)
    assert len(made.errors) == matrices
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        network = PeftModel.from_pretrained(loaded(make, tmp_path / "base"), str(made.path))
    assert not [one for one in said if "missing" in str(one.message) or "unexpected" in str(one.message)]
    assert sum("lora_A" in name for name, _ in network.named_parameters()) == matrices
    expected = merged(tmp_path / "base", make, made.path)
    edited = apply(tmp_path / "base", TaskVector.load(made.path))
    for name in edited:
        torch.testing.assert_close(edited[name], expected[name], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("case", MODELS)
def test_the_errors_said_are_those_of_the_best_matrix_and_of_what_is_written(
    case: str, tmp_path: Path
) -> None:
    vector = save_pair(MODELS[case][0], tmp_path)
    made = save_adapter(vector, tmp_path / "lora", rank=3)
    written = TaskVector.load(made.path).with_base(tmp_path / "base")
    missed = {name: (vector[name] - written[name]).norm() for name in made.errors}
    for name, error in made.errors.items():
        assert error == pytest.approx(best_error(vector[name], 3), rel=1e-9)
        assert error == pytest.approx(float(missed[name] / vector[name].norm()), rel=1e-9)
    of_matrices = sum(float(one) ** 2 for one in missed.values())
    whole = sum(float(vector[name].norm()) ** 2 for name in made.errors)
    assert made.matrices_error == pytest.approx((of_matrices / whole) ** 0.5)
    assert made.error == pytest.approx((vector - written).norm() / vector.norm())
    assert made.left_out.keys() | made.errors.keys() == vector.keys()
    assert all(size == pytest.approx(float(vector[name].norm())) for name, size in made.left_out.items())
    record = json.loads((made.path / "taskvec.json").read_text())
    assert record["relative_errors"] == dict(made.errors) and record["left_out"] == dict(made.left_out)
    assert record["vector"]["base"]["fingerprint"] == open_weights(tmp_path / "base").fingerprint()


def test_an_adapter_comes_back_as_it_was(tmp_path: Path) -> None:
    """Extraction at the rank of an adapter, or above, gives its matrices again."""
    vector = save_pair(llama, tmp_path)
    low = TaskVector.load(save_adapter(vector, tmp_path / "low", rank=2).path).with_base(tmp_path / "base")
    for rank in (2, 5, 16):
        again = save_adapter(low, tmp_path / f"again{rank}", rank=rank)
        assert again.error < 1e-14 and not again.left_out
        merged(tmp_path / "base", llama, again.path)


def test_only_some_matrices_in_halves(tmp_path: Path) -> None:
    vector = save_pair(bert, tmp_path, torch.float32)
    made = save_adapter(vector, tmp_path / "lora", rank=4, only="attention", dtype=torch.bfloat16)
    assert len(made.errors) == 8 and all("attention" in name for name in made.errors)
    assert "bert.pooler.dense.weight" in made.left_out
    factors = load_file(made.path / "adapter_model.safetensors")
    assert {value.dtype for value in factors.values()} == {torch.bfloat16}
    written = TaskVector.load(made.path).with_base(tmp_path / "base")
    for name, error in made.errors.items():  # of the rounded factors, not of those before rounding
        assert error == pytest.approx(
            float((vector[name] - written[name]).norm() / vector[name].norm()), rel=1e-4
        )
        assert error > best_error(vector[name], 4)


def test_a_tied_output_layer_is_left_out(tmp_path: Path) -> None:
    weights = {"lm_head.weight": torch.zeros(6, 4), "layer.proj.weight": torch.zeros(4, 4)}
    weights["embed.weight"] = weights["lm_head.weight"]
    moved = {name: value + torch.eye(*value.shape) for name, value in weights.items()}
    moved["embed.weight"] = moved["lm_head.weight"]
    made = save_adapter(TaskVector.between(weights, moved), tmp_path / "lora", rank=2)
    assert list(made.errors) == ["layer.proj.weight"] and list(made.left_out) == ["lm_head.weight"]


def test_outputs_are_replaced_only_when_asked_and_inputs_never(tmp_path: Path) -> None:
    vector = save_pair(llama, tmp_path)
    made = save_adapter(vector, tmp_path / "lora", rank=1)
    with pytest.raises(OutputExists):
        save_adapter(vector, made.path, rank=2)
    assert save_adapter(vector, made.path, rank=2, force=True).rank == 2
    assert sorted(file.name for file in made.path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "taskvec.json",
    ]
    with pytest.raises(OutputExists, match="is an input"):
        save_adapter(TaskVector.load(made.path), made.path, rank=2, force=True)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 0}, "rank: 0, expected 1 or more"),
        ({"rank": 17}, "rank: 17, expected at most 16, that of the largest matrix"),
        ({"rank": 1, "only": "mlps"}, "no selection called 'mlps'; did you mean 'mlp'"),
        ({"rank": 1, "only": "re:nothing"}, "re:nothing"),
        ({"rank": 1, "dtype": torch.int8}, "dtype int8, expected one of"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        save_adapter(save_pair(llama, tmp_path), tmp_path / "lora", **settings)
    assert not (tmp_path / "lora").exists()


def test_what_is_no_change_of_matrices_or_not_finite_is_refused(tmp_path: Path) -> None:
    base = {"a.weight": torch.zeros(3, 3), "a.bias": torch.zeros(3)}
    with pytest.raises(InputError, match="changes none of 1 linear layers"):
        save_adapter(TaskVector.between(base, {**base, "a.bias": torch.ones(3)}), tmp_path / "lora", rank=1)
    with pytest.raises(InputError, match="no matrix of a linear layer"):
        save_adapter(
            TaskVector.between({"a": torch.zeros(3)}, {"a": torch.ones(3)}), tmp_path / "lora", rank=1
        )
    with pytest.raises(InputError, match=r"without \.safetensors"):
        save_adapter(TaskVector.between(base, base), tmp_path / "lora.safetensors", rank=1)
    bad = TaskVector.between(base, {**base, "a.weight": torch.full((3, 3), float("nan"))})
    with pytest.raises(NonFinite, match=r"'a.weight' holds 9 values"):
        save_adapter(bad, tmp_path / "lora", rank=1)
    assert not (tmp_path / "lora").exists()


def test_diff_writes_an_adapter_by_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    vector = save_pair(bert, Path())

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            main(words)
        return int(done.value.code or 0), *capsys.readouterr()

    code, out, _ = run(
        "diff", "base", "tuned", "--rank", "2", "--only", "mlp", "-o", "lora", "--task", "x", "--json"
    )
    facts = json.loads(out)
    assert code == 0 and facts["matrices"] == 4 and facts["rank"] == 2
    expected = save_adapter(vector, "again", rank=2, only="mlp")
    assert facts["relative_errors"] == dict(expected.errors)
    assert json.loads(Path("lora/taskvec.json").read_text())["task"] == "x"
    code, out, _ = run("diff", "base", "tuned", "--rank", "2", "-o", "lora", "--force")
    assert code == 0 and "left out" in out and "bert.encoder.layer.1.output.dense.weight" in out
    code, _, error = run("diff", "base", "tuned", "--only", "mlp", "-o", "v.safetensors")
    assert code == 2 and error == "taskvec: --only: given without --rank\n"
    code, _, error = run("diff", "base", "tuned", "--rank", "0", "-o", "x")
    assert code == 2 and not Path("x").exists()


def test_the_package_offers_it() -> None:
    assert tv.save_adapter is save_adapter
    assert Extraction.__doc__


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (5, 1), (1, 1)])
def test_small_matrices_are_cut_exactly(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for rank in (1, 3, 50):
        left, right = leading(matrix, rank)
        assert left.shape == (shape[0], rank) and right.shape == (rank, shape[1])
        error = float((matrix - left @ right).norm() / matrix.norm())
        assert error == pytest.approx(best_error(matrix, rank), abs=1e-14)
    assert all(half.isfinite().all() and not half.any() for half in leading(torch.zeros(4, 3), 2))


@pytest.mark.parametrize("decay", [0.0, 0.5, 2.0])
def test_large_matrices_are_cut_nearly_as_well_and_by_no_chance(decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.linalg.qr(torch.randn(n, 520, generator=generator)).Q for n in (640, 520))
    matrix = (one / torch.arange(1, 521) ** decay) @ other.T
    state = torch.get_rng_state()
    left, right = leading(matrix, 8)
    assert torch.equal(torch.get_rng_state(), state)
    error = float((matrix - left @ right).norm() / matrix.norm())
    assert best_error(matrix, 8) * (1 - 1e-5) <= error <= best_error(matrix, 8) * 1.01
    assert all(map(torch.equal, leading(matrix, 8), (left, right)))


def test_rows_of_a_product_do_not_depend_on_which_are_read_together() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(300, 7, generator=generator), torch.randn(7, 50, generator=generator)
    whole = multiplied(left, right, None)
    torch.testing.assert_close(whole, left @ right)
    for rows in (
        slice(0, 1),
        slice(120, 140),
        slice(128, 300),
        slice(299, 300),
        slice(5, 5),
        slice(None, None, 7),
    ):
        assert torch.equal(multiplied(left, right, rows), whole[rows])
