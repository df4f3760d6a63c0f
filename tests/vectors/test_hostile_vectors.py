"""Vectors, adapters and expressions that lie: one sentence, in bounded memory and time."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import taskvec as tv
from hostile import little_memory, mutations, refused, texts
from taskvec.errors import CorruptFile, InputError, KeyMismatch
from taskvec.vectors import parse_expression
from taskvec.vectors.statistics import KEY, StatisticsInfo, read_statistics
from taskvec.weights import open_weights

DRAWS = torch.Generator().manual_seed(0)
BASE = {"m.weight": torch.zeros(40, 30), "b": torch.zeros(100), "same": torch.zeros(2)}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"form": "bf16"},
    "sparse": {"form": "sparse", "density": 0.05},
    "low-rank": {"form": "low-rank", "rank": 2},
    "int8": {"form": "int8"},
    "1-bit": {"form": "1-bit", "group": 64},
}


def vector(seed: int = 0) -> tv.TaskVector:
    draws = torch.Generator().manual_seed(seed)
    deltas = {name: torch.randn(BASE[name].shape, generator=draws) for name in ("m.weight", "b")}
    return tv.TaskVector.from_tensors(deltas, BASE, task="sst2", metrics={"accuracy": 0.9})


def header(path: Path) -> dict[str, Any]:
    return dict(json.loads(open_weights(path).metadata["taskvec"]))


def with_said(path: Path, said: object, tensors: dict[str, Tensor] | None = None) -> Path:
    """A copy of a vector whose header says something else."""
    changed = path.with_name("changed.safetensors")
    text = said if isinstance(said, str) else json.dumps(said)
    save_file(load_file(path) if tensors is None else tensors, changed, metadata={"taskvec": text})
    return changed


@pytest.mark.parametrize("form", FORMS)
def test_everything_a_vector_says_is_refused_in_words_or_right(form: str, tmp_path: Path) -> None:
    path = vector().save(tmp_path / "v.safetensors", **FORMS[form])
    norm = tv.TaskVector.load(path).norm()
    for text in texts(header(path)):
        changed = with_said(path, text)
        with little_memory():
            if not refused(lambda changed=changed: tv.TaskVector.load(changed).norm()):  # type: ignore[misc]
                found = tv.TaskVector.load(changed)
                assert found.norm() <= norm * 1.0001
                refused(lambda found=found: tv.apply(BASE, found.with_base(BASE))["b"])  # type: ignore[misc]


def test_everything_a_file_of_masks_says_is_refused_in_words_or_right(tmp_path: Path) -> None:
    path = tv.emr({"a": vector(0), "b": vector(1)}).save(tmp_path / "v.safetensors")
    for text in texts(header(path)):
        changed = with_said(path, text)
        with little_memory():
            refused(lambda changed=changed: tv.TaskVector.load(f"{changed}#a").norm())  # type: ignore[misc]


def test_everything_that_statistics_say_is_refused_in_words_or_read(tmp_path: Path) -> None:
    said = StatisticsInfo(
        kind="fisher",
        model={"ref": "m", "fingerprint": "f"},  # type: ignore[arg-type]  # as in a file
        task="sst2",
        data="d",
        split="train",
        examples=3,
        seed=0,
    )
    for text in texts(said.model_dump(mode="json")):
        save_file({"b": torch.ones(2)}, tmp_path / "s.safetensors", metadata={KEY: text})
        refused(lambda: read_statistics(open_weights(tmp_path / "s.safetensors")))


@pytest.mark.parametrize("form", ["int8", "1-bit"])
def test_a_group_that_is_larger_than_memory_takes_none(form: str, tmp_path: Path) -> None:
    path = vector().save(tmp_path / "v.safetensors", form=form, group=100)
    said, held, expected = header(path), load_file(path), tv.TaskVector.load(path)["b"]
    # The vector of 100 entries is one group, whatever size the groups are said to have; the matrix is not.
    del said["compact"]["coded"]["m.weight"], said["compact"]["errors"]["m.weight"]
    said["compact"]["settings"]["group"] = 1 << 31
    changed = with_said(path, said, {name: part for name, part in held.items() if name.startswith("b#")})
    with little_memory():
        assert torch.equal(tv.TaskVector.load(changed)["b"], expected)
        assert torch.equal(tv.TaskVector.load(changed).read("b", slice(30, 50)), expected[30:50])
    said["compact"]["settings"]["group"] = 1 << 40
    with pytest.raises(InputError, match="group"):
        tv.TaskVector.load(with_said(path, said))


@pytest.mark.parametrize("group", [1, 3, 7, 64, 1000])
def test_groups_that_begin_and_end_anywhere_have_their_own_scales(group: int, tmp_path: Path) -> None:
    path = vector().save(tmp_path / "v.safetensors", form="int8", group=group)
    whole = tv.TaskVector.load(path)
    for first, last in ((0, 40), (1, 2), (7, 31), (39, 40), (5, 5)):
        assert torch.equal(whole.read("m.weight", slice(first, last)), whole["m.weight"][first:last])


def sparse_claiming(path: Path, shape: tuple[int, int]) -> Path:
    """Three entries, said to be those of a tensor of this shape."""
    pages = -(-shape[0] * shape[1] // (1 << 16))
    starts = torch.full((pages + 1,), 3)
    starts[0] = 0
    parts = {"values": torch.ones(3), "starts": starts, "words": torch.tensor([1, 5, 9], dtype=torch.uint16)}
    said = {
        "format": 2,
        "compact": {
            "form": "sparse",
            "settings": {"density": 0.5},
            "error": 0.1,
            "errors": {"m.weight": 0.1},
            "coded": {"m.weight": shape},
        },
    }
    tensors = {f"m.weight#{part}": value for part, value in parts.items()}
    save_file(tensors, path, metadata={"taskvec": json.dumps(said)})
    return path


def test_a_shape_that_a_few_entries_claim_is_not_allocated(tmp_path: Path) -> None:
    held = tv.TaskVector.load(sparse_claiming(tmp_path / "small.safetensors", (10, 3)))
    assert held["m.weight"].flatten().nonzero().flatten().tolist() == [1, 5, 9]
    large = tv.TaskVector.load(sparse_claiming(tmp_path / "large.safetensors", (100_000, 10_000)))
    with little_memory():
        with pytest.raises(
            KeyMismatch, match=r"'m\.weight' has shape \(100000, 10000\), expected \(40, 30\)"
        ):
            tv.apply(BASE, large.with_base(BASE))
        assert large.read("m.weight", slice(0, 100)).sum() == 3
    with little_memory(), pytest.raises(CorruptFile, match=r"a row of 10,000,000,000 entries, expected"):
        tv.TaskVector.load(sparse_claiming(tmp_path / "long.safetensors", (1, 10**10)))


def test_a_matrix_of_rank_zero_stands_for_none(tmp_path: Path) -> None:
    path = vector().save(tmp_path / "v.safetensors", form="low-rank", rank=2)
    said, held = header(path), load_file(path)
    said["compact"]["coded"]["m.weight"] = [10**9, 10**9]
    held |= {"m.weight#left": torch.zeros(10**9, 0), "m.weight#right": torch.zeros(0, 10**9)}
    with pytest.raises(CorruptFile, match="expected"):
        tv.TaskVector.load(with_said(path, said, held))


@pytest.mark.parametrize("shape", [[-1], [2**40, 2**40], [0, 2**62], [2.5], ["x"], 3])
def test_what_is_said_of_unchanged_tensors_are_shapes(shape: object, tmp_path: Path) -> None:
    path = vector().save(tmp_path / "v.safetensors")
    said = {**header(path), "unchanged": {"same": shape}}
    with pytest.raises(CorruptFile, match=r"in the header: unchanged\.same"):
        tv.TaskVector.load(with_said(path, said))
    said["unchanged"] = {"same": [10**6, 10**6]}
    claiming = tv.TaskVector.load(with_said(path, said))
    with little_memory():
        assert claiming.norm() > 0
        with pytest.raises(KeyMismatch, match="'same' has shape"):
            tv.apply(BASE, claiming.with_base(BASE))


# Adapters

SETTINGS: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "use_rslora": False,
    "bias": "none",
    "rank_pattern": {"m": 2},
    "alpha_pattern": {"m": 4.0},
    "init_lora_weights": True,
    "target_modules": ["m"],
    "base_model_name_or_path": "base",
    "fan_in_fan_out": False,
}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    factors = {"m.lora_A.weight": torch.ones(2, 30), "m.lora_B.weight": torch.ones(40, 2)}
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS))
    return folder


def test_everything_that_settings_of_adapters_say_is_refused_in_words_or_right(adapter: Path) -> None:
    norm = tv.TaskVector.load(adapter).norm()
    assert norm == pytest.approx(4 * (40 * 30) ** 0.5)
    for text in texts(SETTINGS):
        (adapter / "adapter_config.json").write_text(text)
        refused(lambda: tv.TaskVector.load(adapter).norm())
        refused(lambda: tv.apply(BASE, tv.TaskVector.load(adapter))["m.weight"])


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_no_pattern_of_an_adapter_hangs(field: str, adapter: Path) -> None:
    hard = {rf".*?.*?.*?.*?.*?.*?[A-Z]\w{n}": 2 for n in range(50)}
    (adapter / "adapter_config.json").write_text(json.dumps({**SETTINGS, field: hard}))
    name = "model.layers.11.self_attn.q_proj." * 4 + "#!"
    factors = {f"{name}.lora_A.weight": torch.ones(2, 30), f"{name}.lora_B.weight": torch.ones(40, 2)}
    save_file(factors, adapter / "adapter_model.safetensors")
    begun = time.process_time()
    with pytest.raises(InputError, match=rf"adapter_config\.json: {field}: .* takes more than 2 s"):
        tv.TaskVector.load(adapter)
    assert time.process_time() - begun < 10


@pytest.mark.parametrize("value", [True, "2", None, [2], 2.5, 10**400, float("nan")])
def test_ranks_and_alphas_are_numbers(value: object, adapter: Path) -> None:
    for field in ("r", "rank_pattern", "lora_alpha", "alpha_pattern"):
        given = {"m": value} if "pattern" in field else value
        (adapter / "adapter_config.json").write_text(json.dumps({**SETTINGS, field: given}))
        fits = value == 2.5 and "alpha" in field
        assert fits or refused(lambda: tv.TaskVector.load(adapter).norm()), (field, value)


def test_a_pattern_that_is_whole_only_within_others_is_refused(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps({**SETTINGS, "alpha_pattern": {"x)|(m": 9}}))
    with pytest.raises(InputError, match="is not a regular expression"):
        tv.TaskVector.load(adapter)


# Expressions

NAMED = {"a": vector(0), "b": vector(1)}


@given(
    st.text("ab01.eE+-*/()[]{},:= \n\0'\"\\xf_~^%<>!@jλ\u2003", max_size=30)
    | st.text(max_size=20)
    | st.builds(lambda opened, inner: opened + inner, st.text("(-+~[", max_size=200), st.just("a"))
)
def test_every_expression_is_a_vector_or_refused_in_words(text: str) -> None:
    refused(lambda: parse_expression(text, NAMED))


@pytest.mark.parametrize(
    "text",
    [
        f"[0x{'f' * 9000}]*a",
        f"0x{'f' * 9000}*a",
        f"{'9' * 9000}*a",
        "(" * 90 + "a" + ")" * 90,
        "(" * 5000 + "a" + ")" * 5000,
        "-" * 50_000 + "a",
        "a" + "+1" * 40_000,
        "a" + "(a)" * 30_000,
        "a\0b",
        "a\ud800",
        "1e999*a",
        "a" * 200_000,
        "lambda: a",
        "f'{a}'",
        "a if 1 is 1 else b",
        "(yield)",
        "a:=b",
    ],
    ids=lambda text: repr(text[:20]),
)
@pytest.mark.filterwarnings("error")
def test_no_expression_is_too_much(text: str) -> None:
    begun = time.process_time()
    if not refused(lambda: parse_expression(text, NAMED)):
        assert parse_expression(text, NAMED) == NAMED["a"]
    assert time.process_time() - begun < 5


def test_mutations_are_many() -> None:
    assert len(mutations(SETTINGS, most=1000)) > 200
