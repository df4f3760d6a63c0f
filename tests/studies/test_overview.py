"""All models of a run in one table and one sentence, from records that somebody wrote down."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from torch import tensor

from taskvec.errors import CorruptFile
from taskvec.reports.page import render_page
from taskvec.runs.experiment import active, model_of_experiments
from taskvec.runs.report import facts_of, page_of
from taskvec.studies.comparing import entries_of
from taskvec.studies.entry import Entry
from taskvec.studies.hits import pack_hits, unpack_hits, without_hits
from taskvec.studies.numerics.paired import holm
from taskvec.studies.overview import Overview
from taskvec.studies.study import Results
from taskvec.studies.trial import Plan
from taskvec.tasks.suite import Suite

EXAMPLES = 80
Values = Mapping[str, float]


def pack(share: float, seed: int = 0, n: int = EXAMPLES) -> str:
    """So many right ones, the first of a fixed order."""
    right = np.zeros(n, np.int64)
    right[np.random.default_rng(seed).permutation(n)[: round(share * n)]] = 1
    return pack_hits({"logits": tensor(np.stack([1 - right, right], 1)), "labels": tensor([1] * n)})


def edit(values: Values, single: Values, *, hits: bool = True, **more: object) -> dict[str, Any]:
    figures = {
        "absolute": float(np.mean(list(values.values()))),
        "normalized": float(np.mean([values[task] / single[task] for task in values])),
        "values": dict(values),
        **more,
    }
    return {**figures, **({"hits": {task: pack(value) for task, value in values.items()}} if hits else {})}


def searched(alpha: float) -> dict[str, Any]:
    known = {"remark": "", "at_grid_limit": False, "plateau": None, "measured": 5, "points": 9}
    return {"coefficient": alpha, **known}


def results_of(
    tasks: Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    regimes: Sequence[str] = ("full",),
    metric: str = "accuracy",
    **blocks: Any,
) -> Results:
    """An experiment without any cell."""
    classes: dict[str, Any] = {"classes": ["no", "yes"], "templates": ["{}"]}
    about = {**({"kind": "language"} if metric == "perplexity" else classes), "metric": metric}
    places = {
        task: {"name": task, "data": {"source": "jsonl", "path": f"{task}.jsonl"}, **about} for task in tasks
    }
    suite = Suite.parse("suite", {"suite": "made up", "tasks": places})
    experiment = model_of_experiments().parse(
        "file",
        {"experiment": "made", "model": "some/model", "suite": "made up", "seeds": list(seeds),
         "regimes": {regime: {} for regime in regimes}, **blocks},
    )  # fmt: skip
    plan = Plan(experiment, suite, "0" * 32, dict.fromkeys(tasks, "0"), list(tasks))
    return Results(plan, active(experiment))


def filled(
    tasks: Sequence[str] = ("a", "b"),
    *,
    seeds: Sequence[int] = (0,),
    regimes: Sequence[str] = ("full",),
    hits: bool = True,
    added: float = 0.75,
    methods: Sequence[Mapping[str, Any]] = (),
) -> Results:
    """Addition and some methods: single-task models are right in nine of ten cases, the zero-shot in half."""
    blocks: dict[str, Any] = {"addition": {"subsets": "whole"}} if len(tasks) > 1 else {}
    results = results_of(tasks, seeds=seeds, regimes=regimes, **blocks)
    single = dict.fromkeys(tasks, 0.9)
    for _ in tasks:
        score = {"metric": "accuracy", "value": 0.5, "examples": EXAMPLES}
        results.add("zero_shot", {"test": score, **({"hits": pack(0.5)} if hits else {})})
    for place, regime in enumerate(regimes):
        for seed in seeds:
            own = {"hits": {task: pack(0.9, seed) for task in tasks}} if hits else {}
            results.add("single", {"validation": single, "test": single, **own}, regime, seed)
            geometry = {"norms": dict.fromkeys(tasks, 1.0), "cosine": np.eye(len(tasks)).tolist()}
            results.add("geometry", geometry, regime, seed)
            if len(tasks) > 1:
                best = dict.fromkeys(tasks, added + 0.05 * place)
                one = dict.fromkeys(tasks, 0.6)
                test = {"metric": "accuracy", "value": best[tasks[0]], "examples": EXAMPLES}
                fixed = {"1": edit(one, single, hits=hits), "1/T": edit(one, single, hits=hits)}
                sums = {"tasks": list(tasks), "test": dict.fromkeys(tasks, test), "fixed": fixed}
                results.add(
                    "addition", {**edit(best, single, hits=hits), **searched(0.4), **sums}, regime, seed
                )
            for method in methods:
                if method.get("only", seed) == seed:
                    results.add("method", {"tasks": list(tasks), **method["record"]}, regime, seed)
    if methods:
        from taskvec.studies.methods import Methods, MethodsSettings

        results.studies.append(Methods(MethodsSettings(rules=("ties",))))
    return results


def method(name: str, share: float, tasks: Sequence[str], *consumed: str, **more: object) -> dict[str, Any]:
    values, single = dict.fromkeys(tasks, share), dict.fromkeys(tasks, 0.9)
    outcome = edit(values, single, how="default", coefficient=1.0, consumed=list(consumed))
    return {"record": {"name": name, "outcomes": [outcome], "seconds": 3.14, **more}}


def cells(results: Results) -> dict[tuple[str, ...], dict[str, str]]:
    """Rows of the main table by name and α, each by column."""
    table = Overview(results).table()
    assert table is not None
    rows = [dict(zip(table.columns, map(str, row), strict=True)) for row in table.rows]
    return {tuple(row[key] for key in ("", "regime", "α") if key in row): row for row in rows}


def test_the_best_of_a_class_comes_first_and_classes_stay_apart() -> None:
    tasks = ("a", "b")
    given = [
        method("tried", 0.7, tasks),
        method("better", 0.8, tasks),
        method("learned", 0.95, tasks, "unlabelled validation inputs"),
        method("masks", 0.9, tasks, "task id"),
    ]
    table = Overview(filled(tasks, methods=given)).table()
    assert table is not None
    groups = {head: [str(row[0]) for row in rows] for head, rows in table.groups()}
    assert list(groups) == [
        "reference",
        "consumed: nothing",
        "consumed: unlabelled validation inputs",
        "consumed: validation labels",
        "consumed: task id",
    ]
    assert groups["consumed: nothing"] == ["better", "tried", "addition", "mean"]
    assert groups["consumed: task id"] == ["single-task models", "masks"]


def test_the_lead_says_what_is_best_and_what_it_costs() -> None:
    tasks = ("a", "b")
    given = [method("better", 0.8, tasks), method("joint training", 0.95, tasks, "training")]
    lead = Overview(filled(tasks, methods=given)).sentence()
    assert lead.startswith(
        "Two tasks of made up on some/model, one seed: the best single model without labels is better at α 1 "
        "with 80.0 % ["
    )
    assert "of accuracy (single-task models 90.0 %, pre-trained 50.0 %), 3.1 s to make; with training" in lead
    assert lead.endswith("joint training at α 1 with 95.0 % [91.9, 98.1] of accuracy, 3.1 s to train.") or (
        "joint training at α 1 with 95.0 %" in lead
    )


def test_differences_are_paired_and_corrected() -> None:
    tasks = ("a", "b")
    given = [method("tried", 0.62, tasks), method("better", 0.85, tasks)]
    overview = Overview(filled(tasks, methods=given))
    lines = {(line.entry.name, line.entry.how): line for line in overview.lines}
    better, tried = lines["better", "default"], lines["tried", "default"]
    assert better.test is not None and tried.test is not None
    assert better.baseline is not None and better.baseline.coefficients == {0: 1.0}
    assert better.difference == pytest.approx(0.25) == better.test.mean
    tested = [line for line in overview.lines if line.test]
    assert [line.p for line in tested] == holm([line.test.p for line in tested if line.test])
    mine, others = (
        np.concatenate([unpack_hits(of.seeds[0].hits[task]) for task in tasks])
        for of in (tried.entry, tried.baseline or tried.entry)
    )
    change = mine - others  # both tasks have as many examples, so the mean over them is that over all
    by_task = [part.var(ddof=1) / len(part) for part in np.split(change, 2)]
    half = 1.96 * np.sqrt(sum(by_task)) / 2
    assert tried.test.interval[1] - tried.test.mean == pytest.approx(half, rel=1e-3)
    row = cells(overview.results)["better", "1"]
    assert row["− addition"].startswith("+25.0 ± ") and row["p"] == "<0.001" and row["seconds"] == "3.1"


def test_any_other_baseline() -> None:
    overview = Overview(filled(methods=[method("tried", 0.7, "ab")]), baseline="tried")
    lines = {(line.entry.name, line.entry.how): line for line in overview.lines}
    assert lines["addition", "default"].difference == pytest.approx(-0.1)
    assert lines["addition", "searched"].difference is None  # nothing of that name is searched
    table = overview.table()
    assert table is not None and "− tried" in table.columns


def test_regimes_are_compared_with_the_first() -> None:
    rows = cells(filled(regimes=("full", "attention")))
    assert rows["addition", "full", "0.4 searched"]["− addition"] == "–"
    assert rows["addition", "attention", "0.4 searched"]["− addition"].startswith("+5.0")
    assert rows["pre-trained", "", "–"]["normalized"] == "–"  # relative to which regime's models?


def test_records_of_yesterday_have_intervals_and_no_test() -> None:
    rows = cells(filled(hits=False, methods=[method("better", 0.85, ("a", "b"))]))
    for row in rows.values():
        assert row["95 %"].startswith("[")
    assert "±" not in rows["better", "1"]["− addition"] and "p" not in rows["better", "1"]


@pytest.mark.parametrize("seeds", [(0, 1), (3, 1, 4, 15, 9)])
def test_seeds_have_deviations_and_wider_intervals(seeds: tuple[int, ...]) -> None:
    luck = [method("luck", share, ("a", "b")) for share in (0.6, 0.7, 0.8, 0.65, 0.75)]
    given = [{**of, "only": seed} for seed, of in zip(seeds, luck, strict=False)]
    rows = cells(filled(seeds=seeds, methods=given))
    low, high = map(float, rows["luck", "1"]["95 %"].strip("[]").split(", "))
    assert high - low > 8 and "±" in rows["luck", "1"]["absolute"]
    assert rows["pre-trained", "–"]["absolute"] == "50.0"


def test_a_method_that_failed_with_a_seed_says_so() -> None:
    given = [{**method("shaky", 0.7, ("a", "b")), "only": 1}]
    failed = {"record": {"name": "shaky", "failed": "no memory"}, "only": 0}
    names = [name for name, *_ in cells(filled(seeds=(0, 1), methods=[failed, *given]))]
    assert "shaky (1 of 2 seeds)" in names


@pytest.mark.parametrize("tasks", [("a",), tuple(f"task-{i}" for i in range(20))])
def test_one_task_and_twenty(tasks: tuple[str, ...]) -> None:
    results = filled(tasks)
    table, lead = Overview(results).table(), Overview(results).sentence()
    assert table is not None and len(table.folded) == len(tasks)
    assert len(table.narrow().columns) < 9 and table.markdown().count("| task-7") == 0
    if len(tasks) == 1:
        assert table.title == "Models for a"
        assert lead.startswith("One task of made up on some/model, one seed: fine-tuned 90.0 % against ")
        assert lead.endswith(" against pre-trained 50.0 % of accuracy.")
    else:
        assert lead.startswith("20 tasks of made up") and table.title == "One model for all 20 tasks"


def test_perplexities_are_in_their_unit() -> None:
    tasks = ["a", "b"]
    results = results_of(tasks, seeds=(0, 1, 2), metric="perplexity", addition={"subsets": "whole"})
    for _ in tasks:
        results.add("zero_shot", {"test": {"metric": "perplexity", "value": 40.0, "examples": 9}})
    for seed, best in enumerate((20.0, 25.0, 21.0)):
        single = dict.fromkeys(tasks, 1 / 10)
        results.add("single", {"validation": single, "test": single}, "full", seed)
        figures = edit(dict.fromkeys(tasks, 1 / best), single, hits=False)
        test = {"metric": "perplexity", "value": best, "examples": 9}
        fixed = {"1": edit(dict.fromkeys(tasks, 1 / 50), single, hits=False)}
        whole = {"tasks": tasks, "test": dict.fromkeys(tasks, test), "fixed": fixed}
        results.add("addition", {**figures, **searched(0.5), **whole}, "full", seed)
    row = next(row for (name, alpha), row in cells(results).items() if alpha == "0.5 searched")
    low, high = map(float, row["95 %"].strip("[]").split(", "))
    assert low < 3 / (1 / 20 + 1 / 25 + 1 / 21) < high and row["absolute ↓"].startswith("22")
    assert "of perplexity (less is better)" in Overview(results).sentence()
    table = Overview(results).table()
    assert table is not None and "no share of examples" in table.note


def test_results_and_pages_hold_entries_and_no_hits() -> None:
    results = filled(seeds=(0, 1), methods=[method("<script>", 0.7, ("a", "b"))])
    facts = json.loads(json.dumps(facts_of(results)))
    assert {entry["name"] for entry in facts["entries"]} >= {"pre-trained", "addition", "<script>"}
    entry = next(entry for entry in facts["entries"] if entry["name"] == "addition")
    assert entry["consumed"] in (["validation labels"], []) and set(entry["seeds"]) == {"0", "1"}
    assert '"hits"' not in json.dumps(facts)
    page = render_page(page_of(results, {}))
    assert "&lt;script&gt;" in page and Overview(results).sentence()[:30] in page


def test_what_two_studies_measured_is_one_entry() -> None:
    again = method("sum", 0.6, ("a", "b"))
    entries = [entry for entry in entries_of(filled(methods=[again])) if entry.name == "addition"]
    assert [entry.how for entry in entries] == ["default", "searched"]
    [default] = [entry for entry in entries if entry.how == "default"]
    assert default.seconds == {0: 3.14}  # the study that timed it


def test_nothing_measured_yet() -> None:
    results = results_of(["a"])
    assert Overview(results).table() is None or Overview(results).lines == []
    assert Overview(results).sentence().endswith("nothing is measured yet.")


@pytest.mark.parametrize(
    "packed", ["", "8", "8:", "x:AA==", "99999999999999:AA==", "9:AA==", "3:é", "-1:AA=="]
)
def test_hits_of_a_stranger(packed: str) -> None:
    with pytest.raises(CorruptFile, match="hits: "):
        unpack_hits(packed)


def test_a_task_may_be_called_hits() -> None:
    stored = {"values": {"hits": 0.5}, "hits": {"hits": pack(0.5)}, "rows": [{"hits": pack(1.0), "x": 1}]}
    assert without_hits(stored) == {"values": {"hits": 0.5}, "rows": [{"x": 1}]}


def test_an_entry_is_of_the_class_of_the_most_that_it_consumed() -> None:
    def level(*consumed: Any) -> list[int]:
        return Entry("x", "full", {}, consumed).level

    assert level() < level("unlabelled train inputs") < level("validation labels") < level("training")
    assert level("training") < level("validation labels", "training") < level("task id")
