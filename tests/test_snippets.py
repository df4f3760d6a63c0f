"""Every block of the documentation is run by a test, or is at least parsed as the program would."""

import ast
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml
from cyclopts import CycloptsError, MissingArgumentError, UnknownCommandError
from torch import Tensor

import taskvec as tv
from snippets import INLINE, ROOT, commands, snippets, words_of
from taskvec.cli import app_of

NOT_RUN = {
    "CONTRIBUTING.md": "names what `taskvec analyze` takes",
    "README.md": "trains on the built-in world, as tests/test_tutorials.py does",
    "docs/builtin.md": "the demo, which tests/runs/test_demo.py runs, and a training",
    "docs/claims.md": "made by scripts/claims.py: experiments of an hour",
    "docs/cluster.md": "runs on a cluster, as tests/runs/test_ray.py does",
    "docs/gallery.md": "experiments of an hour",
    "docs/results.md": "experiments of an hour",
    "docs/report.md": "reports, which tests/runs/test_reporting.py makes of runs of its own",
    "docs/task-vectors.md": "edits, which tests/cli/test_edit_commands.py runs with other names",
}
"""Pages whose snippets no test runs -> why not. They are parsed like all others."""

PARTLY = {
    ("CONTRIBUTING.md", "analyze NAME"): UnknownCommandError,
}
"""Commands in prose with a word that stands for others -> what the command line says of them."""


def test_every_command_is_one_that_the_command_line_takes() -> None:
    app, wrong, needed = app_of(None), [], set()
    for page, words in dict.fromkeys(commands()):
        shown = shlex.join(words)
        try:
            app.parse_args(list(words), exit_on_error=False, print_error=False)
        except CycloptsError as error:
            if isinstance(error, PARTLY.get((page, shown), ())):
                needed.add((page, shown))
            elif not (isinstance(error, MissingArgumentError) and _in_prose(page, words)):
                wrong.append(f"{page}: taskvec {shown}: {error}")
    assert not wrong
    assert needed == set(PARTLY), "an exception that is no longer needed"


def _in_prose(page: str, words: tuple[str, ...]) -> bool:
    """Text may show the part of a command that it speaks of."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return words in (tuple(words_of(shown)) for shown in INLINE.findall(text))


def test_every_block_of_python_and_yaml_is_valid() -> None:
    wrong = []
    for page, language, text in snippets():
        try:
            if language == "python":
                ast.parse(text)
            elif language == "yaml":
                list(yaml.safe_load_all(text))
        except (SyntaxError, yaml.YAMLError) as error:
            wrong.append(f"{page}: {error}")
    assert not wrong


def test_every_page_with_snippets_has_a_test_that_runs_them() -> None:
    shown = {s.page for s in snippets() if s.language in ("python", "yaml")} | {
        page for page, _ in commands()
    }
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py") if _may_run(path)]
    run = {page for page in shown for text in tests if _names(text, page)}
    left = {page for page in shown - run - set(SHORTER) if not page.startswith("docs/tutorials/")}
    assert left - set(NOT_RUN) == set(), "no test runs the snippets of these pages"
    assert set(NOT_RUN) - left == set(), "exceptions that are no longer needed"


def _may_run(path: Path) -> bool:
    """Not this test, and none of the site or of what pages list."""
    return path.stem not in ("snippets", "test_snippets", "test_newcomers") and "scripts" not in path.parts


def _names(test: str, page: str) -> bool:
    """Whether a test reads a page; edits have a README.md too, and runs a report.md."""
    return page not in ("README.md", "docs/report.md") and any(
        f'{quote}{Path(page).name}"' in test for quote in ('"', "docs/")
    )


SHORTER = {
    "docs/analyses.md": {'"sst2"': '"greek"', "[0.1, 0.5, 1.0]": "[0.5]"},
    "docs/compact.md": {},
    "docs/disentanglement.md": {'"test": 200': '"test": 8', "-3, 3, 21": "-1, 1, 3"},
    "docs/files.md": {},
    "docs/ntk.md": {', params="attention"': ""},
    "docs/statistics.md": {"=256": "=4", "=32": "=4", '"stats/a/gram.safetensors"': "moments"},
    "docs/tangent.md": {
        "linearize(model)": "linearize(small)",
        "base=model": "base=small",
        "steps=48, batch_size=32": "steps=1, batch_size=2",
        '["a", "b"]': '["greek", "gabor"]',
    },
}
"""Page -> what its Python says -> what the test runs instead, to be quick."""


@pytest.mark.parametrize("page", SHORTER)
def test_the_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = _names_for(page)
    for shown in snippets():
        if shown.page == page and shown.language == "python":
            text = shown.text
            for long, short in SHORTER[page].items():
                text = text.replace(long, short)
            exec(text, names)


def _names_for(page: str) -> dict[str, object]:
    """What a page takes for granted: a model and vectors, tiny where the page names no model."""
    x, y = torch.randn(4, 3), torch.zeros(4, dtype=torch.long)
    small = torch.nn.Linear(3, 2)
    names: dict[str, object] = {"print": lambda *values: None, "tv": tv, "y": y, "v": torch.randn(2, 2)}
    names |= {
        "x": x,
        "x1": x,
        "x2": x[:2],
        "model": small,
        "small": small,
        "loss": torch.nn.CrossEntropyLoss(),
    }
    names |= {"theta0": {"w": torch.ones(2).double()}, "losses": [_quartic, _quartic]}
    if page in ("docs/analyses.md", "docs/disentanglement.md", "docs/statistics.md", "docs/tangent.md"):
        return names | _in_the_builtin_world()
    base = {"layer.0.weight": torch.zeros(32, 32)}
    drawn = [tv.TaskVector.between(base, {name: torch.randn(32, 32) for name in base}) for _ in range(4)]
    return names | dict(zip(("a", "b", "c", "vector"), drawn, strict=True))


def _quartic(point: Mapping[str, Tensor]) -> Tensor:
    return ((point["w"] - 0.5) ** 4).sum()


def _in_the_builtin_world() -> dict[str, object]:
    backbone, suite = tv.load_backbone("builtin"), tv.load_suite("builtin8")
    tasks = [suite.task(task) for task in ("greek", "gabor", "handwritten")]
    evaluator = tv.Evaluator(backbone, tasks, limits={"train": 8, "validation": 4, "test": 4})
    weights = tv.open_weights(backbone.ref)
    vectors = {}
    for task in ("greek", "gabor"):
        moved = {name: weights[name] * (1.01 if "image" in name else 1) for name in weights}
        vectors[task] = tv.TaskVector.between(backbone.ref, moved)
        vectors[task].save(f"{task}.safetensors")
    made: dict[str, object] = {"evaluator": evaluator, "vectors": vectors, "model": backbone}
    return made | {"part": evaluator.part("greek"), "a": vectors["greek"], "b": vectors["gabor"]}
