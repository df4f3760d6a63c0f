"""Two checkpoints whose names differ: found, said, or refused with a way out that works."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
)

from cli.test_edit_commands import Run, Runner
from taskvec.vectors import TaskVector
from taskvec.weights import open_weights, save_weights

State = dict[str, Tensor]
SHAPE: dict[str, Any] = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE |= {"intermediate_size": 12, "max_position_embeddings": 12}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: Run(capsys, arguments)


def state(seed: int = 0, tokens: int = 8) -> State:
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (tokens, 4),
        "lm_head.weight": (tokens, 4),
    }
    shapes |= {f"model.layers.{layer}.mlp.up_proj.weight": (6, 4) for layer in range(3)}
    shapes |= {f"model.layers.{layer}.norm.weight": (4,) for layer in range(3)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def bert() -> tuple[Any, Any, str]:
    return BertModel(BertConfig(**SHAPE)), BertForSequenceClassification(BertConfig(**SHAPE)), "bert."


def distilbert() -> tuple[Any, Any, str]:
    config = DistilBertConfig(vocab_size=20, dim=8, n_layers=2, n_heads=2, hidden_dim=12)
    return DistilBertModel(config), DistilBertForSequenceClassification(config), "distilbert."


def roberta() -> tuple[Any, Any, str]:
    config = RobertaConfig(**SHAPE, pad_token_id=1)
    return RobertaModel(config, add_pooling_layer=False), RobertaForMaskedLM(config), "roberta."


@pytest.mark.parametrize("make", [bert, distilbert, roberta])
def test_an_encoder_and_the_same_with_a_head_differ_by_what_was_trained(
    make: Callable[[], tuple[Any, Any, str]], run: Runner
) -> None:
    encoder, headed, prefix = make()
    encoder.save_pretrained("base")
    headed.save_pretrained("tuned")
    refused = run("diff", "base", "tuned", "-o", "v.safetensors")
    assert refused.code == 2 and "--on-extra drop" in refused.err and not Path("v.safetensors").exists()
    done = run("diff", "base", "tuned", "--on-extra", "drop", "-o", "v.safetensors", "--quiet")
    assert done.code == 0
    assert "is taken for" in done.err and "left out, as the base lacks them" in done.err
    vector, tuned = load_file("v.safetensors"), load_file("tuned/model.safetensors")
    base = load_file("base/model.safetensors")
    assert set(vector) == {name for name in base if not torch.equal(base[name], tuned[f"{prefix}{name}"])}
    assert len(vector) > 10
    for name, delta in vector.items():
        assert torch.equal(delta, tuned[f"{prefix}{name}"] - base[name])
    back = run("apply", "tuned", "-v", "a=v.safetensors", "-e", "-a", "--allow-other-base", "-o", "back")
    assert back.code == 0
    for name in vector:
        torch.testing.assert_close(load_file("back/model.safetensors")[f"{prefix}{name}"], base[name])


def test_masks_of_the_hub_are_no_obstacle(run: Runner) -> None:
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=12)
    GPT2LMHeadModel(config).save_pretrained("tuned")
    GPT2LMHeadModel(config).save_pretrained("base")
    held = {k.removeprefix("transformer."): v for k, v in load_file("base/model.safetensors").items()}
    masks = {f"h.{i}.attn.bias": torch.tril(torch.ones(1, 1, 12, 12)) for i in range(2)}
    masks |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    save_file(held | masks, "base/model.safetensors", {"format": "pt"})
    assert run("diff", "base", "tuned", "-o", "v.safetensors").code == 0
    assert run("diff", "tuned", "base", "-o", "w.safetensors").code == 0
    assert run("apply", "base", "-v", "v=v.safetensors", "-o", "out").code == 0
    out, tuned = load_file("out/model.safetensors"), load_file("tuned/model.safetensors")
    assert set(out) == set(held | masks)
    torch.testing.assert_close(out["h.1.mlp.c_fc.weight"], tuned["transformer.h.1.mlp.c_fc.weight"])


def test_a_chat_vector_goes_onto_a_model_of_more_tokens_without_its_embeddings(run: Runner) -> None:
    for seed, name, tokens in ((0, "base", 8), (1, "chat", 8), (2, "grown", 12)):
        save_weights(state(seed, tokens), f"{name}.safetensors")
    assert run("diff", "base.safetensors", "chat.safetensors", "-o", "v.safetensors").code == 0
    command = (
        "apply",
        "grown.safetensors",
        "-v",
        "c=v.safetensors",
        "--allow-other-base",
        "-o",
        "out.safetensors",
    )
    refused = run(*command)
    assert refused.code == 2
    advice = refused.err.split("exclude (")[1].split(")")[0].split()
    assert advice[::2] == ["--exclude", "--exclude"]
    assert run(*command, *advice).code == 0
    out, grown = load_file("out.safetensors"), state(2, 12)
    delta = {name: state(1)[name] - state()[name] for name in state()}
    for name, value in grown.items():
        expected = value if value.shape != delta[name].shape else value + delta[name]
        torch.testing.assert_close(out[name], expected)
    scaled: dict[str, Any] = {
        "filters": [{"match": "embed_tokens", "value": 0}, {"match": "lm_head", "value": 0}],
        "default": 1,
    }
    recipe = {"base": "grown.safetensors", "vectors": {"c": "v.safetensors"}, "allow_other_base": True}
    ways: list[dict[str, Any]] = [
        {"scale": scaled},
        {"exclude": ["embed_tokens", "lm_head.*"]},
        {"include": ["layers"]},
    ]
    for number, more in enumerate(ways):
        Path("r.yaml").write_text(json.dumps({**recipe, **more}))
        assert run("merge", "r.yaml", "-o", f"{number}.safetensors").code == 0
        assert all(torch.equal(load_file(f"{number}.safetensors")[name], out[name]) for name in out)


def test_a_language_model_goes_into_the_tower_that_the_user_names(run: Runner) -> None:
    towers = {
        f"{side}.{name}": value for seed, side in enumerate("ab") for name, value in state(seed).items()
    }
    save_weights(towers, "both.safetensors")
    save_weights(state(2), "base.safetensors")
    save_weights(state(3), "tuned.safetensors")
    run("diff", "base.safetensors", "tuned.safetensors", "-o", "v.safetensors")
    command = (
        "apply",
        "both.safetensors",
        "-v",
        "v=v.safetensors",
        "--allow-other-base",
        "-o",
        "out.safetensors",
    )
    refused = run(*command)
    assert refused.code == 2 and "'' -> 'a.' and after '' -> 'b.'" in refused.err
    assert run(*command, "--rename", "*=b.*").code == 0
    out = load_file("out.safetensors")
    for name, value in state(2).items():
        assert torch.equal(out[f"a.{name}"], towers[f"a.{name}"])
        torch.testing.assert_close(out[f"b.{name}"], towers[f"b.{name}"] + state(3)[name] - value)
    recipe = "base: both.safetensors\nvectors: {v: v.safetensors}\nallow_other_base: true\nrename: "
    for number, rename in enumerate(
        ("{'model.': b.model., lm_head.weight: b.lm_head.weight}", "{v: {'*': 'b.*'}}")
    ):
        Path("r.yaml").write_text(recipe + rename)
        done = run("merge", "r.yaml", "-o", f"{number}.safetensors")
        assert done.code == 0, done.err
        assert all(torch.equal(load_file(f"{number}.safetensors")[name], out[name]) for name in out)


def test_a_difference_of_next_to_nothing_is_made_only_if_it_is_asked_for(run: Runner) -> None:
    save_weights({f"layers.{i}.weight": torch.ones(2) for i in range(30)}, "base.safetensors")
    save_weights({f"layers.{i}.weight": torch.zeros(2) for i in range(2)}, "tuned.safetensors")
    save_weights({"other.bias": torch.zeros(2)}, "none.safetensors")
    options = ("--on-extra", "drop", "--on-missing", "zero", "-o", "v.safetensors")
    refused = run("diff", "base.safetensors", "tuned.safetensors", *options)
    assert refused.code == 2 and "2 of the 30" in refused.err and "--allow-partial" in refused.err
    nothing = run("diff", "base.safetensors", "none.safetensors", *options, "--allow-partial")
    assert nothing.code == 2 and "none of the 30" in nothing.err
    assert run("diff", "base.safetensors", "tuned.safetensors", *options, "--allow-partial").code == 0
    included = ("--include", "layers.0.*", "--include", "layers.1.*", "-o", "w.safetensors")
    assert run("diff", "base.safetensors", "tuned.safetensors", *included).code == 0
    assert set(load_file("w.safetensors")) == {"layers.0.weight", "layers.1.weight"}
    assert set(TaskVector.load("w.safetensors")) == set(load_file("w.safetensors"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--exclude", "*"], "include and exclude leave none"),
        (["--exclude", "embed_tokns"], "no tensor's name matches 'embed_tokns'"),
        (["--include", "re:("], "not a regular expression"),
        (["--rename", "model"], "expected OLD=NEW"),
        (["--rename", "decoder.=model."], "no tensor's name matches 'decoder.'"),
        (["--rename", "lm_head.weight=model.embed_tokens.weight"], "both become"),
    ],
)
def test_patterns_that_say_nothing_are_refused(options: list[str], words: str, run: Runner) -> None:
    for seed, name in enumerate(("base", "tuned")):
        save_weights(state(seed), f"{name}.safetensors")
    done = run("diff", "base.safetensors", "tuned.safetensors", *options, "-o", "v.safetensors")
    assert done.code == 2 and words in done.err and not Path("v.safetensors").exists()


def test_most_names_differ_is_no_reason_to_drop_them(run: Runner) -> None:
    save_weights(state(), "base.safetensors")
    save_weights({f"h.{i}.c_fc.weight": torch.ones(3) for i in range(9)}, "other.safetensors")
    done = run("diff", "base.safetensors", "other.safetensors", "-o", "v.safetensors")
    assert done.code == 2 and "--rename OLD=NEW" in done.err
    assert "--on-extra" not in done.err and "further: 'h.1.c_fc.weight'" in done.err


LLAVA = {"vision.weight": torch.ones(5), **{f"projector.{i}.weight": torch.ones(2) for i in range(9)}}


@pytest.mark.parametrize(
    ("held", "option"),
    [
        ({f"language_model.{name}": value for name, value in state(1).items()} | LLAVA, "--on-extra drop"),
        ({f"module.{name}": value for name, value in state(1).items()} | LLAVA, "--on-extra drop"),
        ({name: value for name, value in state(1).items() if "layers.1" in name}, "--on-missing zero"),
        ({"model.embed_tokens.weight": torch.ones(8, 4)}, "--on-missing zero"),
    ],
    ids=["a larger model", "a larger model, wrapped", "one layer", "one tensor"],
)
def test_where_all_names_fit_they_are_not_blamed(held: State, option: str, run: Runner) -> None:
    save_weights(state(), "base.safetensors")
    save_weights(held, "other.safetensors")
    command = ("diff", "base.safetensors", "other.safetensors", "-o", "v.safetensors")
    refused = run(*command)
    assert refused.code == 2 and "the other tensors fit" in refused.err and option in refused.err
    assert run(*command, *option.split()).code == 0
    shared = {name.removeprefix("language_model.").removeprefix("module.") for name in held} & state().keys()
    assert all(
        torch.equal(load_file("v.safetensors")[name], held_at(held, name) - state()[name]) for name in shared
    )


@pytest.mark.parametrize(("first", "second"), [(2, 3), (3, 2), (1, 3), (3, 1)])
def test_another_depth_is_said(first: int, second: int, run: Runner) -> None:
    for name, layers in {"base": first, "tuned": second}.items():
        gone = tuple(f"layers.{layer}." for layer in range(layers, 3))
        held = {key: value for key, value in state().items() if not any(one in key for one in gone)}
        save_weights(held, f"{name}.safetensors")
    done = run("diff", "base.safetensors", "tuned.safetensors", "-o", "v.safetensors")
    assert done.code == 2 and f"it has {second} layers, and the base {first}: was it" in done.err
    assert ("--on-extra drop" if first < second else "--on-missing zero") in done.err


def held_at(held: State, name: str) -> Tensor:
    return next(value for key, value in held.items() if key.endswith(name))


@pytest.mark.parametrize("method", ["task_arithmetic", "linear", "ties"])
def test_mergekits_files_see_through_names_copies_and_buffers(method: str, run: Runner) -> None:
    held: dict[str, State] = {name: state(seed) for seed, name in enumerate(("base", "a", "b", "c"))}
    for tensors in held.values():
        del tensors["lm_head.weight"]
    odd = {
        "a": {f"module.{name}": value for name, value in held["a"].items()},
        "b": {**held["b"], "lm_head.weight": held["b"]["model.embed_tokens.weight"].clone()},
        "c": {**held["c"], "model.layers.0.rotary_emb.inv_freq": torch.ones(2)},
    }
    for name, tensors in held.items():
        save_weights(tensors, f"plain/{name}")
        save_weights(odd.get(name, tensors), f"odd/{name}")
    models = "".join(f"  - {{model: KIND/{name}, parameters: {{weight: 0.3}}}}\n" for name in "abc")
    base = "" if method == "linear" else "base_model: KIND/base\n"
    for kind in ("plain", "odd"):
        Path("m.yaml").write_text(f"merge_method: {method}\n{base}models:\n{models}".replace("KIND", kind))
        done = run("merge", "m.yaml", "-o", f"{kind}.safetensors")
        assert done.code == 0, done.err
    merged = open_weights("odd.safetensors")
    names = {name.removeprefix("module."): name for name in merged}
    for name, value in load_file("plain.safetensors").items():
        assert torch.equal(merged[names[name]], value)


def test_the_base_of_a_vector_is_known_under_other_names(run: Runner) -> None:
    for seed, kind in enumerate(("base", "tuned", "other")):
        save_weights(state(seed), f"{kind}.safetensors")
        save_weights({f"module.{k}": v for k, v in state(seed).items()}, f"w{kind}.safetensors")
    run("diff", "wbase.safetensors", "wtuned.safetensors", "-o", "v.safetensors")
    assert run("apply", "base.safetensors", "-v", "v=v.safetensors", "-o", "out.safetensors").code == 0
    run("diff", "base.safetensors", "tuned.safetensors", "-o", "p.safetensors")
    run("apply", "base.safetensors", "-v", "v=p.safetensors", "-o", "plain.safetensors")
    out, plain = load_file("out.safetensors"), load_file("plain.safetensors")
    assert all(torch.equal(out[name], plain[name]) for name in plain)
    both = ("-v", "v=v.safetensors", "-v", "p=p.safetensors", "-e", "v - p", "-o", "zero.safetensors")
    assert run("apply", "base.safetensors", *both).code == 0
    assert all(torch.equal(load_file("zero.safetensors")[name], value) for name, value in state().items())
    other = run("apply", "other.safetensors", "-v", "v=v.safetensors", "-o", "no.safetensors")
    assert other.code == 2 and "allow_other_base" in other.err


@pytest.mark.parametrize("name", ["a", "v"])
def test_an_adapter_is_not_renamed(name: str, run: Runner) -> None:
    save_weights(state(), "base.safetensors")
    Path("lora").mkdir()
    Path("lora/adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    layer = "base_model.model.model.layers.0.mlp.up_proj"
    factors = {f"{layer}.lora_A.weight": torch.ones(1, 4), f"{layer}.lora_B.weight": torch.ones(6, 1)}
    save_file(factors, "lora/adapter_model.safetensors")
    done = run("apply", "base.safetensors", "-v", f"{name}=lora", "--rename", "a.=b.", "-o", "o.safetensors")
    assert done.code == 2 and f"rename: '{name}' is an adapter" in done.err


def test_vectors_of_two_namings_are_compared(run: Runner) -> None:
    save_weights(state(), "base.safetensors")
    save_weights(state(1), "tuned.safetensors")
    for kind in ("base", "tuned"):
        save_weights(
            {f"module.{k}": v for k, v in load_file(f"{kind}.safetensors").items()}, f"w{kind}.safetensors"
        )
    run("diff", "base.safetensors", "tuned.safetensors", "-o", "v.safetensors")
    run("diff", "wbase.safetensors", "wtuned.safetensors", "-o", "w.safetensors")
    done = run("inspect", "v.safetensors", "w.safetensors", "--allow-other-base", "--json")
    cosines: Any = done.json["cosines"]
    assert done.code == 0 and cosines[0][1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            lambda s: {k: v for k, v in s.items() if "norm" in k},
            "the other tensors fit; if it was fine-tuned from this base, take it",
        ),
        (
            lambda s: {"model.layers.9.mlp.up_proj.weight": torch.ones(6, 4), **s},
            "it has 10 layers, and the base",
        ),
        (
            lambda s: {**s, **{f"ema.{k}": v + 1 for k, v in s.items()}, "ema.x": torch.ones(1)},
            "the other tensors fit; if it was fine-tuned from this base, leave",
        ),
        (lambda s: {"x.y": torch.ones(3)}, "most names differ"),
        (lambda s: {}, "it holds no tensors; name the file"),
        (
            lambda s: {("out.weight" if k == "lm_head.weight" else k): v for k, v in s.items()},
            "if it is 'lm_head.weight', say so with rename (--rename out.weight=lm_head.weight)",
        ),
        (
            lambda s: {f"{who}.{k}": v for k, v in s.items() for who in ("student", "teacher")},
            "such as --rename student.=",
        ),
    ],
)
def test_the_nearest_explanation_is_given(made: Callable[[State], State], words: str, run: Runner) -> None:
    save_weights(state(), "base.safetensors")
    save_weights(made(state(1)), "tuned.safetensors")
    done = run("diff", "base.safetensors", "tuned.safetensors", "-o", "v.safetensors")
    assert done.code == 2 and words in done.err, done.err


@pytest.mark.parametrize("wrap", ["module._orig_mod.", "model.", "policy."])
def test_slices_of_a_wrapped_model_go_under_the_names_of_the_first(wrap: str, run: Runner) -> None:
    names = ("model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight")
    for seed, kind in enumerate("ab"):
        held = {**state(seed), **{name: torch.full((6, 4), float(seed)) for name in names[: seed + 1]}}
        save_weights(held, kind)
        save_weights({f"{wrap}{name}": value for name, value in held.items()}, f"w{kind}")
    sources = ("{model: a, layer_range: [0, 2]}", "{model: B, layer_range: [1, 3]}")
    slices = "slices:\n" + "".join(f"- sources: [{source}]\n" for source in sources)
    for kind in ("b", "wb"):
        Path("m.yaml").write_text(f"{slices}merge_method: passthrough\n".replace("B", kind))
        done = run("merge", "m.yaml", "-o", f"o{kind}.safetensors")
        assert done.code == 0, done.err
    plain, wrapped = load_file("ob.safetensors"), load_file("owb.safetensors")
    assert plain.keys() == wrapped.keys() and "model.layers.3.mlp.up_proj.weight" in plain
    assert all(torch.equal(plain[name], wrapped[name]) for name in plain)
