"""The page of claims: rendered from its figures, its verdicts from intervals, every figure from a record."""

import json
import re
from pathlib import Path

import pytest

import claims
from claim_figures import Expect, Figure, Quantity, measure
from claim_records import Runs
from taskvec.errors import CorruptFile, InputError
from taskvec.runs.experiment import load_experiment
from taskvec.studies.store import Store

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def asked() -> claims.Claims:
    return claims.load_claims()


@pytest.fixture(scope="module")
def answers() -> claims.Answers:
    return claims.load_answers()


def test_the_page_is_made_of_the_figures(asked: claims.Claims, answers: claims.Answers) -> None:
    assert claims.PAGE.read_text("utf-8") == claims.page(asked, answers), "run scripts/claims.py"


def test_every_claim_is_answered_by_its_own_figures(asked: claims.Claims, answers: claims.Answers) -> None:
    assert list(answers.claims) == list(asked.claims)
    for name, claim in asked.claims.items():
        asks = {quantity.what: quantity.digest for quantity in claim.figures}
        known = {what: figure.asked for what, figure in answers.claims[name].figures.items()}
        assert known.items() <= asks.items(), name


def test_verdicts_follow_from_the_figures(asked: claims.Claims, answers: claims.Answers) -> None:
    for name, claim in asked.claims.items():
        assert answers.claims[name].verdict == claim.verdict(answers.claims[name].figures), name


def test_no_figure_is_without_a_record(answers: claims.Answers) -> None:
    used = {key for of in answers.claims.values() for figure in of.figures.values() for key in figure.records}
    assert used == set(answers.records)
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in used)
    assert all({"run", "cell", "seed", "versions"} <= record.keys() for record in answers.records.values())


def test_every_record_is_of_a_run_that_the_page_names(asked: claims.Claims, answers: claims.Answers) -> None:
    assert {record["run"] for record in answers.records.values()} <= set(asked.benches)
    picks = [pick for claim in asked.claims.values() for figure in claim.figures for pick in figure.picks]
    assert {pick.run for pick in picks} == set(asked.benches)


def test_claims_have_names_and_titles_of_their_own(asked: claims.Claims) -> None:
    titles = [claim.title for claim in asked.claims.values()]
    assert len(titles) == len(set(titles)) >= 25
    assert len(titles) == sum(len(source.claims) for source in asked.sources), "two claims of one name"


def test_a_published_figure_says_how_it_is_known(asked: claims.Claims) -> None:
    for name, claim in asked.claims.items():
        assert claim.tag or "no figure" in (claim.published or "no figure"), name


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.glob("claims*.yaml")), ids=lambda file: file.stem)
def test_the_experiments_of_the_claims_are_valid(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNTRAINED", "elsewhere")
    experiment, _ = load_experiment(file)
    assert experiment.name == file.stem and len(experiment.seeds) >= 3


@pytest.mark.parametrize(
    ("expect", "low", "high", "verdict"),
    [
        (Expect(above=0), 0.1, 0.9, "holds"),
        (Expect(above=0), -0.1, 0.9, "not resolved here"),
        (Expect(above=0), -0.9, -0.1, "does not hold here"),
        (Expect(above=0), 0.0, 0.0, "does not hold here"),
        (Expect(below=1), 0.2, 0.9, "holds"),
        (Expect(below=1), 1.2, 1.9, "does not hold here"),
        (Expect(above=1.9, below=2.1), 1.99, 1.99, "holds"),
        (Expect(above=1.9, below=2.1), 2.05, 2.2, "not resolved here"),
        (Expect(above=1.9, below=2.1), 2.2, 2.3, "does not hold here"),
        (Expect(above=0), None, None, "not resolved here"),
    ],
)
def test_a_verdict_goes_by_where_the_interval_lies(
    expect: Expect, low: float | None, high: float | None, verdict: str
) -> None:
    assert expect.judge(low, high) == verdict


def write_run(folder: Path, seeds: int = 3) -> None:
    """Two regimes of an experiment; ``b`` is 10, 11 and 12 points better."""
    store = Store(folder)
    for seed in range(seeds):
        for regime, absolute in {"a": 0.5, "b": 0.6 + seed / 100}.items():
            inputs = {"regime": regime, "training": {"seed": seed}, "tasks": {"x": 1, "y": 2}}
            inputs |= {"limits": {"test": 400}, "grid": {"step": 0.1}}
            values = {"x": absolute - 0.1, "y": absolute + 0.1}
            edit = {"absolute": absolute, "values": values, "rows": {"first": {"of": [absolute, 1.0]}}}
            store.result("addition", inputs, lambda edit=edit: edit)  # type: ignore[misc]


def quantity(**changes: object) -> Quantity:
    of = {"run": "made", "cell": "addition", "regime": "b", "at": ["absolute"]}
    return Quantity.parse("", {"what": "b less a", "of": of, "less": {"regime": "a"}, **changes})


def measured(folder: Path, asked: Quantity) -> Figure:
    figure = measure(asked, Runs([folder]))
    assert figure
    return figure


def test_seeds_are_paired_and_give_the_interval(tmp_path: Path) -> None:
    write_run(tmp_path / "made")
    figure = measured(tmp_path / "made", quantity())
    assert figure.values == pytest.approx({"0": 0.10, "1": 0.11, "2": 0.12})
    half = 4.30265 * 0.01 / 3**0.5  # t of two degrees of freedom
    assert figure.low == pytest.approx(0.11 - half, abs=1e-6)
    assert figure.high == pytest.approx(0.11 + half, abs=1e-6)
    assert figure.by == "seeds" and len(figure.records) == 6


def test_one_seed_has_the_interval_of_its_examples(tmp_path: Path) -> None:
    write_run(tmp_path / "made", seeds=1)
    figure = measured(tmp_path / "made", quantity())
    of_a, of_b = (0.4 * 0.6 + 0.6 * 0.4) / 400 / 4, (0.5 * 0.5 + 0.7 * 0.3) / 400 / 4
    assert figure.by == "examples" and figure.high == pytest.approx(0.1 + 1.96 * (of_a + of_b) ** 0.5)


def test_one_seed_without_examples_has_none(tmp_path: Path) -> None:
    write_run(tmp_path / "made", seeds=1)
    figure = measured(
        tmp_path / "made", quantity(of={**quantity().of[0].model_dump(), "at": ["values", "*"]})
    )
    assert (figure.low, figure.high, figure.by) == (None, None, "nothing")


def test_a_ratio_and_a_path_of_places(tmp_path: Path) -> None:
    write_run(tmp_path / "made", seeds=1)
    of = {"run": "made", "cell": "addition", "regime": "b", "at": ["rows", 0, "o*"], "reduce": "count"}
    figure = measured(tmp_path / "made", quantity(of=of, less=[], over={"reduce": "last"}, exact=True))
    assert (figure.mean, figure.by) == (2.0, "exact")


def test_a_later_search_of_the_same_thing_takes_the_place_of_an_earlier(tmp_path: Path) -> None:
    write_run(tmp_path / "made", seeds=1)
    inputs = {"regime": "b", "training": {"seed": 0}, "tasks": {"x": 1, "y": 2}, "limits": {"test": 400}}
    edit = {"absolute": 0.9, "values": {"x": 0.9, "y": 0.9}}
    Store(tmp_path / "made").result("addition", {**inputs, "grid": {"step": 0.05}}, lambda: edit)
    assert measured(tmp_path / "made", quantity()).mean == pytest.approx(0.4)


def test_what_no_run_tells_is_not_measured(tmp_path: Path) -> None:
    write_run(tmp_path / "made")
    runs = Runs([tmp_path / "made"])
    assert measure(quantity(less={"regime": "c"}), runs) is None
    assert measure(quantity(of={**quantity().of[0].model_dump(), "at": ["nowhere"]}), runs) is None


def test_an_analysis_is_a_run_by_its_folder(tmp_path: Path) -> None:
    for seed in range(2):
        folder = tmp_path / f"kernel-{seed}"
        folder.mkdir()
        (folder / "record.json").write_text(json.dumps({"analysis": "ntk", "auroc": 0.9 + seed / 100}))
    of = {"run": "kernel", "cell": "ntk", "at": ["auroc"]}
    figure = measure(quantity(of=of, less=[]), Runs(sorted(tmp_path.iterdir())))
    assert figure and figure.values == {"0": 0.9, "1": 0.91}
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in figure.records)


def test_a_record_whose_inputs_were_changed_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "made")
    path = tmp_path / "made" / "records.jsonl"
    path.write_text(path.read_text().replace('"step": 0.1', '"step": 0.2'))
    with pytest.raises(CorruptFile, match="has other inputs than its key"):
        Runs([tmp_path / "made"])
    with pytest.raises(InputError, match="holds no run"):
        Runs([tmp_path])


def test_a_run_says_its_name_and_its_cells(tmp_path: Path) -> None:
    write_run(tmp_path / "elsewhere", seeds=2)
    keys = {found.key: found.seed for found in Runs([tmp_path / "elsewhere"]).of("elsewhere", "addition")}
    own = [key for key, seed in keys.items() if seed == 1]
    manifest = {"experiment": {"experiment": "made"}, "cells": [{"kind": "addition", "cells": [*own, {}]}]}
    (tmp_path / "elsewhere" / "run.json").write_text(json.dumps(manifest))
    figure = measured(tmp_path / "elsewhere", quantity())
    assert set(figure.values) == {"1"} and set(figure.records) == set(own)


def with_one(asked: claims.Claims, claim: claims.Claim) -> claims.Claims:
    return claims.Claims([asked.sources[0].model_copy(update={"claims": {"mine": claim}})], asked.benches)


def test_figures_of_runs_that_are_not_given_stay(tmp_path: Path, asked: claims.Claims) -> None:
    one = next(claim for claim in asked.claims.values() if not claim.untestable)
    figures = (quantity().model_copy(update={"expect": Expect(above=0)}),)
    mine = with_one(asked, one.model_copy(update={"figures": figures}))
    write_run(tmp_path / "made")
    first = claims.answer(mine, Runs([tmp_path / "made"]), claims.Answers())
    assert first.claims["mine"].verdict == "holds"
    assert claims.answer(mine, Runs([]), first) == first
    changed = (figures[0].model_copy(update={"exact": True}),)
    other = with_one(asked, one.model_copy(update={"figures": changed}))
    assert claims.answer(other, Runs([]), first).claims["mine"].verdict == "not measured"
