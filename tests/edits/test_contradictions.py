"""Inputs that contradict themselves or each other, by every road that edits."""
# ruff: noqa: E501  # the tables read best with a case on a line

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertModel,
    BartConfig,
    BartForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
    MambaConfig,
    MambaModel,
    OPTConfig,
    OPTModel,
    SwinConfig,
    SwinModel,
    T5Config,
    T5EncoderModel,
)

from taskvec.cli import main
from taskvec.edits import contradictions
from taskvec.vectors import TaskVector, save_adapter
from taskvec.weights import open_weights, save_weights
from vocabularies import KINDS

WIDTH, ROWS, LAYERS = 8, 12, 3
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PARTS = {"self_attn.q_proj": (8, 8), "self_attn.o_proj": (8, 8), "mlp.up_proj": (16, 8)}
SHAPES = {
    EMBED: (ROWS, WIDTH),
    **{f"model.layers.{n}.{part}.weight": shape for n in range(LAYERS) for part, shape in PARTS.items()},
    "model.norm.weight": (WIDTH,),
    HEAD: (ROWS, WIDTH),
}
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": ROWS,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
QUERY, OUTPUT = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.o_proj.weight"


def state(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=g) for name, shape in SHAPES.items()}


def tuned(seed: int) -> dict[str, Tensor]:
    step = state(seed)
    return {name: value + 0.05 * step[name] for name, value in state(0).items()}


def save(folder: str, tensors: dict[str, Tensor]) -> None:
    save_weights(tensors, folder, force=True)
    Path(folder, "config.json").write_text(json.dumps(CONFIG))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base and two models fine-tuned from it, a vector, and a recipe of each dialect."""
    monkeypatch.chdir(tmp_path)
    save("base", state(0))
    for seed, name in enumerate("ab", start=1):
        save(name, tuned(seed))
    TaskVector.between("base", "b").save("v.safetensors")
    ours = {"base": "base", "models": {"a": "a", "b": "b"}, "expression": "0.5*a + 0.5*b"}
    Path("ours.yaml").write_text(yaml.safe_dump(ours))
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in "ab"]
    kit = {"merge_method": "task_arithmetic", "base_model": "base", "models": models}
    Path("kit.yaml").write_text(yaml.safe_dump(kit))
    return tmp_path


Ended = tuple[int, list[str]]
Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command; its code, and the lines on standard error."""

    def ended(*words: str) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main([*words, "--force", "-q"])
        return int(done.value.code or 0), capsys.readouterr().err.splitlines()

    return ended


ROADS = {
    "diff": ["diff", "base", "a", "-o", "out.safetensors"],
    "ours": ["merge", "ours.yaml", "-o", "out"],
    "mergekit": ["merge", "kit.yaml", "-o", "out"],
}
APPLY = {"apply": ["apply", "base", "-v", "v=v.safetensors", "-o", "out"]}


def config(folder: str = "a", **changes: Any) -> Callable[[], None]:
    def damage() -> None:
        path = Path(folder, "config.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def tensors(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], folder: str = "a"
) -> Callable[[], None]:
    return lambda: save(folder, change(dict(open_weights(folder))))


def together(*damages: Callable[[], None]) -> Callable[[], None]:
    def all_of_them() -> None:
        for damage in damages:
            damage()

    return all_of_them


def beside(change: float) -> Callable[[], None]:
    def damage() -> None:
        held = {name: value.half() for name, value in open_weights("a").items()}
        held[QUERY] = held[QUERY] + change
        torch.save({**held, "position_ids": torch.arange(4)}, "a/pytorch_model.bin")

    return damage


def pieces(folder: str, *words: str, more: bytes = b"") -> Callable[[], None]:
    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    def damage() -> None:
        scored = (field(1, field(1, word.encode()) + b"\x15\0\0\x80\xbf\x18\1") for word in words)
        Path(folder, "tokenizer.model").write_bytes(b"".join(scored) + more)

    return damage


def unread() -> None:
    Path("a/tokenizer.model").write_bytes(b"\xff\xff")


def both(*others: str, more: bytes = b"") -> Callable[[], None]:
    """SentencePiece models of the base, and of a tuned model."""
    return together(pieces("base", "x", "y", "z", "w"), pieces("a", *others, more=more))


NOTED: dict[str, tuple[Callable[[], None], str]] = {
    "fewer layers": (config(num_hidden_layers=2), "a: config.json says 2 layers, the weights have 3; when loaded"),
    "more layers": (config(num_hidden_layers=4), "layers that lack are made at random; correct the config"),
    "other tokens": (config(vocab_size=13), f"a: config.json says vocab_size 13, {EMBED!r} has 12 rows"),
    "another width": (config(hidden_size=9), "a: config.json says hidden_size 9, no tensor has that size"),
    "a head that is said to be tied": (
        config(tie_word_embeddings=True),
        f"a: {HEAD!r} differs from {EMBED!r}, but config.json has tie_word_embeddings",
    ),
    "plain weights, said to be quantized": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        "a: config.json has a quantization_config, but all matrices are plain",
    ),
    "another rope": (
        config(rope_theta=5e5),
        "a: its config.json and that of base differ in what weights compute: rope_theta 500000.0 and 10000.0",
    ),
    "a rope that is scaled": (
        config(rope_scaling={"type": "linear", "factor": 4.0}),
        "differ in what weights compute: rope_type 'linear' and 'default'",
    ),
    "another kind of model": (config(model_type="mistral"), "weights compute: model_type 'mistral' and 'llama'"),
    "another pickle beside": (
        beside(1.0),
        f"a/pytorch_model.bin: differs from the safetensors files, first in {QUERY!r}; those are read",
    ),
    "an unrelated model": (
        tensors(lambda _: state(7)),
        "a: 1.4 times the norm of base away from it, as far as an unrelated model; was it fine-tuned from another?",
    ),
    "a matrix that was transposed": (
        tensors(lambda model: {**model, QUERY: model[QUERY].T.contiguous()}),
        f"a: {QUERY!r} is 1.",
    ),
    "matrices that were swapped": (
        tensors(lambda model: {**model, QUERY: model[OUTPUT], OUTPUT: model[QUERY]}),
        "(1 more); was it swapped, transposed or made anew?",
    ),
    "a reserved token that got a name": (both("x", "y", "z", "n"), "a: 1 rows go by other tokens than in base"),
    "a tokenizer that is not read": (
        together(both("x"), unread),
        "a: tokenizer.model differs from that of base and is not read; rows are taken for the same",
    ),
}  # fmt: skip


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("case", NOTED)
def test_what_may_be_meant_is_said_once_in_one_line_even_with_quiet(
    case: str, road: str, place: Path, run: Run
) -> None:
    damage, words = NOTED[case]
    damage()
    code, said = run(*ROADS[road])
    assert code == 0
    assert [line.startswith("note: ") and words in line for line in said] == [True], said


REFUSED: dict[str, tuple[Callable[[], None], set[str], str]] = {
    "other heads": (config(num_attention_heads=2), {*ROADS}, "a: config.json says num_attention_heads 2, expected 4 as in base"),
    "other groups of heads": (config(num_key_value_heads=4), {*ROADS}, "num_key_value_heads 4, expected 2 as in base"),
    "pieces in other rows": (both("x", "z", "y", "w"), {*ROADS}, "a: token 'z' has row 1, expected 2 as in base (1 more)"),
    "other pieces": (both("k", "l", "m", "w"), {*ROADS}, "a: row 0 is token 'k', expected 'x' as in base (3 of 4 differ)"),
    "a base of other tokens": (config("base", vocab_size=13), {"ours", "mergekit", "apply"}, "has 12 rows, so that the result would not load; correct the config"),
    "a base of another width": (config("base", hidden_size=9), {"ours", "mergekit", "apply"}, "so that the result would not load; correct the config"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "road"), [(case, road) for case, (_, roads, _) in REFUSED.items() for road in sorted(roads)]
)
def test_what_cannot_be_meant_is_refused_in_one_line(case: str, road: str, place: Path, run: Run) -> None:
    damage, _, words = REFUSED[case]
    damage()
    code, said = run(*{**ROADS, **APPLY}[road])
    assert (code, len(said)) == (2, 1), said
    assert words in said[0]
    assert not Path("out").exists() and not Path("out.safetensors").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["apply", "adapter", "-v", "v=v.safetensors", "-o", "out"],
        ["diff", "adapter", "adapter", "-o", "out"],
        ["diff", "adapter", "a", "-o", "out"],
    ],
)
def test_adapters_alone_have_no_configs_to_compare(words: list[str], place: Path, run: Run) -> None:
    save_adapter(TaskVector.load("v.safetensors"), "adapter", rank=1, only="attention")
    code, said = run(*words)
    assert (code, len(said)) == (2, 1), said
    assert "adapter: holds a LoRA adapter, expected the weights of a model" in said[0]


def test_what_is_sound_needs_no_words(place: Path, run: Run) -> None:
    together(beside(0.0), both("x", "y", "z", "w", more=b"\x12\1\0"))()
    config("b", rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 10000})()
    config("b", num_nextn_predict_layers=1, num_hidden_layers=2)()
    for road in {**ROADS, **APPLY}.values():
        assert run(*road) == (0, [])


def test_one_shard_of_a_model_does_not_contradict_its_config(place: Path, run: Run) -> None:
    for name in ("base", "a"):
        save_weights(open_weights(name), f"{name}-sharded", max_shard_size=500)
        shutil.copy("base/config.json", f"{name}-sharded")
    parts = [sorted(Path(f"{name}-sharded").glob("*-of-*"))[1] for name in ("base", "a")]
    assert run("diff", *map(str, parts), "-o", "v.safetensors") == (0, [])


def test_a_head_equal_to_the_embedding_may_be_said_to_be_tied(place: Path, run: Run) -> None:
    for name in ("base", "a"):
        tensors(lambda model: {**model, HEAD: model[EMBED].clone()}, name)()
        config(name, tie_word_embeddings=True)()
    assert run(*ROADS["diff"]) == (0, [])


@given(st.floats(0.001, 0.15), st.integers(1, 500), st.integers(0, LAYERS - 1), st.integers(0, LAYERS - 1))
def test_a_matrix_in_the_place_of_another_is_named_and_none_else(
    scale: float, seed: int, one: int, other: int
) -> None:
    base, step = state(0), state(seed)
    model = {name: value + scale * step[name] for name, value in base.items()}
    names = [f"model.layers.{number}.mlp.up_proj.weight" for number in (one, other)]
    model[names[0]], model[names[1]] = model[names[1]], model[names[0]]
    said = contradictions.note_distances(open_weights(base), {"a": TaskVector.between(base, model)})
    assert len(said) == (one != other)
    assert all(any(repr(name) in line for name in names) and "(1 more)" in line for line in said)


@pytest.mark.parametrize("shape", [(300, 40), (3, 70_000), (4, 3, 500), (20, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_look_at_large_matrices_tells_related_from_unrelated(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(0)
    base = {f"w{n}": torch.randn(shape, generator=g).to(dtype) for n in range(4)}
    near = {name: (value + 0.1 * torch.randn(shape, generator=g)).to(dtype) for name, value in base.items()}
    far = {name: torch.randn(shape, generator=g).to(dtype) for name in base}
    vectors = {name: TaskVector.between(base, model) for name, model in (("near", near), ("far", far))}
    [said] = contradictions.note_distances(open_weights(base), vectors)
    assert said.startswith("far: 1.4 times the norm")


def test_a_base_of_zeros_and_heads_alone_are_far_from_nothing() -> None:
    base = {"w": torch.zeros(8, 8), "bias": torch.ones(8)}
    model = {"w": torch.ones(8, 8), "bias": -torch.ones(8)}
    assert contradictions.note_distances(open_weights(base), {"a": TaskVector.between(base, model)}) == []


PART: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION = {**PART, "hidden_size": 24, "num_hidden_layers": 3, "image_size": 16, "patch_size": 8}
BOTH_SIDES: dict[str, Any] = {
    "vocab_size": 60,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "pad_token_id": 0,
}
BOTH_SIDES |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
ZOO: dict[str, Callable[[], Any]] = {
    **{kind: lambda make=make: make(60) for kind, (make, _) in KINDS.items()},  # type: ignore[misc]
    "albert": lambda: AlbertModel(AlbertConfig(**PART, embedding_size=8)),
    "bart": lambda: BartForConditionalGeneration(BartConfig(**BOTH_SIDES)),
    "clip": lambda: CLIPModel(CLIPConfig(text_config=PART, vision_config=VISION)),
    "mamba": lambda: MambaModel(MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2)),
    "opt": lambda: OPTModel(OPTConfig(**PART, ffn_dim=32, word_embed_proj_dim=8)),
    "swin": lambda: SwinModel(
        SwinConfig(image_size=32, embed_dim=8, depths=[1, 2], num_heads=[2, 2], window_size=2)
    ),
    "t5": lambda: T5EncoderModel(T5Config(vocab_size=60, d_model=16, num_layers=2, num_decoder_layers=3)),
}


@pytest.mark.parametrize("kind", ZOO)
def test_models_as_transformers_saves_them_contradict_nothing_until_a_number_is_changed(
    kind: str, tmp_path: Path
) -> None:
    ZOO[kind]().save_pretrained(tmp_path)
    model, path = open_weights(tmp_path), tmp_path / "config.json"
    assert contradictions.compare_models([model], like=model) == []
    before = json.loads(path.read_text())
    for key in (
        "num_hidden_layers",
        "n_layer",
        "num_layers",
        "decoder_layers",
        "hidden_size",
        "n_embd",
        "vocab_size",
    ):
        if key in before and (kind, key) != (
            "albert",
            "num_hidden_layers",
        ):  # which has one layer, used often
            path.write_text(json.dumps({**before, key: before[key] + 1}))
            [said] = contradictions.compare_models([model], like=None)
            assert f"config.json says {key} " in said or "layers" in said


def test_an_efficientnet_has_the_blocks_that_it_says(tmp_path: Path) -> None:
    import transformers

    make: Any = transformers.EfficientNetModel
    network = make(
        transformers.EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320)
    )
    network.save_pretrained(tmp_path)
    assert contradictions.compare_models([open_weights(tmp_path)], None) == []
