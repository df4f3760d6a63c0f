"""The modules of a sentence-transformers model are part of it: read, edited and written in their places."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from taskvec.errors import InputError, KeyMismatch
from taskvec.vectors import TaskVector, apply, save_adapter
from taskvec.weights import open_weights, save_weights

State = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]


def drawn(shapes: Shapes, seed: int) -> State:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


BERT: Shapes = {"embeddings.weight": (8, 4), "layer.0.query.weight": (4, 4)}
DENSE: Shapes = {"linear.weight": (2, 4), "linear.bias": (2,)}
NORM: Shapes = {"norm.weight": (2,), "norm.bias": (2,)}
LAYOUTS: dict[str, dict[str, Shapes]] = {
    "dense": {"": BERT, "1_Pooling": {}, "2_Dense": DENSE, "3_Normalize": {}},
    "two denses and a norm": {
        "": BERT,
        "1_Pooling": {},
        "2_Dense": DENSE,
        "3_Dense": DENSE,
        "4_LayerNorm": NORM,
    },
    "the transformer in a folder": {"0_Transformer": BERT, "1_Pooling": {}, "2_Dense": DENSE},
    "two towers in a folder": {"0_CLIPModel": {"visual.weight": (3, 4), "text.weight": (5, 4)}},
    "static": {"0_StaticEmbedding": {"embedding.weight": (9, 4)}, "1_Normalize": {}},
    "deeper": {"": BERT, "modules/dense": DENSE},
}


def make(folder: Path, layout: str, seed: int, pickled: bool = False) -> Path:
    """A model folder; the config of each module names the seed."""
    folder.mkdir()
    entries = [{"idx": n, "name": str(n), "path": path} for n, path in enumerate(LAYOUTS[layout])]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "config_sentence_transformers.json").write_text("{}")
    for number, (path, shapes) in enumerate(LAYOUTS[layout].items()):
        (folder / path).mkdir(parents=True, exist_ok=True)
        (folder / path / "config.json").write_text("{}")
        state = drawn(shapes, 100 * seed + number)
        if pickled and shapes:
            torch.save(state, folder / path / "pytorch_model.bin")
        elif shapes:
            save_file(state, folder / path / "model.safetensors")
    return folder


def states(folder: Path) -> dict[str, State]:
    """What another reader finds in the folder of each module."""
    return {
        str(path.parent.relative_to(folder)): load_file(path) for path in folder.rglob("model.safetensors")
    }


def others(folder: Path) -> set[str]:
    """All files but weights."""
    files = (path for path in folder.rglob("*") if path.is_file())
    names = {str(path.relative_to(folder)) for path in files if path.suffix not in (".safetensors", ".bin")}
    return names - {"taskvec.json", "README.md"}


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_edit_reaches_every_module_in_its_own_file(layout: str, pickled: bool, tmp_path: Path) -> None:
    base, tuned = make(tmp_path / "b", layout, 0, pickled), make(tmp_path / "t", layout, 1)
    vector = TaskVector.between(base, tuned)
    vector.save(tmp_path / "v.safetensors")
    loaded = TaskVector.load(tmp_path / "v.safetensors")
    out = save_weights(apply(base, vector), tmp_path / "out")
    half = save_weights(apply(base, 0.5 * loaded), tmp_path / "half")
    expected, before = states(tuned), states(make(tmp_path / "b2", layout, 0))
    assert states(out).keys() == expected.keys() == states(half).keys()
    for place, state in expected.items():
        assert all(torch.equal(states(out)[place][name], state[name]) for name in state)
        for name, tensor in states(half)[place].items():
            middle = before[place][name].double() * 0.5 + state[name].double() * 0.5
            assert torch.allclose(tensor.double(), middle, rtol=0, atol=1e-6)
    assert others(out) == others(base)
    assert open_weights(out).fingerprint() == open_weights(tuned).fingerprint()


def test_names_of_modules_begin_with_their_folders(tmp_path: Path) -> None:
    weights = open_weights(make(tmp_path / "m", "dense", 0))
    assert list(weights) == [*BERT, "2_Dense.linear.bias", "2_Dense.linear.weight"] or set(weights) == {
        *BERT,
        "2_Dense.linear.bias",
        "2_Dense.linear.weight",
    }


def test_a_model_that_lacks_the_modules_is_refused_or_leaves_them_unchanged(tmp_path: Path) -> None:
    base, plain = make(tmp_path / "b", "dense", 0), make(tmp_path / "p", "dense", 1)
    shutil.rmtree(plain / "2_Dense")
    with pytest.raises(KeyMismatch, match=r"2_Dense\.linear"):
        TaskVector.between(base, plain)
    vector = TaskVector.between(base, plain, on_missing="zero")
    out = save_weights(apply(base, vector), tmp_path / "out")
    assert torch.equal(states(out)["."]["embeddings.weight"], states(plain)["."]["embeddings.weight"])
    assert all(
        torch.equal(states(out)["2_Dense"][name], tensor) for name, tensor in states(base)["2_Dense"].items()
    )


@pytest.mark.parametrize("layout", ["dense", "the transformer in a folder"])
def test_large_models_are_sharded_in_each_folder(layout: str, tmp_path: Path) -> None:
    base = make(tmp_path / "b", layout, 0)
    out = save_weights(open_weights(base), tmp_path / "out", max_shard_size=70)
    first = out if layout == "dense" else out / "0_Transformer"
    for folder, shapes in ((first, BERT), (out / "2_Dense", DENSE)):
        listed = (
            json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
            if len(list(folder.glob("*.safetensors"))) > 1
            else dict.fromkeys(shapes, "model.safetensors")
        )
        assert listed.keys() == shapes.keys()
        assert all(name in load_file(folder / file) for name, file in listed.items())
    assert open_weights(out).fingerprint() == open_weights(base).fingerprint()


def test_the_weights_of_modules_are_copied_where_only_the_transformer_is_named(tmp_path: Path) -> None:
    base = make(tmp_path / "b", "dense", 0, pickled=True)
    (base / "config.json").write_text("{}")
    out = save_weights(open_weights(base / "pytorch_model.bin"), tmp_path / "out")
    assert (out / "2_Dense" / "pytorch_model.bin").read_bytes() == (
        base / "2_Dense" / "pytorch_model.bin"
    ).read_bytes()
    assert load_file(out / "model.safetensors").keys() == BERT.keys()


def test_an_interrupted_run_is_resumed_with_modules_too(tmp_path: Path) -> None:
    base = make(tmp_path / "b", "dense", 0)
    seen = []

    def interrupt(label: str, done: int, total: int, **facts: float) -> None:
        seen.append(done)
        if done == total and len(seen) == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_weights(open_weights(base), tmp_path / "out", max_shard_size=70, watch=interrupt)
    out = save_weights(open_weights(base), tmp_path / "out", max_shard_size=70, resume=True)
    assert open_weights(out).fingerprint() == open_weights(base).fingerprint()
    assert json.loads((out / "taskvec.json").read_text())["fingerprint"] == open_weights(base).fingerprint()


def test_a_module_listed_twice_is_read_once(tmp_path: Path) -> None:
    base = make(tmp_path / "b", "dense", 0)
    entries = json.loads((base / "modules.json").read_text())
    (base / "modules.json").write_text(json.dumps([*entries, {"path": "2_Dense"}, {"path": "./2_Dense/"}]))
    assert len(open_weights(base)) == 4


def test_two_modules_never_share_a_name(tmp_path: Path) -> None:
    base = make(tmp_path / "b", "dense", 0)
    save_file({"2_Dense.linear.bias": torch.ones(1)}, base / "model.safetensors")
    with pytest.raises(InputError, match=r"2_Dense\.linear\.bias lies in two modules"):
        open_weights(base)


def test_a_broken_module_is_named(tmp_path: Path) -> None:
    base = make(tmp_path / "b", "dense", 0)
    (base / "2_Dense" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"2_Dense/model\.safetensors: "):
        open_weights(base)


def test_an_adapter_reaches_no_module_beside_the_network(tmp_path: Path) -> None:
    vector = TaskVector.between(make(tmp_path / "b", "dense", 0), make(tmp_path / "t", "dense", 1))
    made = save_adapter(vector, tmp_path / "lora", rank=1)
    assert set(made.errors) == {"layer.0.query.weight"}
    assert {"2_Dense.linear.weight", "2_Dense.linear.bias"} <= set(made.left_out)


def test_an_adapter_is_of_one_module(tmp_path: Path) -> None:
    layout = "the transformer in a folder"
    base, tuned = make(tmp_path / "b", layout, 0), make(tmp_path / "t", layout, 1)
    with pytest.raises(InputError, match=rf"the difference of one of them: {base}/0_Transformer$"):
        save_adapter(TaskVector.between(base, tuned), tmp_path / "lora", rank=1)
    inner = TaskVector.between(base / "0_Transformer", tuned / "0_Transformer")
    assert set(save_adapter(inner, tmp_path / "lora", rank=1).errors) == {"layer.0.query.weight"}


@pytest.mark.parametrize("config", ["router_config.json", "config.json"])
def test_the_modules_that_a_router_chooses_among_are_part_of_the_model(config: str, tmp_path: Path) -> None:
    routes = {"query_0_Static": {"embedding.weight": (9, 4)}, "document_0_Dense": DENSE}
    for seed, name in enumerate(("b", "t")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}]')
        structure = {"query": ["query_0_Static"], "document": ["document_0_Dense"]}
        routed = {"types": dict.fromkeys(routes, "a.Module"), "structure": structure, "parameters": {}}
        (tmp_path / name / config).write_text(json.dumps(routed))
        for place, shapes in routes.items():
            (tmp_path / name / place).mkdir()
            (tmp_path / name / place / "config.json").write_text("{}")
            save_file(drawn(shapes, seed), tmp_path / name / place / "model.safetensors")
    base, tuned = tmp_path / "b", tmp_path / "t"
    out = save_weights(apply(base, TaskVector.between(base, tuned)), tmp_path / "out")
    assert others(out) == others(base)
    for place, state in states(tuned).items():
        assert all(torch.equal(states(out)[place][name], tensor) for name, tensor in state.items())
