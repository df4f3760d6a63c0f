"""The model card says what the hub needs to know: the licence of the base, and the models it is made of."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from taskvec.edits.card import read_licence
from taskvec.edits.opening import open_recipe, save_merge
from taskvec.edits.recipe import Recipe, build

STATED = {
    "license: apache-2.0\nlanguage: en\n": {"license": "apache-2.0"},
    "tags:\n- x\nlicense: MIT\n": {"license": "MIT"},
    "license: other\nlicense_name: llama3\nlicense_link: LICENSE\n": {
        "license": "other",
        "license_name": "llama3",
        "license_link": "LICENSE",
    },
    "license: other\nlicense_link: https://example.org/licence\n": {
        "license": "other",
        "license_link": "https://example.org/licence",
    },
    "license: other\nlicense_link: /home/me/LICENSE\n": {"license": "other"},
    "license: [mit, apache-2.0]\n": {},
    "license: 3\n": {},
    "license: ''\n": {},
    "license: !!python/object/apply:os.system [ls]\n": {},
    "license: *nothing\n": {},
    "license: a\nlicense: b\n": {},
    "just text\n": {},
    "license: |\n  two\n  lines\n": {},
    'license: "\\e[2J"\n': {},
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for number, name in enumerate(("base", "tuned")):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((2, 2), float(number))}, tmp_path / name / "model.safetensors")
    return tmp_path / "base"


def front_of(base: Path) -> dict[str, object]:
    recipe = Recipe.parse("", {"base": str(base), "models": {"a": str(base.parent / "tuned")}})
    out = save_merge(build(recipe), base.parent / "out", force=True)
    _, front, text = (out / "README.md").read_text().split("---\n", 2)
    assert text.startswith("# out\n")
    assert str(base.parent) not in text + front
    loaded: dict[str, object] = yaml.safe_load(front)
    assert loaded.pop("tags") == ["merge", "task-arithmetic", "taskvec"]
    return loaded


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("front", STATED)
def test_the_licence_of_the_base_is_stated(front: str, ends: str, base: Path) -> None:
    text = f"---\n{front}---\n# The base\nlicense: none\n".replace("\n", ends)
    (base / "README.md").write_bytes(text.encode())
    assert read_licence(base) == STATED[front]
    assert front_of(base) == STATED[front]


@pytest.mark.parametrize(
    "text", [b"", b"---\n", b"license: mit\n", b"\xff\xfe", b"---\n" * 1000, b"x" * (2 << 20)]
)
def test_a_readme_without_a_front_states_none(text: bytes, base: Path) -> None:
    (base / "README.md").write_bytes(text)
    assert front_of(base) == {}


def test_a_base_without_a_readme_states_none(base: Path) -> None:
    assert front_of(base) == {}
    (base / "README.md").symlink_to("/etc/hostname")
    assert front_of(base) == {}


def test_names_and_notes_tell_no_path_of_the_machine(base: Path) -> None:
    models = [{"model": str(path), "parameters": {"weight": 0.5}} for path in (base, base.parent / "tuned")]
    (base.parent / "r.yaml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    merge = open_recipe(base.parent / "r.yaml")
    noted = replace(
        merge, notes=(f"{base}: far from {base.parent / 'tuned'}; is it?", f"{base} is the first")
    )
    text = (save_merge(noted, base.parent / "out") / "README.md").read_text()
    assert str(base.parent) not in text and "| base | base |" in text
    assert "Note: base: far from tuned; is it?\n" in text and "Note: base is the first.\n" in text
