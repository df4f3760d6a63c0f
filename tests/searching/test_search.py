"""Laws of searching: never below the start, the same seed the same trace, going on is as if never stopped."""

import json
import shutil
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import taskvec as tv
from searching.bowls import bowl
from taskvec.edits.merge import Merge
from taskvec.errors import DiskFull, InputError, OutputExists, TaskvecError
from taskvec.searching.loop import Found
from taskvec.searching.objective import Figures, Keep, Portion
from taskvec.searching.report import tables_of
from taskvec.searching.space import Varied

METHODS = ("grid", "random", "cmaes")
BOTH = {"weights.a": (0.0, 1.5), "weights.b": (-1.0, 1.0)}


def needs(method: str) -> None:
    if method == "cmaes":
        pytest.importorskip("cmaes")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def trace(found: Found) -> list[tuple[Mapping[str, object], float]]:
    return [(evaluation.values, evaluation.worth.objective) for evaluation in found.evaluations]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("centre", [(0.5, 0.5), (1.1, -0.4), (2.5, 2.0)])
def test_what_is_found_is_never_below_the_start(
    recipe: Path, method: Any, centre: tuple[float, float]
) -> None:
    needs(method)
    judge = bowl(recipe.parent, *centre)
    found = tv.search(recipe, BOTH, judge, method=method, evaluations=26)
    assert found.start.values == {"weights.a": 0.5, "weights.b": 0.5}
    assert found.best.worth >= found.start.worth and len(found.evaluations) <= 26
    if centre == (0.5, 0.5):
        assert found.best.number == 0


@pytest.mark.parametrize("method", ["random", "cmaes"])
def test_the_same_seed_gives_the_same_trace(recipe: Path, method: Any) -> None:
    needs(method)
    judge = bowl(recipe.parent, 0.9, -0.3)
    first, again, other = (
        tv.search(recipe, BOTH, judge, method=method, evaluations=20, seed=seed) for seed in (3, 3, 4)
    )
    assert trace(first) == trace(again) != trace(other)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kept", [1, 4, 11])
def test_going_on_gives_what_an_uninterrupted_search_gives(
    recipe: Path, tmp_path: Path, method: Any, kept: int
) -> None:
    needs(method)
    judge = bowl(recipe.parent, 0.9, -0.3)
    whole = tv.search(recipe, BOTH, judge, method=method, evaluations=20, folder=tmp_path / "whole")
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    text = (cut / "evaluations.jsonl").read_bytes().splitlines(keepends=True)
    (cut / "evaluations.jsonl").write_bytes(b"".join(text[:kept]) + text[kept][:9])
    measured: list[float] = []

    def counting(weights: Mapping[str, Tensor]) -> dict[str, float]:
        measured.append(1)
        return judge(weights)

    counting.__qualname__ = judge.__qualname__
    resumed = tv.search(recipe, BOTH, counting, method=method, evaluations=20, folder=cut)
    assert trace(resumed) == trace(whole) and len(measured) == len(whole.evaluations) - kept
    assert (cut / "best.yaml").read_text() == (tmp_path / "whole" / "best.yaml").read_text()


def test_a_larger_budget_goes_on(recipe: Path, tmp_path: Path) -> None:
    judge = bowl(recipe.parent, 0.9, -0.3)
    short = tv.search(recipe, BOTH, judge, method="random", evaluations=5, folder=tmp_path / "run")
    long = tv.search(recipe, BOTH, judge, method="random", evaluations=9, folder=tmp_path / "run")
    assert trace(long)[:5] == trace(short) and len(long.evaluations) == 9
    shorter = tv.search(recipe, BOTH, judge, method="random", evaluations=3, folder=tmp_path / "run")
    assert trace(shorter) == trace(short)[:3]


def test_one_number_comes_within_a_hundredth_of_the_best(recipe: Path) -> None:
    needs("cmaes")
    found = tv.search(recipe, {"weights.a": (0.0, 1.5)}, bowl(recipe.parent, 0.83, 0.5), evaluations=60)
    assert found.values["weights.a"] == pytest.approx(0.83, abs=1e-2)


def test_evolution_ends_when_candidates_are_alike(recipe: Path) -> None:
    needs("cmaes")
    found = tv.search(recipe, BOTH, bowl(recipe.parent, 0.9, -0.3), evaluations=2000)
    assert len(found.evaluations) < 400 and "closer" in found.ended
    assert list(found.values.values()) == pytest.approx([0.9, -0.3], abs=2e-3)


def test_a_grid_covers_its_points(recipe: Path) -> None:
    found = tv.search(recipe, BOTH, bowl(recipe.parent, 0, 0), method="grid", points=3, evaluations=10)
    tried = {tuple(evaluation.values.values()) for evaluation in found.evaluations[1:]}
    assert tried == set(product((0.0, 0.75, 1.5), (-1.0, 0.0, 1.0)))
    assert found.ended.startswith("every point")


def test_a_grid_larger_than_the_budget_is_refused(recipe: Path) -> None:
    with pytest.raises(InputError, match=r"--evaluations 9: fewer than the 9 points of the grid"):
        tv.search(recipe, BOTH, bowl(recipe.parent, 0, 0), method="grid", points=3, evaluations=9)


@pytest.mark.parametrize("method", METHODS)
def test_whole_numbers_stay_whole(recipe: Path, method: Any) -> None:
    needs(method)
    vary = {"weights.a": Varied(search=(0, 1.5)), "scale": Varied(search=(-3, 3), integer=True)}
    found = tv.search(recipe, vary, bowl(recipe.parent, 1.0, 1.0), method=method, evaluations=40)
    scales = {evaluation.values["scale"] for evaluation in found.evaluations}
    assert all(isinstance(scale, int) and -3 <= scale <= 3 for scale in scales) and len(scales) > 3
    if method == "cmaes":
        assert found.values["scale"] == 2


@pytest.mark.parametrize("method", ["random", "cmaes"])
def test_a_candidate_that_comes_again_is_not_measured_again(recipe: Path, method: Any) -> None:
    needs(method)
    vary = ["scale=0..2:integer"]
    found = tv.search(recipe, vary, bowl(recipe.parent, 1.0, 1.0), method=method, evaluations=50)
    assert len(found.evaluations) == 3 and found.values == {"scale": 2}


def test_above_forty_numbers_a_variance_is_learned_for_each(recipe: Path) -> None:
    needs("cmaes")
    gradient = {"gradient": [{"search": [0, 2], "start": 1.0}] * 45}
    content = {
        "base": str(recipe.parent / "base"),
        "vectors": {name: str(recipe.parent / f"{name}.safetensors") for name in "ab"},
        "expression": "0.5*a + 0.5*b",
        "scale": gradient,
    }
    found = tv.search(content, (), bowl(recipe.parent, 0.7, 0.7), evaluations=60)
    assert found.best.worth > found.start.worth and len(found.values) == 45


def test_the_best_recipe_is_one_that_merges_wherever_it_lies(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere" / "run"
    judge = bowl(recipe.parent, 0.9, -0.3)
    found = tv.search(recipe, BOTH, judge, method="random", evaluations=12, folder=folder)
    merge = tv.open_recipe(folder / "best.yaml")
    assert judge(merge.weights) == found.best.figures


class Halves:
    """A score with two parts, in each of which the bowl stands elsewhere; some candidates fail."""

    parts = True
    key: Mapping[str, object] = {"halves": 1}

    def __init__(self, folder: Path, problem: TaskvecError | None = None, value: float | None = None) -> None:
        self._parts = {"search": bowl(folder, 1.2, 0.5), "holdout": bowl(folder, 1.0, 0.4)}
        self._problem, self._value, self.calls = problem, value, 0

    def lower_is_better(self, figure: str) -> bool:
        return figure == "size"

    def evaluate(self, merge: Merge, part: Portion, scratch: Path) -> Figures:
        assert not list(scratch.iterdir())
        (scratch / "left").write_text("behind")
        self.calls += 1
        if self.calls > 1 and self.calls % 3 == 0:
            if self._problem is not None:
                raise self._problem
            if self._value is not None:
                return {"fit": self._value, "size": 0.0}
        size = sum(float(merge.weights[name].abs().sum()) for name in merge.weights)
        return {**self._parts[part](merge.weights), "size": size}


def test_the_gain_is_also_measured_where_the_search_did_not_look(recipe: Path, tmp_path: Path) -> None:
    found = tv.search(
        recipe, BOTH, Halves(recipe.parent), method="random", evaluations=20, folder=tmp_path / "run"
    )
    assert found.holdout is not None and found.gain_on_holdout is not None
    assert found.holdout[1].values == found.best.values and found.gain > 0
    parts = [line["part"] for line in lines(tmp_path / "run")]
    assert parts == ["search", "holdout", *["search"] * 19, "holdout"]
    assert not (tmp_path / "run" / "scratch").exists()


@pytest.mark.parametrize(
    "trouble", [{"problem": TaskvecError("the command ended with 3")}, {"value": float("nan")}]
)
def test_a_candidate_that_cannot_be_measured_is_the_worst(
    recipe: Path, tmp_path: Path, trouble: dict[str, Any]
) -> None:
    score = Halves(recipe.parent, **trouble)
    score.parts = False
    run = tmp_path / "run"
    found = tv.search(recipe, BOTH, score, method="random", evaluations=9, folder=run)
    failed = [evaluation for evaluation in found.evaluations if evaluation.problem]
    assert len(failed) == 3 and found.best not in failed and len(found.remarks()) == 1
    assert [bool(line.get("problem")) for line in lines(run)] == [bool(e.problem) for e in found.evaluations]
    again = tv.search(recipe, BOTH, Halves(recipe.parent), method="random", evaluations=9, folder=run)
    assert again.best == found.best or again.best.values == found.best.values


def test_a_full_disk_is_no_fault_of_a_candidate(recipe: Path) -> None:
    with pytest.raises(DiskFull):
        tv.search(recipe, BOTH, Halves(recipe.parent, DiskFull("full")), method="random", evaluations=9)


def test_a_start_that_cannot_be_measured_ends_the_search(recipe: Path, tmp_path: Path) -> None:
    def broken(weights: Mapping[str, Tensor]) -> dict[str, float]:
        return {"fit": float("inf")}

    with pytest.raises(TaskvecError, match=r"the recipe's own numbers: fit is inf") as failed:
        tv.search(recipe, BOTH, broken, method="random", folder=tmp_path / "run")
    assert failed.value.exit_code == 1 and lines_of(tmp_path / "run") == 0


def lines_of(folder: Path) -> int:
    path = folder / "evaluations.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_floors_hold_what_is_found(recipe: Path) -> None:
    keep = [Keep("size", "<", 1.0, relative=True)]
    free, kept = (
        tv.search(recipe, BOTH, Halves(recipe.parent), method="random", evaluations=40, keep=held)
        for held in ([], keep)
    )
    assert kept.best.figures["size"] <= kept.start.figures["size"] and kept.best.worth.kept == 0
    assert any(evaluation.worth.kept < 0 for evaluation in kept.evaluations)
    assert [e.values for e in free.evaluations] == [e.values for e in kept.evaluations]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"vary": {**BOTH, "weights.a": (0.0, 1.4)}}, r"vary.0.high: 1.5 there, 1.4 now"),
        ({"seed": 1}, r"seed: 0 there, 1 now"),
        ({"method": "grid"}, r'method: "random" there, "grid" now'),
        ({"keep": [Keep("fit", ">", -1.0)]}, r"objective.keep"),
    ],
)
def test_the_folder_of_another_search_is_refused(
    recipe: Path, tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    judge = bowl(recipe.parent, 0.9, -0.3)
    given: dict[str, Any] = {"vary": BOTH, "method": "random", "evaluations": 5, "folder": tmp_path / "run"}
    tv.search(recipe, score=judge, **given)
    before = (tmp_path / "run" / "evaluations.jsonl").read_bytes()
    with pytest.raises(InputError, match=complaint):
        tv.search(recipe, score=judge, **{**given, **change})
    assert (tmp_path / "run" / "evaluations.jsonl").read_bytes() == before
    found = tv.search(recipe, score=judge, **{**given, **change}, force=True)
    assert found.best.worth >= found.start.worth


def test_other_vectors_under_the_same_names_are_another_search(recipe: Path, tmp_path: Path) -> None:
    shutil.copytree(recipe.parent, tmp_path / "world")
    here = tmp_path / "world" / "recipe.yaml"
    judge = bowl(recipe.parent, 0.9, -0.3)
    tv.search(here, BOTH, judge, method="random", evaluations=4, folder=tmp_path / "run")
    vector = 2 * tv.TaskVector.load(here.parent / "b.safetensors")
    vector.save(here.parent / "a.safetensors", force=True)
    with pytest.raises(InputError, match=r"inputs.a"):
        tv.search(here, BOTH, judge, method="random", evaluations=4, folder=tmp_path / "run")


def test_a_folder_of_something_else_is_left_alone(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputExists, match=r"holds no search"):
        tv.search(recipe, BOTH, bowl(recipe.parent, 0, 0), method="random", folder=tmp_path, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("vary", "complaint"),
    [
        (["parameters.keep=0..1"], r"parameters.keep: cannot be 0.0 \(.*keep.*\); vary it less"),
        (["rule=ties|slerpp"], r"rule: cannot be slerpp \(.*did you mean 'slerp'\?\)"),
    ],
)
def test_a_range_that_no_recipe_can_have_is_refused_first(
    recipe: Path, vary: list[str], complaint: str
) -> None:
    ruled = recipe.parent / "ruled.yaml"
    ruled.write_text(recipe.read_text().replace("expression: 0.5*a + 0.5*b", "rule: ties"))
    with pytest.raises(InputError, match=complaint):
        tv.search(ruled, vary, bowl(recipe.parent, 0, 0), method="random")


def test_fractions_of_what_is_counted_are_refused_with_what_to_say(recipe: Path) -> None:
    content = {
        "base": str(recipe.parent / "base"),
        "vectors": {name: str(recipe.parent / f"{name}.safetensors") for name in "ab"},
        "rule": "dare",
        "parameters": {"density": 0.5, "seed": 1},
    }
    judge = bowl(recipe.parent, 0.5, 0.5)
    with pytest.raises(InputError, match=r"^parameters.seed: cannot be 3.*; say 0\.\.9:integer$"):
        tv.search(content, ["parameters.seed=0..9"], judge, method="random")
    needs("cmaes")
    vary = ["parameters.seed=0..4294967295:integer", "scale=0..2"]
    found = tv.search(content, vary, judge, evaluations=20)  # in as little memory as any
    assert all(isinstance(each.values["parameters.seed"], int) for each in found.evaluations)
    assert len(found.evaluations) == 20


def test_what_is_maximized_and_floors_that_are_broken_are_said(recipe: Path) -> None:
    def judge(weights: Mapping[str, Tensor]) -> dict[str, float]:
        return {"ppl": float(weights["layers.0.w"].abs().sum())}

    vary = {"weights.a": (0.0, 1.5)}
    found = tv.search(recipe, vary, judge, keep=["ppl<1e-9"], method="grid", points=3, evaluations=9)
    assert found.maximized == {"ppl": -1.0}
    assert found.best.figures["ppl"] == min(each.figures["ppl"] for each in found.evaluations)
    words = tables_of(found)[1].note
    assert "more is better, is -ppl." in words and "No candidate keeps every floor" in words


def test_starting_anew_does_not_remove_the_recipe_itself(recipe: Path, tmp_path: Path) -> None:
    judge = bowl(recipe.parent, 0.9, 0.9)
    tv.search(recipe, ["scale=0..2"], judge, method="random", evaluations=3, folder=tmp_path / "run")
    best = tmp_path / "run" / "best.yaml"
    again = {"method": "random", "evaluations": 3, "folder": tmp_path / "run", "force": True}
    with pytest.raises(InputError, match=r"best.yaml: --force removes it.*; copy it elsewhere$"):
        tv.search(best, ["scale=0..2"], judge, **again)  # type: ignore[arg-type]
    copy = best.rename(tmp_path / "copy.yaml")
    assert len(tv.search(copy, ["scale=0..2"], judge, **again).evaluations) == 3  # type: ignore[arg-type]


def test_a_recipe_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^\S+missing.yaml: no such file$"):
        tv.search(tmp_path / "missing.yaml", ["scale=0..2"], lambda weights: 1.0, method="random")
    with pytest.raises(InputError, match=f"^{tmp_path}: is a folder, expected a file$"):
        tv.search(tmp_path, ["scale=0..2"], lambda weights: 1.0, method="random")
