"""Sliders move real numbers: what a page computes is what an evaluation measures at the same point."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from xxhash import xxh3_128_hexdigest

from taskvec.errors import InputError, TaskvecError
from taskvec.models.heads import Head
from taskvec.reports.charts.lines import Lines
from taskvec.reports.page import Page, Section, render_page
from taskvec.reports.sliders import Missing, Sliders
from taskvec.runs.experiment import load_experiment
from taskvec.runs.manifest import read_run
from taskvec.runs.report import write_report
from taskvec.runs.runner import Runner
from taskvec.studies.explore import Explore, ExploreSettings, _why_not_behind
from taskvec.studies.explored import Explored
from taskvec.studies.numerics.affine import AffineScores, affine_scores, packed, unpacked
from taskvec.studies.store import Store
from taskvec.studies.trial import Lab, Trial

HEADS = [(True, False), (True, True), (False, True), (False, False)]
"""Whether a head normalises features, and whether it has a bias."""


def made(normalize: bool, bias: bool, vectors: int = 3, dim: int = 6, classes: int = 5) -> Any:
    """A head, features and slopes (N, T + 1, d) in float64, and labels."""
    draw = torch.Generator().manual_seed(vectors + 10 * dim)
    weight = torch.randn(classes, dim, generator=draw, dtype=torch.float64)
    weight[3] = weight[1]  # classes that always tie
    given = torch.randn(classes, generator=draw, dtype=torch.float64) if bias else None
    if given is not None:
        given[3] = given[1]
    head = Head(weight, given, normalize=normalize, classes=[*"abcde"], kind="linear-probe")
    features = torch.randn(40, vectors + 1, dim, generator=draw, dtype=torch.float64)
    features[0] = 0
    return head, features, torch.randint(classes, (40,), generator=draw)


@pytest.mark.parametrize(("normalize", "bias"), HEADS)
@pytest.mark.parametrize(("vectors", "dim"), [(1, 6), (3, 6), (9, 4)])
def test_predictions_are_those_of_the_head_at_every_point(
    normalize: bool, bias: bool, vectors: int, dim: int
) -> None:
    head, features, labels = made(normalize, bias, vectors, dim)
    scores = affine_scores(
        features.numpy(),
        labels.numpy(),
        head.weight.numpy(),
        None if head.bias is None else head.bias.numpy(),
        normalize=normalize,
    )
    assert scores.classes == 5
    draw = np.random.default_rng(0)
    points = [[0.0] * vectors, [1.0] * vectors, *draw.uniform(-3, 3, (8, vectors)).tolist()]
    for at in points:
        moved = (features * torch.tensor([1.0, *at], dtype=torch.float64)[None, :, None]).sum(1)
        expected = head(moved).argmax(1).numpy()
        for one in (scores, unpacked(packed(scores), vectors)):
            assert (one.predictions(at) == expected).all()
            assert one.accuracy(at) == (expected == labels.numpy()).mean()


def test_what_a_page_holds_is_as_exact_as_float32() -> None:
    draw = np.random.default_rng(0)
    numbers = (draw.normal(size=(50, 4, 9)) * 10.0 ** draw.integers(-4, 4, (50, 1, 1))).astype("float32")
    scores = AffineScores(numbers, draw.integers(0, 10, 50))
    again = unpacked(packed(scores), 3)
    largest = abs(numbers).max(axis=(1, 2), keepdims=True)
    assert (abs(again.numbers - numbers) <= 2**-23 * largest).all()
    assert (again.labels == scores.labels).all()
    assert len(str(packed(scores)["numbers"])) == 4 * numbers.size


EXPERIMENT = """
experiment: sliders
model: {model}
suite: {suite}
seeds: [0, 1]
training: {{lr: 3e-3, steps: 6, batch_size: 16}}
regimes:
  full: {{}}
  tangent: {{}}
  post-hoc: {{}}
  tangent-attention: {{}}
  mine: {{select: "re:.*query.*", space: tangent, lr: 1e-2}}
search: {{step: 0.5, coarse: 1, limit: 1.5}}
addition: {{subsets: whole}}
explore: {{regimes: [tangent, post-hoc, tangent-attention, mine]}}
"""


@pytest.fixture(scope="module")
def several_heads(tiny_suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny suite with a zero-shot head, a probe, and a task that is not measured by accuracy."""
    folder = Path(shutil.copytree(tiny_suite.parent, tmp_path_factory.mktemp("heads") / "suite"))
    text = tiny_suite.read_text()
    text = text.replace("taste: {", "taste: {head: linear-probe, ").replace(
        "number: {", "number: {metric: macro_f1, "
    )
    (folder / tiny_suite.name).write_text(text)
    return folder / tiny_suite.name


@pytest.fixture(scope="module")
def lab(tiny_model: Path, several_heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("sliders")
    (folder / "sliders.yaml").write_text(EXPERIMENT.format(model=tiny_model, suite=several_heads))
    runner = Runner(*load_experiment(folder / "sliders.yaml"), Store(folder / "run"))
    write_report(runner.run(), folder / "run")
    return runner._lab


def sliders_of(lab: Lab, regime: str) -> Sliders:
    blocks = Explore(ExploreSettings()).charts(read_run(lab.store.folder))
    [found] = [of for of in blocks if isinstance(of, Sliders) and of.title == f"Coefficients of {regime}"]
    return found


@pytest.mark.parametrize("regime", ["tangent", "post-hoc", "tangent-attention", "mine"])
def test_a_page_shows_what_an_evaluation_measures(lab: Lab, regime: str) -> None:
    block = sliders_of(lab, regime)
    data = block.data()
    assert [of["name"] for of in data["tasks"]] == ["pets", "taste"]
    assert data["vectors"] == ["pets", "taste", "number"]
    assert "number is measured by macro_f1, not by accuracy" in block.note
    trial = Trial(lab, regime, 0)
    draw = np.random.default_rng(1)
    points = [
        *([shared] * 3 for shared in (0.0, 1 / 3, 1.0, 1.7, -0.6)),
        *([float(own == place) for own in range(3)] for place in range(3)),
        *draw.uniform(-2, 2, (10, 3)).tolist(),
    ]
    for at in points:
        point = trial.points.at(dict(zip(trial.tasks, at, strict=True)))
        expected = lab.evaluator.values(point, ["pets", "taste"], "test")
        found = {of["name"]: unpacked(of, 3).accuracy(at) for of in data["tasks"]}
        assert found == expected


def test_a_page_begins_at_the_coefficient_that_was_searched(lab: Lab) -> None:
    facts = json.loads((lab.store.folder / "results.json").read_text())["seeds"]["0"]["tangent"]
    [whole] = facts["addition"]
    block = sliders_of(lab, "tangent")
    marks = dict(block.marks)
    assert block.start == marks["best shared α"] == [whole["coefficient"]] * 3
    assert marks["best α of each"] == list(whole["each"]["coefficients"].values())
    assert facts["explored"]["tasks"]["pets"]["examples"] == 48


def test_points_of_ordinary_space_are_those_that_were_measured(lab: Lab) -> None:
    blocks = Explore(ExploreSettings()).charts(read_run(lab.store.folder))
    [chart] = [of for of in blocks if isinstance(of, Lines) and of.name == "explore-measured"]
    facts = json.loads((lab.store.folder / "results.json").read_text())["seeds"]["0"]["full"]
    [curve] = chart.plots[0].curves
    assert (curve.name, curve.dashed) == ("full", True)
    assert [[dot.x, *dot.values] for dot in curve.points] == [
        [a, 100 * height] for a, height in facts["addition"][0]["trace"]
    ]
    assert "where nothing was measured" in chart.caption


def test_the_first_seed_alone_is_kept(lab: Lab) -> None:
    kept = sorted(path.parent.name for path in (lab.store.folder / "outputs").rglob("*.safetensors"))
    assert kept == ["seed0"] * 4


def changed_numbers(path: Path) -> None:
    arrays = load_file(path)
    save_file({**arrays, "pets.numbers": arrays["pets.numbers"] + 1}, path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Path.unlink, "no such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "was changed after a run wrote it"),
        (changed_numbers, "was changed after a run wrote it"),
        (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "leads out of its folder"),
    ],
)
def test_a_damaged_file_leaves_a_sentence(
    lab: Lab, damage: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(lab.store.folder, tmp_path / "run"))
    [path] = (folder / "outputs" / "seed0").glob("tangent-attention-*")
    damage(path)
    blocks = list(Explore(ExploreSettings()).charts(read_run(folder)))
    [missing] = [block for block in blocks if isinstance(block, Missing)]
    assert said in missing.reason
    assert len([block for block in blocks if isinstance(block, Sliders)]) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: {name: array for name, array in arrays.items() if name != "pets.labels"},
        lambda arrays: {**arrays, "pets.labels": arrays["pets.labels"] + 7},
        lambda arrays: {**arrays, "pets.labels": arrays["pets.labels"].astype("int32")},
        lambda arrays: {**arrays, "pets.numbers": arrays["pets.numbers"][:, :2]},
        lambda arrays: {**arrays, "pets.numbers": arrays["pets.numbers"] * np.float32("nan")},
        lambda arrays: {**arrays, "taste.numbers": arrays["taste.numbers"][:, :, :1]},
    ],
)
def test_a_file_of_strangers_is_checked(
    lab: Lab, change: Callable[[Mapping[str, Any]], Mapping[str, Any]], tmp_path: Path
) -> None:
    [stored] = read_run(lab.store.folder).of(Explored, "tangent", 0)
    path = tmp_path / "other.safetensors"
    save_file(
        {
            name: np.ascontiguousarray(of)
            for name, of in change(load_file(lab.store.folder / stored.file)).items()
        },
        path,
    )
    told = {"file": path.name, "digest": xxh3_128_hexdigest(path.read_bytes())}
    with pytest.raises(TaskvecError, match=r"expected|out of range"):
        stored.model_copy(update=told).scores(tmp_path)


def test_fewer_examples_are_kept_where_a_page_has_no_room(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("taskvec.studies.explore.ROOM", 8000)
    trial = Trial(lab, "tangent", 0)
    [cell] = Explore(ExploreSettings()).cells(trial)
    found = Explored.model_validate(cell.compute(trial))
    assert {sample.examples for sample in found.tasks.values()} == {41}
    assert {sample.of for sample in found.tasks.values()} == {48}
    arrays = load_file(lab.store.folder / found.file)
    labels = lab.evaluator.split("pets", "test").labels[arrays["pets.places"]]
    assert arrays["pets.labels"].tolist() == labels.tolist()
    assert len(set(arrays["pets.places"].tolist())) == 41
    point = trial.points.at({"pets": 0.7, "number": -1.2})
    logits, _ = lab.evaluator.logits(point, "pets", "test")
    rows = lab.evaluator.order("pets", "test").argsort()[arrays["pets.places"]]
    expected = logits[rows].argmax(1).numpy()
    assert (found.scores(lab.store.folder)["pets"].predictions([0.7, 0, -1.2]) == expected).all()
    monkeypatch.setattr("taskvec.studies.explore.ROOM", 400)
    [cell] = Explore(ExploreSettings()).cells(trial)
    assert "too many classes" in Explored.model_validate(cell.compute(trial)).left_out["pets"]


def test_heads_of_several_layers_are_left_out() -> None:
    head, _, _ = made(normalize=False, bias=True)
    assert _why_not_behind(head) == ""
    deep = Head(head.weight, None, normalize=False, classes=[*"abcde"], kind="own", before=torch.nn.Tanh())
    assert "several layers" in _why_not_behind(deep)


def test_a_regime_of_ordinary_space_is_refused(tiny_model: Path, tiny_suite: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    text = EXPERIMENT.format(model=tiny_model, suite=tiny_suite)
    path.write_text(text.replace("[tangent, post-hoc, tangent-attention, mine]", "[full]"))
    with pytest.raises(InputError, match=r"explore\.regimes: 'full' is evaluated in ordinary space"):
        load_experiment(path)


def test_one_task_has_sliders_without_addition(tiny_model: Path, tiny_suite: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(
        f"experiment: one\nmodel: {tiny_model}\nsuite: {tiny_suite}\ntasks: [pets]\n"
        "training: {lr: 3e-3, steps: 3, batch_size: 16}\nregimes: {tangent: {}}\n"
    )
    runner = Runner(*load_experiment(path), Store(tmp_path / "run"))
    write_report(runner.run(), tmp_path / "run")
    [block] = [
        of for of in Explore(ExploreSettings()).charts(read_run(tmp_path / "run")) if isinstance(of, Sliders)
    ]
    assert block.start == [1.0] and [label for label, _ in block.marks] == ["α = 0", "α = 1"]
    [data] = block.data()["tasks"]
    single = json.loads((tmp_path / "run" / "results.json").read_text())["seeds"]["0"]["tangent"]["single"]
    assert unpacked(data, 1).accuracy([1.0]) == single["test"]["pets"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Coefficients of tangent" in page and 'class="plane"' not in page


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "a" * 300]
)
def test_names_are_text(name: str) -> None:
    scores = AffineScores(np.ones((2, 3, 1), "float32"), np.array([0, 1]))
    tasks = [
        {"name": f"{name}{own}", "own": own, "zero": 50.0, "alone": 50.0, **packed(scores)}
        for own in range(2)
    ]
    block = Sliders(name, name, [f"{name}0", f"{name}1"], tasks, [(name, [0.0, 0.0])], [0.0, 0.0])
    html = render_page(Page("t", "", "", [Section("explore", name, [block, Missing(name, name)])]))
    assert "<script>alert" not in html and "<img" not in html and ">49" not in html
