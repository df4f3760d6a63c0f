"""``taskvec analyze`` through the command: files written, records whole, errors in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import taskvec as tv
from taskvec.cli import main
from taskvec.studies import ANALYSES

FILES = {"record.json", "table.md", "figure.png"}


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["analyze", *map(str, arguments), "--quiet"])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture(scope="module")
def vectors(evaluator: tv.Evaluator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random vectors in files like ``full-pets.safetensors``, of three tasks and two regimes."""
    folder, draw = tmp_path_factory.mktemp("vectors"), torch.Generator().manual_seed(0)
    for regime, space in (("full", "ordinary"), ("tangent", "tangent")):
        for task in evaluator.tasks:
            deltas = {
                name: 0.05 * torch.randn(p.shape, generator=draw) for name, p in evaluator.pretrained.items()
            }
            made = tv.TaskVector.from_tensors(
                deltas, base=evaluator.backbone.ref, task=task, regime=regime, space=space
            )
            made.save(folder / f"{regime}-{task}.safetensors")
    return folder


@pytest.fixture
def model(tiny_model: Path, tiny_suite: Path) -> list[object]:
    return ["-m", tiny_model, "-s", tiny_suite]


def files(vectors: Path, *patterns: str) -> list[Path]:
    return [path for pattern in patterns for path in sorted(vectors.glob(f"{pattern}.safetensors"))]


def record_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "record.json").read_text())
    return found


def test_one_pair_becomes_maps_side_by_side(
    vectors: Path, model: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "heat"
    options = [*model, "-o", out, "--grid", -1, 1, 3, "--samples", 8, "--post-hoc"]
    assert command("disentanglement", *files(vectors, "*-pets", "*-taste"), *options) == 0
    assert {path.name for path in out.iterdir()} == FILES
    record = record_in(out)
    assert record["panels"] == {
        "full": {"regime": "full", "space": "ordinary"},
        "full, post hoc": {"regime": "full", "space": "tangent"},
        "tangent": {"regime": "tangent", "space": "tangent"},
    }
    assert record["examples"] == {"pets": 8, "taste": 8}
    assert record["grid"] == [-1.0, 0.0, 1.0]
    assert record["vectors"]["full"]["pets"].endswith("full-pets.safetensors")
    [pair] = record["pairs"]
    assert all(panel["maps"]["prediction"][1][1] == 0 for panel in pair["panels"].values())
    shown = capsys.readouterr().out
    assert "pets + taste, full, post hoc" in shown
    assert "pets + taste, full, post hoc" in (out / "table.md").read_text()


def test_a_suite_becomes_a_matrix_and_a_figure_for_every_pair(
    vectors: Path, model: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "suite"
    options = [*model, "-o", out, "--grid", 0, 1, 2, "--samples", 8, "--json"]
    assert command("disentanglement", *files(vectors, "full-*"), *options) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == record_in(out)
    assert [pair["tasks"] for pair in printed["pairs"]] == [
        ["number", "pets"],
        ["number", "taste"],
        ["pets", "taste"],
    ]
    assert {path.name for path in (out / "figures").iterdir()} == {
        "number-pets.png",
        "number-taste.png",
        "pets-taste.png",
    }


def test_pairs_chosen_are_the_only_ones_measured(vectors: Path, model: list[object], tmp_path: Path) -> None:
    out = tmp_path / "pair"
    chosen = ["--pair", "taste", "number", "--pair", "pets", "taste"]
    options = [*model, "-o", out, "--grid", 0, 1, 2, "--samples", 4, *chosen]
    assert command("disentanglement", *files(vectors, "full-*"), *options) == 0
    record = record_in(out)
    assert [pair["tasks"] for pair in record["pairs"]] == [["taste", "number"], ["pets", "taste"]]
    assert record["suite"] == "tiny"
    assert "torch" in record["versions"]


def test_a_pair_needs_no_vectors_of_other_tasks(vectors: Path, model: list[object], tmp_path: Path) -> None:
    out, given = tmp_path / "pair", files(vectors, "*-pets", "*-taste", "full-number")
    options = [*model, "-o", out, "--grid", 0, 1, 2, "--samples", 4, "--pair", "pets", "taste"]
    assert command("disentanglement", *given, *options) == 0
    assert record_in(out)["tasks"] == ["pets", "taste"]


def test_linearity_compares_both_spaces_and_both_ways_to_train(
    vectors: Path, model: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "kernel"
    options = [*model, "-o", out, "--samples", 8, "--coefficients", 0.1, 0.5]
    assert command("linearity", *files(vectors, "*-pets", "*-taste"), *options) == 0
    assert {path.name for path in out.iterdir()} == FILES
    record = record_in(out)
    assert record["coefficients"] == [0.1, 0.5, 1.0]
    assert record["regimes"]["tangent"]["space"] == "tangent"
    gaps = record["regimes"]["full"]["tasks"]["pets"]["gap"]
    assert 0 < gaps[0] < gaps[1] < gaps[2]
    assert "full over tangent" in capsys.readouterr().out


def test_similarity_needs_no_model(vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "angles"
    assert command("similarity", *files(vectors, "*-pets", "full-taste"), "-o", out) == 0
    assert {path.name for path in out.iterdir()} == FILES
    record = record_in(out)
    assert record["vectors"] == ["pets (full)", "pets (tangent)", "taste (full)"]
    assert record["conflict"][0][1] == pytest.approx(0.5, abs=0.05)
    assert "orthogonal vectors of equal length" in capsys.readouterr().out


def test_similarity_labels_vectors_by_path_where_nothing_else_tells_them_apart(
    vectors: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((vectors / "full-pets.safetensors").read_bytes())
    out = tmp_path / "angles"
    assert command("similarity", vectors / "full-pets.safetensors", copy, "-o", out, "--no-ranks") == 0
    record = record_in(out)
    assert record["vectors"] == [str(vectors / "full-pets.safetensors"), str(copy)]
    assert record["cosine"][0][1] == pytest.approx(1)


def test_gradients_draw_both_orders(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "order"
    options = ["-s", tiny_suite, "-t", "pets", "taste", "-o", out, "--samples", 4]
    rates = ["--rates", 4e-5, 2e-5, "--steps", 1, 3]
    assert command("gradients", tiny_model, *options, *rates) == 0
    assert {path.name for path in out.iterdir()} == FILES
    steps = record_in(out)["steps"]
    assert steps["1"]["exact"]
    assert steps["3"]["slopes"]["second"] > steps["3"]["slopes"]["first"] + 0.7
    assert "Hessian" in capsys.readouterr().out


def test_an_analysis_is_replaced_only_when_asked_and_nothing_else_ever(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, given = tmp_path / "angles", files(vectors, "full-*")
    assert command("similarity", *given, "-o", out, "--no-ranks") == 0
    before = (out / "record.json").read_text()
    capsys.readouterr()
    assert command("similarity", *given[:2], "-o", out, "--no-ranks") == 2
    assert "--force" in capsys.readouterr().err
    assert (out / "record.json").read_text() == before
    assert command("similarity", *given[:2], "-o", out, "--no-ranks", "--force") == 0
    assert (out / "record.json").read_text() != before

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    assert command("similarity", *given, "-o", mine, "--force") == 2
    assert "holds no analysis" in capsys.readouterr().err
    assert (mine / "notes.txt").read_text() == "keep"


def test_vectors_of_no_single_task_are_left_out_in_one_line(
    vectors: Path,
    evaluator: tv.Evaluator,
    model: list[object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    deltas = {name: torch.ones_like(p) for name, p in evaluator.pretrained.items()}
    joint, merged = tmp_path / "joint.safetensors", tmp_path / "atm.safetensors"
    for path, task, regime in ((joint, "pets+taste", "full"), (merged, "pets", "full (atm)")):
        vector = tv.TaskVector.from_tensors(deltas, base=evaluator.backbone.ref, task=task, regime=regime)
        vector.save(path)
    options = [*model, "-o", tmp_path / "out", "--grid", 0, 1, 2, "--samples", 4]
    assert (
        command("disentanglement", *files(vectors, "full-pets", "full-taste"), joint, merged, *options) == 0
    )
    told = capsys.readouterr().err
    assert told == f"left out, not a plain vector of one task: {joint}, {merged}\n"
    assert list(record_in(tmp_path / "out")["panels"]) == ["full"]


@pytest.mark.parametrize(
    ("patterns", "more", "complaint"),
    [
        (["full-pets"], [], "two or more tasks"),
        (["full-pets", "full-taste", "tangent-pets"], [], "regime 'tangent' has no vector of 'taste'"),
        (["full-*"], ["--pair", "pets", "text"], "no vector of 'text' is given, only of number, pets, taste"),
        (["full-*"], ["--pair", "pets", "pets"], "'pets' twice"),
        (["full-*"], ["--pair", "pets", "taste", "--pair", "taste", "pets"], "taste pets given twice"),
        (["full-*"], ["--grid", 1, 1, 5], "START < STOP"),
        (["full-*"], ["--grid", 0, 1, 2.5], "0 to 1 in 2.5 points, expected START < STOP and a whole number"),
        (["full-*"], ["--grid", 0, "inf", 3], "0 to inf in 3 points"),
        (["full-*"], ["--samples", 0], "--samples"),
    ],
    ids=[
        "one vector",
        "a regime without",
        "unknown pair",
        "same twice",
        "pair twice",
        "no grid",
        "half a point",
        "no end",
        "no samples",
    ],
)
def test_a_request_that_makes_no_sense_is_one_line_and_writes_nothing(
    vectors: Path,
    model: list[object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    patterns: list[str],
    more: list[object],
    complaint: str,
) -> None:
    out = tmp_path / "out"
    assert command("disentanglement", *files(vectors, *patterns), *model, "-o", out, *more) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert complaint in error
    assert not out.exists()


@pytest.mark.parametrize("coefficient", ["nan", "inf", "0", "-1"])
def test_linearity_is_measured_at_positive_numbers(
    vectors: Path, model: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], coefficient: str
) -> None:
    options = [*model, "-o", tmp_path / "out", "--coefficients", coefficient]
    assert command("linearity", *files(vectors, "full-pets"), *options) == 2
    assert "expected one task or more, and finite, positive" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_vector_with_nan_is_named(
    vectors: Path,
    model: list[object],
    evaluator: tv.Evaluator,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (good,) = files(vectors, "full-pets")
    with safe_open(good, "pt") as file:
        metadata = file.metadata()
    deltas, bad = load_file(good), tmp_path / "bad.safetensors"
    name = next(name for name in deltas if name in evaluator.pretrained)
    save_file({**deltas, name: torch.full_like(deltas[name], float("nan"))}, bad, metadata=metadata)
    given, out = [bad, *files(vectors, "full-taste")], tmp_path / "out"
    for what, options in (("similarity", []), ("linearity", model), ("disentanglement", model)):
        assert command(what, *given, *options, "-o", out) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert repr(name) in line
        assert "holds NaN or infinity" in line
    assert not out.exists()


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert command("similarity", *files(vectors, "full-*"), "-o", tmp_path / "file" / "out") == 2
    assert "is a file, expected a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_two_vectors_of_the_same_task_and_regime_are_named(
    vectors: Path, model: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "again.safetensors"
    copy.write_bytes((vectors / "full-pets.safetensors").read_bytes())
    given = files(vectors, "full-pets", "full-taste")
    assert command("linearity", *given, copy, *model, "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert str(given[0]) in error
    assert str(copy) in error


@pytest.mark.parametrize("name", list(ANALYSES))
def test_help_holds_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["analyze", name, "--help"])
    assert f"taskvec analyze {name} " in capsys.readouterr().out.split("Example", 1)[1]


def test_the_list_says_what_each_analysis_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["analyze", "--help"])
    shown = capsys.readouterr().out
    for name, analysis in ANALYSES.items():
        assert f"{name} " in shown
        assert (analysis.__doc__ or "").split()[0] in shown
