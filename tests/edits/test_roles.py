"""Chat templates, special roles and new tokens that stay behind are named, with a way to have them."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapters import save_adapter_of
from edits.mergekit_models import run
from taskvec.edits.opening import open_recipe, save_merge
from taskvec.edits.roles import describe_left
from taskvec.vectors import TaskVector
from taskvec.weights import open_weights
from vocabularies import CHAT, WORDS, llama, save_base, save_tuned

TEMPLATES: dict[str, tuple[str, str | dict[str, Any]]] = {
    "a file": ("chat_template.jinja", "{{ messages }}"),
    "in the config": ("tokenizer_config.json", {"chat_template": "{{ messages }}"}),
    "one of several": (
        "tokenizer_config.json",
        {
            "chat_template": [
                {"name": "tool", "template": "t"},
                {"name": "default", "template": "{{ messages }}"},
            ]
        },
    ),
}


def put(file: Path, content: str | dict[str, Any]) -> None:
    if isinstance(content, dict):
        held = json.loads(file.read_text()) if file.exists() else {}
        content = json.dumps({**held, **content})
    file.write_text(content)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_that_is_not_written_is_named(kind: str, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "chat").mkdir()
    name, content = TEMPLATES[kind]
    put(tmp_path / "chat" / name, content)
    assert describe_left(tmp_path / "chat", tmp_path / "base") == "its chat template"
    put(tmp_path / "base" / "chat_template.jinja", "{{ messages }}\n")
    assert describe_left(tmp_path / "chat", tmp_path / "base") == ""


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer_config.json", {"eos_token": "<end>"}, "eos_token '<end>'"),
        ("tokenizer_config.json", {"pad_token": {"content": "<pad>", "special": True}}, "pad_token '<pad>'"),
        ("special_tokens_map.json", {"bos_token": "<start>"}, "bos_token '<start>'"),
        ("generation_config.json", {"eos_token_id": [2, 7]}, "eos_token_id [2, 7]"),
        ("vocab.json", {"a": 0, "b": 1, "<new>": 2, "<newer>": 3}, "token '<new>' (1 more)"),
    ],
)
def test_roles_ends_and_tokens_are_named(
    file: str, content: dict[str, Any], said: str, tmp_path: Path
) -> None:
    for name in ("base", "chat"):
        (tmp_path / name).mkdir()
        put(tmp_path / name / "vocab.json", {"a": 0, "b": 1})
        put(tmp_path / name / "tokenizer_config.json", {"eos_token": "</s>"})
    assert describe_left(tmp_path / "chat", tmp_path / "base") == ""
    put(tmp_path / "chat" / file, content)
    assert describe_left(tmp_path / "chat", tmp_path / "base") == said


@pytest.mark.parametrize(
    "file", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"]
)
def test_files_that_cannot_be_read_are_no_reason_to_stop(file: str, tmp_path: Path) -> None:
    for name in ("base", "chat"):
        (tmp_path / name).mkdir()
    (tmp_path / "chat" / file).write_text('{"eos_token": ')
    assert describe_left(tmp_path / "chat", tmp_path / "base") == ""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base with spare rows, and a chat model of it that gives them names, a template and an end."""
    base = save_base(tmp_path / "base", padding=2)
    chat = save_tuned(base, tmp_path / "chat", "llama", [*WORDS, *CHAT])
    put(chat / "chat_template.jinja", "<start>{{ messages }}<end>")
    put(chat / "tokenizer_config.json", {"eos_token": "<end>"})
    monkeypatch.chdir(tmp_path)
    return tmp_path


LEFT = "left behind with its tokenizer: its chat template, eos_token '<end>' and token '<start>' (1 more)"


def test_a_recipe_says_how_to_have_them_and_that_works(models: Path) -> None:
    recipe = "base: base\nmodels: {c: chat}\nscale: 0.5\n"
    Path("r.yaml").write_text(recipe)
    [note] = [note for note in open_recipe("r.yaml").notes if "left behind" in note]
    assert note == f"c: {LEFT}; that of base is written, vocab: c takes this one"
    Path("r.yaml").write_text(recipe + "vocab: c\n")
    made = open_recipe("r.yaml")
    assert not [note for note in made.notes if "left behind" in note]
    save_merge(made, "out")
    for file in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        assert Path("out", file).read_bytes() == Path("chat", file).read_bytes()


def test_a_mergekit_file_says_how_to_have_them_and_that_works(models: Path) -> None:
    text = (
        "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: chat, parameters: {weight: 1}}]\n"
    )
    Path("m.yaml").write_text(text)
    [note] = [note for note in open_recipe("m.yaml").notes if "left behind" in note]
    assert note == f"chat: {LEFT}; that of base is written, tokenizer_source: chat takes this one"
    Path("m.yaml").write_text(text + "tokenizer_source: chat\n")
    made = open_recipe("m.yaml")
    assert not [note for note in made.notes if "left behind" in note]
    save_merge(made, "out")
    assert Path("out/chat_template.jinja").read_text() == "<start>{{ messages }}<end>"


def test_the_template_of_an_adapter_is_named(models: Path) -> None:
    save_adapter_of(Path("base"), lambda: llama(len(WORDS) + 2), Path("lora"), target_modules=["q_proj"])
    put(Path("lora/chat_template.jinja"), "{{ messages }}")
    for key in ("vectors", "models"):
        Path("r.yaml").write_text(f"base: base\n{key}: {{a: lora}}\n")
        [note] = [note for note in open_recipe("r.yaml").notes if "left behind" in note]
        assert note.endswith("its chat template; that of base is written, copy it from lora")


def test_a_chosen_template_is_not_missed(models: Path) -> None:
    text = "merge_method: linear\nmodels: [{model: base}, {model: chat}]\nparameters: {weight: 1}\n"
    for choice in ("auto", "chatml", "'{{ messages }}'"):
        Path("m.yaml").write_text(text + f"chat_template: {choice}\n")
        assert not [note for note in open_recipe("m.yaml").notes if "its chat template" in note]


def test_diff_says_what_a_vector_does_not_hold(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("diff", "base", "chat", "-o", "v.safetensors")
    assert f"chat: {LEFT}; a task vector has none, copy it from chat to what" in capsys.readouterr().err


def test_a_vector_beside_another_vocabulary_is_applied_first_as_advised(models: Path) -> None:
    save_tuned(Path("base"), models / "more", "llama", [*CHAT, *WORDS], padding=3)
    TaskVector.between(open_weights("base"), open_weights("chat")).save("v.safetensors")
    recipe = "base: base\nvectors: {v: v.safetensors}\nmodels: {m: more}\nrule: sum\nvocab: union\n"
    Path("r.yaml").write_text(recipe)
    with pytest.raises(
        Exception, match=r"taskvec apply BASE -v v=PATH -o MODEL\) and give MODEL under models"
    ):
        open_recipe("r.yaml")
    run("apply", "base", "-v", "v=v.safetensors", "-o", "applied")
    Path("r.yaml").write_text("base: base\nmodels: {v: applied, m: more}\nrule: sum\nvocab: union\n")
    assert open_recipe("r.yaml").like.folder == Path("more")


@pytest.mark.parametrize("vocab", ["two", "one"])
def test_a_recipe_takes_the_vocabulary_of_a_model_by_name(vocab: str, models: Path) -> None:
    save_tuned(Path("base"), models / "more", "llama", [*CHAT, *WORDS[::-1]], padding=3)
    Path("r.yaml").write_text(
        f"base: base\nmodels: {{one: chat, two: more}}\nrule: mean\nvocab: {vocab}\ndtype: float64\n"
    )
    made = open_recipe("r.yaml")
    folder = {"one": "chat", "two": "more"}[vocab]
    assert str(made.like.ref).endswith(folder)
    tokens = [*WORDS, *CHAT] if vocab == "one" else [*CHAT, *WORDS[::-1]]
    name = "model.embed_tokens.weight"
    held = {ref: open_weights(ref)[name].double() for ref in ("base", "chat", "more")}
    orders = {"base": WORDS, "chat": [*WORDS, *CHAT], "more": [*CHAT, *WORDS[::-1]]}
    for row, token in enumerate(tokens):
        found = [held[ref][order.index(token)] for ref, order in orders.items() if token in order]
        tuned = found[1:] if token in WORDS else found
        assert (made.weights[name][row] - sum(tuned) / len(tuned)).abs().max() < 1e-6


def test_an_unknown_vocabulary_is_refused_with_the_nearest(models: Path) -> None:
    Path("r.yaml").write_text("base: base\nmodels: {one: chat}\nvocab: unoin\n")
    with pytest.raises(Exception, match=r"vocab: 'unoin', expected .* did you mean 'union'"):
        open_recipe("r.yaml")
