"""Names of two checkpoints of one model correspond exactly, or not at all."""

from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskvec.errors import InputError
from taskvec.weights import TensorSpec
from taskvec.weights.matching import match_names
from taskvec.weights.selecting import Choice, NamePattern, parse_renames

Specs = dict[str, TensorSpec]
Change = Callable[[str], str]


def specs(shapes: Mapping[str, tuple[int, ...]]) -> Specs:
    return {name: TensorSpec(shape, torch.float32) for name, shape in shapes.items()}


def block(prefix: str, number: int, width: int) -> dict[str, tuple[int, ...]]:
    parts = {"self_attn.q_proj.weight": (width, width), "self_attn.q_proj.bias": (width,)} | {
        "mlp.up_proj.weight": (4 * width, width),
        "LayerNorm.weight": (width,),
        "LayerNorm.bias": (width,),
    }
    return {f"{prefix}layers.{number}.{name}": shape for name, shape in parts.items()}


def encoder(prefix: str = "", layers: int = 3, width: int = 8) -> dict[str, tuple[int, ...]]:
    blocks = [block(prefix, number, width) for number in range(layers)]
    ends = {f"{prefix}embed_tokens.weight": (20, width), f"{prefix}norm.weight": (width,)}
    return {name: shape for part in (ends, *blocks) for name, shape in part.items()}


def names_of(base: Mapping[str, tuple[int, ...]], other: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    return dict(match_names(specs(base), specs(other)).names)


WRAPPED: dict[str, Change] = {
    "data parallel": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "deepspeed": lambda name: f"_forward_module.{name}",
    "peft": lambda name: f"base_model.model.{name}",
    "peft twice": lambda name: f"base_model.model.base_model.model.{name}",
    "lightning": lambda name: f"model.{name}",
    "sentence transformers": lambda name: f"0.auto_model.{name}",
    "encoder": lambda name: f"roberta.{name}",
    "tower": lambda name: f"model.language_model.{name}",
    "blocks compiled": lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
    "sharded blocks": lambda name: name.replace(".self_attn", "._fsdp_wrapped_module.self_attn"),
    "checkpointed": lambda name: name.replace(".mlp", "._checkpoint_wrapped_module.mlp"),
    "old norms": lambda name: name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"),
    "old and wrapped": lambda name: "bert." + name.replace("Norm.weight", "Norm.gamma"),
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("swapped", [False, True], ids=["other", "base"])
def test_wrapped_names_are_the_plain_ones(kind: str, swapped: bool) -> None:
    plain, change = encoder(), WRAPPED[kind]
    wrapped = {change(name): shape for name, shape in plain.items()}
    found = names_of(wrapped, plain) if swapped else names_of(plain, wrapped)
    pairs = {(change(name), name) for name in plain if change(name) != name}
    assert set(found.items()) == ({(name, there) for there, name in pairs} if swapped else pairs)


def test_a_head_that_only_one_has_is_no_obstacle() -> None:
    headed = {**encoder("bert."), "classifier.weight": (2, 8), "classifier.bias": (2,)}
    found = match_names(specs(encoder()), specs(headed))
    assert len(found.names) == len(encoder())
    assert set(found.lost) == {"classifier.weight", "classifier.bias"}
    assert len(names_of(headed, encoder())) == len(encoder())


def test_tensors_of_other_shapes_follow_the_others() -> None:
    larger = {f"module.{name}": shape for name, shape in encoder().items()}
    larger["module.embed_tokens.weight"] = (24, 8)
    assert names_of(encoder(), larger)["module.embed_tokens.weight"] == "embed_tokens.weight"


def test_two_towers_change_their_names_apart() -> None:
    projector = {"linear.weight": (8, 6)}
    old = (
        encoder("language_model.model.")
        | encoder("vision_tower.", 2, 6)
        | {"language_model.lm_head.weight": (20, 8)}
    )
    old |= {f"projector.{name}": shape for name, shape in projector.items()}
    new = (
        encoder("model.language_model.") | encoder("model.vision_tower.", 2, 6) | {"lm_head.weight": (20, 8)}
    )
    new |= {f"model.projector.{name}": shape for name, shape in projector.items()}
    found = names_of(new, old)
    assert set(found) == set(old) and set(found.values()) == set(new)
    assert all(new[there] == old[name] for name, there in found.items())
    assert found["vision_tower.layers.1.LayerNorm.bias"] == "model.vision_tower.layers.1.LayerNorm.bias"


def test_a_language_model_finds_its_tower() -> None:
    whole = (
        encoder("model.language_model.") | encoder("model.vision_tower.", 3, 6) | {"lm_head.weight": (20, 8)}
    )
    found = names_of(whole, encoder("model.") | {"lm_head.weight": (20, 8)})
    assert set(found.values()) == set(encoder("model.language_model."))


def test_towers_alike_are_not_told_apart() -> None:
    found = match_names(specs(encoder("left.") | encoder("right.")), specs(encoder()))
    assert not found.names and found.rivals is not None
    assert {str(change) for change in found.rivals} == {"'' -> 'left.'", "'' -> 'right.'"}


@pytest.mark.parametrize(
    "other",
    [
        {"score.weight": (2, 8), "score.bias": (2,)},  # another head of the same shape
        {"cls.transform.dense.weight": (8, 8)},
        {"layers.3.mlp.up_proj.weight": (32, 8)},  # another block
    ],
)
def test_heads_and_blocks_of_their_own_are_not_renamed(other: dict[str, tuple[int, ...]]) -> None:
    base = encoder() | {"classifier.weight": (2, 8), "classifier.bias": (2,), "pooler.dense.weight": (8, 8)}
    base |= {"mtp.layers.0.mlp.up_proj.weight": (32, 8)}
    assert names_of(base, encoder() | other) == {}


def test_unrelated_models_have_nothing_in_common() -> None:
    other = {f"h.{i}.attn.c_attn.weight": (8, 24) for i in range(3)} | {
        "wte.weight": (20, 8),
        "ln_f.weight": (8,),
    }
    assert names_of(encoder(), other) == {}


WORDS = st.sampled_from(
    ["model", "layers", "0", "1", "attn", "norm", "weight", "bias", "module", "x", "gamma"]
)
NAMES = st.lists(WORDS, min_size=1, max_size=4).map(".".join)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    base=st.dictionaries(NAMES, SHAPES, min_size=1, max_size=8),
    prefix=st.lists(WORDS, min_size=1, max_size=2).map(".".join),
    order=st.randoms(use_true_random=False),
)
def test_any_prefix_is_found_or_nothing_is(
    base: dict[str, tuple[int, int]], prefix: str, order: object
) -> None:
    items = list(base.items())
    order.shuffle(items)  # type: ignore[attr-defined]
    wrapped = {f"{prefix}.{name}": shape for name, shape in items}
    found = match_names(specs(base), specs(wrapped))
    exact = {f"{prefix}.{name}": name for name in base}
    whole = {name: found.names.get(name, name) for name in wrapped}
    assert whole == exact or set(wrapped) <= set(base) or found.rivals is not None
    assert len(set(found.names.values())) == len(found.names)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("embed_tokens", "model.embed_tokens.weight", True),
        ("*embed_tokens*", "model.embed_tokens.weight", True),
        ("embed_tokens.*", "model.embed_tokens.weight", False),
        ("model.layers.*.weight", "model.layers.0.mlp.weight", True),
        ("re:.*\\.[01]\\..*", "model.layers.1.mlp.weight", True),
        ("re:layers", "model.layers.1.mlp.weight", False),
        ("layers.1.", "model.layersX1.mlp", False),
    ],
)
def test_patterns_of_names(pattern: str, name: str, matches: bool) -> None:
    assert NamePattern(pattern, "here").matches(name) is matches


def test_a_choice_takes_what_is_included_and_not_excluded() -> None:
    names = ["a.w", "a.b", "c.w"]
    assert [name for name in names if Choice(["a."], ["b"]).takes(name)] == ["a.w"]
    assert [name for name in names if Choice(exclude=["*.w"]).takes(name)] == ["a.b"]
    with pytest.raises(InputError, match=r"exclude: no tensor's name matches 'd', the last is 'c\.w'"):
        Choice(exclude=["d"]).check_used(names)


@pytest.mark.parametrize(
    ("pairs", "renamed"),
    [
        (["model.*=language_model.model.*"], {"model.a": "language_model.model.a"}),
        (["model.=tower."], {"model.a": "tower.a"}),
        (["=x."], {"model.a": "x.model.a", "head": "x.head"}),
        (["model.=", "head=model.head"], {"model.a": "a", "head": "model.head"}),
        (["*.a=b.*"], {"model.a": "b.model"}),
        (["head=lm_head"], {"head": "lm_head"}),
    ],
)
def test_renames(pairs: list[str], renamed: dict[str, str]) -> None:
    assert parse_renames(pairs).apply(["model.a", "head"], "x") == renamed


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (["model"], "expected OLD=NEW"),
        (["a*=b"], "as many"),
        (["=b"], "as many"),
        (["none.*=b.*"], "x: no tensor's name matches 'none.\\*', the last is 'head'"),
        (["head=a", "model.a=a"], "'model.a' and 'head' both become 'a'"),
        (["head=model.a"], "both become 'model.a'"),
        (["head=a", "head=b"], "given twice"),
    ],
)
def test_renames_that_say_nothing_are_refused(pairs: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        renames = parse_renames(pairs)
        renames.check_used(["model.a", "head"], "x")
        renames.apply(["model.a", "head"], "x")


def test_names_without_end_are_compared_in_no_time() -> None:
    deep = ".".join(["x"] * 20_000)
    base = {f"a{number}.x.weight": (2,) for number in range(5_000)} | {deep: (3,)}
    other = {f"b{number}.x.weight": (2,) for number in range(5_000)} | {f"{deep}.y": (3,)}
    assert names_of(base, other) == {}
    assert len(names_of(base, {f"module.{name}": shape for name, shape in base.items()})) == len(base)
