"""What lies beside weights goes with a copy, unless it is known to be of no use there."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from taskvec.errors import InputError
from taskvec.weights import beside, open_weights, save_weights

STATE = {"a.weight": torch.ones(2, 3)}

GOES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("source.spm", "target.spm", "vocab.json", "merges.txt", "bpe.codes", "dict.txt", "tekken.json"),
    *("vocab.pkl", "qwen.tiktoken", "bpe_simple_vocab_16e6.txt.gz", "chat_template.jinja", "params.json"),
    *("LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md", "COPYING", "CITATION.cff", "requirements.txt"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "labels.tsv"),
    *("modeling_new.py", "quantize_config.json", "alphabet.json", "mel_filters.npz", "hparams.yaml"),
    "additional_chat_templates/tool_use.jinja",
    "feature_extractor/preprocessor_config.json",
    "speaker_embeddings/v2/en_speaker_0.npy",
    "language_model/5gram.bin",
    "language_model/unigrams.txt",
    "code/blocks/attention.py",
)
STAYS = (
    *("README.md", "README_zh.md", "MODEL_CARD.md", ".gitattributes", ".DS_Store", "model.safetensors.bak~"),
    *("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "model.onnx"),
    *("tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model.onnx_data", "consolidated.00.pth"),
    *("model.safetensors.index.json", "model.safetensors.index.fp16.json", "model.fp16.safetensors"),
    *("optimizer.pt", "scheduler.pt", "rng_state_3.pth", "training_args.bin", "trainer_state.json"),
    *("scaler.pt", "eval_results.json", "zero_to_fp32.py", "latest", "events.out.tfevents.1.host", "x.log"),
    *("original/params.json", "onnx/config.json", "openvino/openvino_model.xml", "runs/a/events", "x.lock"),
    *("checkpoint-500/config.json", "global_step12/x_states.txt", ".cache/huggingface/x.json"),
    *("__pycache__/modeling_new.cpython-311.pyc", "tokenizer.json.incomplete"),
)
NAMED = (
    *("value_head.pt", "model-Q4_K_M.gguf", "adapter_config.json", "adapter_model.bin", "export.pkl"),
    *("ema.ckpt", "head.safetensors", "weights.npz"),
)
"""What stays, and is named."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(STATE, folder / "model.safetensors")
    return folder


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"what {name} holds" if not name.endswith("config.json") else "{}")


def copy(model: Path) -> set[str]:
    """What lies beside the weights in a copy."""
    out = save_weights(open_weights(model), model.parent / "out", force=True)
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    for name in names - {"model.safetensors", "taskvec.json"}:
        assert (out / name).read_bytes() == (model / name).read_bytes()
    return names - {"model.safetensors", "taskvec.json"}


def test_what_loading_may_need_goes_and_the_rest_stays(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(model, *GOES, *STAYS, *NAMED)
    assert copy(model) == set(GOES)
    [left] = [record.getMessage() for record in caplog.records if "left behind" in record.getMessage()]
    assert left.startswith(f"{model}: left behind: 'adapter_config.json', 'adapter_model.bin', 'ema.ckpt'")
    assert left.endswith(" and 2 more")


def test_a_copy_without_anything_odd_beside_it_is_silent(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(model, *(name for name in GOES if not name.endswith(".py")), *STAYS)
    copy(model)
    assert not caplog.records


def test_code_goes_and_is_said_to_be_code(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(model, "modeling_x.py", "configuration_x.py")
    (model / "config.json").write_text('{"auto_map": {"AutoModel": "modeling_x.X"}}')
    assert copy(model) == {"modeling_x.py", "configuration_x.py", "config.json"}
    assert "'configuration_x.py', 'modeling_x.py' goes with the output as it is: code" in caplog.text


@pytest.mark.parametrize("name", ["tokenizer.model", "assets/logo.png", "LICENSE"])
def test_what_git_has_yet_to_fetch_stays_and_is_named(
    name: str, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(model, "config.json", name)
    (model / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    assert copy(model) == {"config.json"}
    assert f"left behind: '{name}' (an LFS pointer; run git lfs pull)" in caplog.text


@pytest.mark.parametrize("inside", ["model.safetensors", "deep/er/pytorch_model.bin", "x.gguf"])
def test_another_model_in_a_folder_stays_whole_and_is_named(
    inside: str, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(model, "config.json", "vae/config.json", f"vae/{inside}")
    assert copy(model) == {"config.json"}
    assert "left behind: 'vae/'" in caplog.text


def test_what_is_too_large_stays_and_is_named(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(beside, "_LARGEST", 1000)
    put(model, "config.json", "data/a.csv", "data/b.csv")
    (model / "corpus.jsonl").write_bytes(bytes(1001))
    for name in ("a", "b"):
        (model / "data" / f"{name}.csv").write_bytes(bytes(600))
    assert copy(model) == {"config.json"}
    assert "left behind: 'corpus.jsonl', 'data/'" in caplog.text


def test_no_more_is_copied_than_all_may_take(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_MOST", 1000)
    for name in ("a.txt", "b.txt", "c.txt"):
        (model / name).write_bytes(bytes(400))
    assert copy(model) == {"a.txt", "b.txt"}


def test_a_folder_of_very_many_files_stays(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_FILES", 20)
    put(model, *(f"images/{number}.txt" for number in range(21)), *(f"voices/{n}.npy" for n in range(20)))
    assert copy(model) == {f"voices/{number}.npy" for number in range(20)}


def test_links_in_the_snapshot_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    snapshot, blobs = cache / "snapshots" / "abc", cache / "blobs"
    blobs.mkdir(parents=True)
    (snapshot / "additional_chat_templates").mkdir(parents=True)
    names = ("LICENSE", "source.spm", "additional_chat_templates/rag.jinja")
    for number, name in enumerate(names):
        (blobs / f"{number}").write_text(name)
        up = "../" * (2 + name.count("/"))
        (snapshot / name).symlink_to(f"{up}blobs/{number}")
    save_file(STATE, blobs / "weights")
    (snapshot / "model.safetensors").symlink_to("../../blobs/weights")
    out = save_weights(open_weights(snapshot), tmp_path / "out")
    assert all((out / name).read_text() == name and not (out / name).is_symlink() for name in names)
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["LICENSE", "source.spm", "assets/logo.svg"])
def test_no_other_link_out_of_the_folder_is_followed(name: str, model: Path) -> None:
    put(model.parent, "secret")
    put(model, name)
    (model / name).unlink()
    (model / name).symlink_to(model.parent / "secret")
    with pytest.raises(InputError, match="is a link that leads out of its folder"):
        copy(model)


def test_folders_that_are_links_and_unreadable_ones_stay(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(model.parent, "elsewhere/x.txt")
    (model / "round").symlink_to(model)
    (model / "away").symlink_to(model.parent / "elsewhere")
    put(model, "deep/x.txt")
    (model / "deep" / "round").symlink_to(model)
    assert copy(model) == {"deep/x.txt"}
    assert "left behind: 'away/', 'round/'" in caplog.text
