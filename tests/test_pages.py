"""What the pages for newcomers show is what happens: commands run, and print the lines that are shown."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import taskvec as tv
from cli.test_edit_commands import Run
from pages import save_all

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # PEFT asks for it

PARTS = ("self_attn.q_proj", "mlp.up_proj")
DOCS = Path(__file__).parents[1] / "docs"
SNIPPET = re.compile(r"^    \$ taskvec (.*)\n((?:    (?!\$).*\n)*)|^```(\w+)\n([^`]*)```", re.MULTILINE)


class Shown(NamedTuple):
    """A command and what it prints; or a file, or a piece of Python."""

    command: str
    printed: str
    language: str
    text: str


def snippets(page: str) -> Iterator[Shown]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return (Shown(*(part or "" for part in found.groups())) for found in SNIPPET.finditer(text))


def lines(text: str) -> list[str]:
    """Lines without margins and frames, where six spaces continue a line; figures, which depend on random
    weights, are each a ``#``."""
    whole = re.sub(r"\n {6}", " ", text)
    bare = (re.sub(r"[\s│┃]+", " ", line).strip() for line in whole.splitlines())
    return [
        re.sub(r"\b[0-9a-f]{32}\b|-?\d[\d.,]*(e-\d+)?", "#", line) for line in bare if re.search(r"\w", line)
    ]


@pytest.mark.parametrize("page", ["two-checkpoints.md", "chat-vectors.md", "from-mergekit.md"])
def test_what_a_page_shows_happens(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_all()
    names: dict[str, object] = {}
    for shown in snippets(page):
        if shown.command:
            done = Run(capsys, tuple(shlex.split(shown.command)))
            printed = lines(done.out) + lines(done.err)
            absent = [line for line in lines(shown.printed) if line not in printed]
            assert not absent, f"taskvec {shown.command}\n{done.out}{done.err}"
            assert done.code == (2 if "taskvec: " in shown.printed else 0), done.err
        elif shown.language == "python":
            exec(shown.text, names)
        elif file := re.match(r"# (\S+\.ya?ml)", shown.text):
            Path(file[1]).write_text(shown.text, encoding="utf-8")


@pytest.mark.parametrize("name", ["task", "ties", "dare", "slerp", "linear"])
def test_the_recipe_beside_mergekits_file_makes_the_same_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, model in enumerate(("base", "tuned", "other")):
        generator = torch.Generator().manual_seed(seed)
        shapes = {f"model.layers.{layer}.{part}.weight": (6, 4) for layer in range(3) for part in PARTS}
        drawn = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        tv.save_weights({**drawn, "model.norm.weight": torch.ones(4)}, model)
    made = []
    for dialect in ("mergekit", "recipe"):
        file = f"{name}.{dialect}.yml"
        text = next(s.text for s in snippets("from-mergekit.md") if s.text.startswith(f"# {file}"))
        Path(file).write_text(text, encoding="utf-8")
        weights = tv.open_recipe(file).weights
        made.append({key: weights[key] for key in weights})
    apart = 3e-7 if name in ("slerp", "linear") else 0.0
    torch.testing.assert_close(made[0], made[1], rtol=apart, atol=apart)
