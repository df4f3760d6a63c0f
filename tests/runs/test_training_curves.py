"""Curves of trainings and costs: from logs and records that anybody may have written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from taskvec.reports.charts.lines import Lines
from taskvec.reports.charts.stacked import Stacked
from taskvec.reports.tables import Table
from taskvec.runs.costs import cost_blocks
from taskvec.runs.experiment import load_experiment
from taskvec.runs.training import training_charts
from taskvec.studies.store import Store, read_records
from taskvec.studies.trial import Plan, recipe

EXPERIMENT = """
experiment: curves
model: builtin
suite: builtin8
tasks: [gabor, greek]
training: {steps: 30}
regimes: {full: {lr: 1.0e-3}}
seeds: [0, 1]
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    path = tmp_path / "experiment.yaml"
    path.write_text(EXPERIMENT)
    experiment, suite = load_experiment(path)
    return Plan(experiment, suite, "model", {}, ["gabor", "greek"])


def vector(plan: Plan, task: str, seed: int = 0, file: str | None = None, **more: object) -> dict[str, Any]:
    """A record of a training."""
    settings = recipe(plan.experiment.settings("full", seed), plan.experiment.regime("full"))
    inputs = {"model": "model", "regime": "full", "settings": settings, "tasks": {task: "digest"}, **more}
    named = file or f"vectors/seed{seed}/full/{task}-0.safetensors"
    return {"cell": "vector", "key": f"{task}{seed}{more}", "inputs": inputs, "result": {"file": named}}


def log(folder: Path, name: str, *lines: object) -> Path:
    path = folder / "logs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"".join((of if isinstance(of, bytes) else json.dumps(of).encode()) + b"\n" for of in lines)
    )
    return path


def curves(charts: list[Lines], name: str) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Points of a chart, by panel and series; those of several seeds after each other."""
    [chart] = [chart for chart in charts if chart.name == name]
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for plot in chart.plots:
        for curve in plot.curves:
            points = [(dot.x, value) for dot in curve.points for value in dot.values if value is not None]
            found.setdefault((plot.title, curve.name), []).extend(points)
    return found


def test_every_figure_of_a_log_is_drawn_by_task_and_seed(plan: Plan, tmp_path: Path) -> None:
    for seed in (0, 1):
        steps = [{"step": n, "loss": seed + 1 / n, "gradient_norm": n} for n in (1, 2, 3)]
        log(tmp_path, f"seed{seed}/full/gabor-0.jsonl", *steps[:-1], {**steps[-1], "validation": 0.5})
    records = [vector(plan, "gabor", seed) for seed in (0, 1)]
    charts = training_charts(plan, records, tmp_path)
    assert [chart.name for chart in charts] == [
        "training-loss",
        "training-validation",
        "training-gradient-norm",
    ]
    loss = [(1, 1.0), (2, 0.5), (3, 1 / 3), (1, 2.0), (2, 1.5), (3, 4 / 3)]
    assert curves(charts, "training-loss") == {("full", "gabor"): loss}
    assert curves(charts, "training-validation") == {("full", "gabor"): [(3, 50.0), (3, 50.0)]}


def test_what_trained_on_all_tasks_has_a_panel_of_its_own_and_ascent_none(plan: Plan, tmp_path: Path) -> None:
    log(tmp_path, "a.jsonl", {"step": 1, "loss": 1.0})
    both: dict[str, Any] = {"tasks": {"gabor": "", "greek": ""}, "file": "vectors/a.safetensors"}
    records = [
        vector(plan, "gabor", **both),
        vector(plan, "gabor", **both, rounds=4),
        vector(plan, "gabor", **both, combiner={"combiner": "mgda", "scale": 2}),
        vector(plan, "gabor", file="vectors/a.safetensors", ascend=True),
        vector(plan, "gabor", file="vectors/a.safetensors", steps=5),
        vector(plan, "stranger", file="vectors/a.safetensors"),
        {**vector(plan, "greek", file="vectors/a.safetensors"), "inputs": {"regime": "full"}},
    ]
    names = {name for _, name in curves(training_charts(plan, records, tmp_path), "training-loss")}
    assert names == {"joint training", "ATM, 4 rounds", 'mgda {"scale": 2}'}


def test_the_log_of_the_settings_of_now_is_shown_not_that_of_others(plan: Plan, tmp_path: Path) -> None:
    now, before = vector(plan, "gabor"), vector(plan, "gabor", file="vectors/old.safetensors")
    before["inputs"]["settings"] = {**before["inputs"]["settings"], "lr": 7.0}
    log(tmp_path, "seed0/full/gabor-0.jsonl", {"step": 1, "loss": 1.0})
    log(tmp_path, "old.jsonl", {"step": 1, "loss": 2.0})
    for order in ([now, before], [before, now]):
        found = curves(training_charts(plan, order, tmp_path), "training-loss")
        assert found == {("full", "gabor"): [(1, 1.0)]}


def test_long_logs_are_thinned_to_their_ends_and_keep_validations(plan: Plan, tmp_path: Path) -> None:
    steps = [
        {"step": n, "loss": 1.0, **({"validation": 0.5} if n % 997 == 0 else {})} for n in range(1, 5001)
    ]
    log(tmp_path, "seed0/full/gabor-0.jsonl", *steps)
    charts = training_charts(plan, [vector(plan, "gabor")], tmp_path)
    validations = curves(charts, "training-validation")["full", "gabor"]
    assert [x for x, _ in validations] == [997, 1994, 2991, 3988, 4985]
    points = curves(charts, "training-loss")["full", "gabor"]
    assert 100 <= len(points) <= 210 and (points[0][0], points[-1][0]) == (1, 5000)


def test_bad_lines_are_skipped_and_said(plan: Plan, tmp_path: Path) -> None:
    log(
        tmp_path,
        "seed0/full/gabor-0.jsonl",
        *(b"{", b"[1]", b"\xff\xfe", b'{"step": "1"}', b'{"step": 1, "step": 2}', b"[" * 5000, b"NaN"),
        b'{"step": 3, "loss": 1e999, "penalty": "<script>"}',
        b'{"step": 4, "loss": ' + b"9" * 400 + b"}",
        {"step": 5, "loss": 0.25, "gradient_norm": None},
        {"step": -1, "loss": 0.25},
    )
    charts = training_charts(plan, [vector(plan, "gabor")], tmp_path)
    assert curves(charts, "training-loss") == {("full", "gabor"): [(5, 0.25)]}
    assert "lines that are no steps are left out" in charts[0].caption


OUTSIDE = [
    "/etc/passwd",
    "vectors/../../secret.safetensors",
    "secret.safetensors",
    "vectors/link/secret.b",
    "",
]


@pytest.mark.parametrize("file", OUTSIDE)
def test_no_log_outside_the_folder_is_read(plan: Plan, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "run"
    log(tmp_path, "../secret.jsonl", {"step": 1, "loss": 1.0})
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "link").symlink_to(tmp_path)
    assert training_charts(plan, [{**vector(plan, "gabor"), "result": {"file": file}}], folder) == []


def test_without_logs_there_are_no_charts(plan: Plan, tmp_path: Path) -> None:
    assert training_charts(plan, [vector(plan, "gabor")], tmp_path) == []
    assert training_charts(plan, [], tmp_path) == [] == cost_blocks([])


def costs(*records: Mapping[str, Any]) -> tuple[Stacked, Table]:
    chart, table = cost_blocks(records)
    assert isinstance(chart, Stacked) and isinstance(table, Table)
    return chart, table


def test_costs_add_up_by_kind_and_regime() -> None:
    about = {"own_seconds": 2.5, "seconds": 9, "device": "cpu", "versions": {"torch": "2"}}
    chart, table = costs(
        {"cell": "addition", "inputs": {"regime": "full"}, **about},
        {"cell": "vector", "inputs": {"regime": "full"}, **about},
        {"cell": "vector", "inputs": {"regime": "<b>"}, **about},
        {"cell": "zero_shot", "inputs": {}, **about},
        {"cell": "spoilt", "inputs": None, "seconds": "1"},
        {"cell": "spoilt", "inputs": None, "seconds": -1e999},
    )
    assert chart.rows == {
        "training": {"full": 2.5, "<b>": 2.5},
        "addition": {"full": 2.5},
        "zero shot": {"the model alone": 2.5},
    }
    assert [str(cell) for cell in table.rows[-1]] == ["all", "4", "10.0", "100.0"]
    assert table.note == "Of all records in the run folder, on cpu; torch 2."


def test_seconds_of_cells_within_others_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("taskvec.studies.store.time.monotonic", lambda: now)
    store = Store(tmp_path / "run")

    def took(seconds: float) -> dict[str, object]:
        nonlocal now
        now += seconds
        return {}

    def fails() -> dict[str, object]:
        took(64)
        raise RuntimeError

    def outer() -> dict[str, object]:
        store.result("vector", {"n": 1}, lambda: took(2))
        with pytest.raises(RuntimeError):
            store.result("vector", {"n": 2}, fails)
        store.result("vector", {"n": 1}, lambda: took(1000))
        return took(4)

    store.result("joint", {}, outer)
    store.result("single", {}, lambda: took(8))
    told = {of["cell"]: (of["seconds"], of["own_seconds"]) for of in read_records(store.folder).values()}
    assert told == {"vector": (2, 2), "joint": (70, 4), "single": (8, 8)}
