"""References to models, good and bad."""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedModel

import taskvec
from checkpoints import SHAPE
from taskvec.cli._editing import open_model
from taskvec.errors import CorruptFile, InputError, UnknownName
from taskvec.models.checkpoint import reads_text
from taskvec.models.known import LOADERS, MODELS, known_model, path_or_id
from taskvec.models.loading import load_backbone
from taskvec.models.selection import select
from taskvec.models.text import TextBackbone
from taskvec.weights import open_weights


def test_a_folder_is_loaded_in_float32_and_eval_mode(bert_folder: Path) -> None:
    backbone = load_backbone(str(bert_folder))
    assert backbone.ref == str(bert_folder)
    assert not backbone.training
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}


def test_models_are_loaded_in_threads_as_one_after_the_other(bert_folder: Path) -> None:
    """Transformers replaces a method of all models while it loads one; later models lost their tied heads."""
    ties = PreTrainedModel.tie_weights
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(load_backbone, [str(bert_folder)] * 12))
    assert PreTrainedModel.tie_weights is ties
    assert torch.get_default_dtype() == torch.float32
    network = LlamaForCausalLM(LlamaConfig(vocab_size=20, tie_word_embeddings=True, **SHAPE))
    assert network.lm_head.weight is network.model.embed_tokens.weight
    states = [backbone.network.state_dict() for backbone in loaded]
    assert all(torch.equal(states[0][name], state[name]) for state in states for name in states[0])


def test_a_pickled_checkpoint_loads_as_the_safetensors_one(bert_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bert_folder, tmp_path / "model")
    plain = load_backbone(bert_folder)
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(plain.network.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    pickled = load_backbone(tmp_path / "model")
    batch = plain.collate(["good film"])
    assert_close(pickled(**batch), plain(**batch), rtol=0, atol=0)
    assert set(pickled.encoder_parameters()) == set(plain.encoder_parameters())


def test_a_word_that_is_nothing_names_the_nearest_model() -> None:
    with pytest.raises(InputError, match="did you mean 'minilm'"):
        load_backbone("minlm")
    with pytest.raises(UnknownName, match="did you mean 'clip-vit-b-32'"):
        known_model("clip-vit-b32")


def test_a_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("{}", "model_type"),
        ("[]", "holds a list"),
        ('{"model_type": ["bert"]}', "model_type"),
    ],
)
def test_a_broken_configuration_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=rf"config\.json: .*{words}"):
        load_backbone(tmp_path)


def test_a_truncated_checkpoint_is_one_line(bert_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bert_folder, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError) as caught:
        load_backbone(tmp_path / "model")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "gone": lambda _: None,
    "empty": lambda _: b"",
    "half": lambda data: data[: len(data) // 2],
    "an object": lambda _: b"{}",
    "a list": lambda _: b"[1]",
    "nothing": lambda _: b"null",
    "no text": lambda data: b"\xff\xfe" + data[2:],
    "deep": lambda _: b"[" * 5000,
}


def loaded(folder: Path) -> str | None:
    """Why a checkpoint folder makes no backbone that runs; none if it makes one."""
    try:
        backbone = load_backbone(folder)
        backbone.encoder_parameters()
        backbone.embed_text(["one two"])
    except InputError as error:
        return str(error)
    return None


def copied(folder: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(folder, target))


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_shards(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half = list(state)[: len(state) // 2]
    files = {
        "a.safetensors": {name: state[name] for name in half},
        "b.safetensors": {name: state[name] for name in state if name not in half},
    }
    for file, held in files.items():
        save_file(held, folder / file, {"format": "pt"})
    where = {name: file for file, held in files.items() for name in held}
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("layout", ["bert", "clip", "builtin", "pickle", "shards"])
def test_damage_to_any_file_of_a_model_is_one_line_with_the_folder_or_does_not_matter(
    layout: str, bert_folder: Path, clip_folder: Path, tmp_path: Path
) -> None:
    sources = {"clip": clip_folder, "builtin": Path(taskvec.__file__).parent / "models" / "builtin" / "model"}
    whole = copied(sources.get(layout, bert_folder), tmp_path / "whole")
    for change in {"pickle": [as_pickle], "shards": [as_shards]}.get(layout, []):
        change(whole)
    assert loaded(whole) is None
    refused = set()
    endings = (".safetensors", ".bin", ".index.json")
    weights = [file for file in whole.iterdir() if file.name.endswith(endings)]
    for file in weights if layout in ("pickle", "shards") else sorted(whole.iterdir()):
        for damage in DAMAGE.values():
            model = copied(whole, tmp_path / "model")
            data = damage(file.read_bytes())
            (model / file.name).unlink()
            if data is not None:
                (model / file.name).write_bytes(data)
            reason = loaded(model)
            if reason is not None:
                refused.add(file.name)
                assert "\n" not in reason and reason.startswith(str(model)), reason
                assert "AutoTokenizer" not in reason and len(reason) < 500, reason
    assert {file.name for file in weights} <= refused


def test_a_pickle_that_would_be_unpacked_is_refused_as_for_edits(bert_folder: Path, tmp_path: Path) -> None:
    model = copied(bert_folder, tmp_path / "model")
    as_pickle(model)
    file = model / "pytorch_model.bin"
    with zipfile.ZipFile(file) as stored:
        parts = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in parts.items():
            packed.writestr(name, content)
    for reader in (load_backbone, open_weights):
        with pytest.raises(CorruptFile, match=r"pytorch_model\.bin: no archive as torch writes them"):
            reader(model)


@pytest.mark.parametrize("revision", ["..", "../main", "refs/../../x", "main/.."])
def test_a_revision_leads_nowhere_else_in_the_cache(revision: str) -> None:
    with pytest.raises(InputError, match="no folder, hub id or known model of this name"):
        load_backbone(f"org/name@{revision}")


DETR = {"model_type": "detr", "architectures": ["DetrForObjectDetection"]}


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (
            DETR,
            "model_type 'detr', for .*object detection.*, is none that can be trained or evaluated; those",
        ),
        ({"model_type": "whisper"}, "model_type 'whisper', for .*speech"),
        ({"model_type": "bertt"}, r"model_type 'bertt', unknown to transformers \d"),
        ({"model_type": "text"}, "model_type 'text', unknown to transformers"),
        ({"model_type": 3}, "'model_type' is a number, a name is needed"),
        ({"model_type": ["bert"]}, "'model_type' is a list"),
        ({"model_type": None}, "'model_type' is nothing"),
        ({}, "'model_type' is nothing"),
    ],
)
def test_a_model_of_no_known_kind_is_told_what_kinds_there_are(
    config: dict[str, object], complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"^{tmp_path}/config\.json: {complaint}"):
        load_backbone(tmp_path)


def test_every_type_that_reads_text_is_one_that_transformers_builds() -> None:
    for kind in (
        "bert",
        "roberta",
        "mpnet",
        "distilbert",
        "deberta-v2",
        "modernbert",
        "xlnet",
        "gpt2",
        "llama",
    ):
        assert reads_text(kind), kind
    for kind in ("vit", "clip", "siglip", "t5", "whisper", "wav2vec2", "resnet", "llava", "nothing"):
        assert not reads_text(kind), kind


def test_a_text_model_without_its_tokenizer_is_refused_and_not_given_an_empty_one(
    bert_folder: Path, tmp_path: Path
) -> None:
    for config in (None, {"model_type": "llama", "hidden_size": 16}):
        model = copied(bert_folder, tmp_path / "model")
        for file in ("tokenizer.json", "vocab.txt"):
            (model / file).unlink()
        if config:
            LlamaModel(LlamaConfig(vocab_size=18, **SHAPE)).save_pretrained(model)
        kind = "llama" if config else "bert"
        with pytest.raises(
            InputError, match=rf"no tokenizer in the folder .* type '{kind}' reads text; copy"
        ):
            load_backbone(model)


def test_files_that_do_not_belong_together_are_told_apart(bert_folder: Path, tmp_path: Path) -> None:
    def change(**changes: object) -> Path:
        model = copied(bert_folder, tmp_path / "model")
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | changes))
        return model

    reason = loaded(change(intermediate_size=48))
    assert reason is not None and "has shape (32,) in the weights and (48,) by config.json" in reason
    reason = loaded(change(num_attention_heads=3))
    assert reason is not None and "config.json: does not describe a model that can be built" in reason
    state = load_file(bert_folder / "model.safetensors")
    state["embeddings.word_embeddings.weight"] = state["embeddings.word_embeddings.weight"][:10].clone()
    model = change(vocab_size=10)
    save_file(state, model / "model.safetensors", {"format": "pt"})
    reason = loaded(model)
    assert reason is not None and "knows 18 tokens and the model's embedding has 10 rows" in reason


def test_a_token_that_was_added_to_the_tokenizer_alone_is_named_when_it_comes(
    bert_folder: Path, tmp_path: Path
) -> None:
    model = copied(bert_folder, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["bergen"])
    tokenizer.save_pretrained(model)
    backbone = load_backbone(model)
    backbone.embed_text(["good film"])
    with pytest.raises(
        InputError, match="gives 'bergen' the number 18, and the model's embedding has 18 rows"
    ):
        backbone.embed_text(["good film", "bergen"])


def test_a_folder_with_an_adapter_says_how_to_make_a_model_of_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="holds a LoRA adapter; write the model that it makes with: taskvec"):
        load_backbone(tmp_path)


def test_what_is_on_the_disk_wins_over_a_known_name_in_every_command_and_function(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in MODELS:
        assert path_or_id(name) == MODELS[name].ref()
        assert path_or_id(f"./{name}") == f"./{name}"
        with pytest.raises(InputError, match="no folder, hub id or known model"):
            load_backbone(f"./{name}")
    copied(bert_folder, tmp_path / "minilm")
    fingerprint = open_weights(bert_folder).fingerprint()
    for ref in ("minilm", "./minilm"):
        assert load_backbone(ref).dim == 16
        assert open_model(ref).fingerprint() == fingerprint
    (tmp_path / "builtin").write_text("notes")
    with pytest.raises(InputError, match="builtin: a file, expected the folder of a checkpoint"):
        load_backbone("builtin")


def test_a_path_into_a_folder_that_exists_is_never_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match="runs/last: no folder"):
        load_backbone("runs/last")


def test_a_backbone_on_a_module_or_a_mapping_is_called_by_its_type(bert_folder: Path) -> None:
    plain = load_backbone(bert_folder)
    state = plain.network.state_dict()
    for ref, called in ((plain.network, "BertModel"), (dict(state), "dict"), (bert_folder, str(bert_folder))):
        backbone = TextBackbone(plain.network, plain.tokenizer, ref=ref)  # type: ignore[arg-type]
        assert backbone.ref == called and backbone.source is ref
        assert len(list(backbone.children())) == 1
        with pytest.raises(InputError) as refused:
            select(backbone, "re:nothing")
        assert str(refused.value).startswith(f"{called}: ") and "\n" not in str(refused.value)
        assert open_weights(backbone.source).fingerprint() == open_weights(state).fingerprint()


def test_the_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**where: object) -> str:
        raise OSError("offline\nmore")

    monkeypatch.setattr("transformers.utils.hub.cached_file", refuse)
    with pytest.raises(InputError, match=r"^no-such/model@v1: .*\(offline\)$"):
        load_backbone("no-such/model@v1")


def test_every_loader_of_the_registry_is_there() -> None:
    assert all(callable(LOADERS[kind]) for kind in LOADERS)


def test_known_models_state_what_a_listing_shows() -> None:
    for name, model in MODELS.items():
        assert model.name == name and model.about and model.parameters > 0


def test_listing_models_does_not_import_torch() -> None:
    code = (
        "import sys, taskvec.models.known; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("num_hidden_layers", 10**18, "num_hidden_layers is 1000000000000000000, and the weights have"),
        ("vocab_size", 10**9, "describes a model of"),
    ],
)
def test_a_config_of_a_much_larger_model_is_refused_before_it_is_made(
    key: str, value: int, what: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(InputError, match=what):
        load_backbone(str(folder))
