"""Regimes as data: what there is, how users make their own, and which mistakes are found."""

import json
import re
from pathlib import Path

import pytest

import taskvec as tv
from taskvec.cli import main
from taskvec.config import read_yaml
from taskvec.errors import InputError
from taskvec.runs.experiment import load_experiment
from taskvec.studies.trial import recipe
from taskvec.training.regimes import REGIMES, Gates, Lora, Regime, RegimeSettings, regime_called, regime_of


def command(*arguments: object) -> object:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


@pytest.mark.parametrize(
    ("name", "selection", "space"),
    [
        ("full", "full", "ordinary"),
        ("tangent", "full", "tangent"),
        ("tangent-attention", "attention", "tangent"),
        ("attention-with-biases", "attention-with-biases", "ordinary"),
        ("tangent-attention-biases", "attention-biases", "tangent"),
        ("mlp", "mlp", "ordinary"),
        ("lora", "attention", "lora"),
        ("lora-full", "full", "lora"),
        ("tangent-lora", "attention", "tangent-lora"),
        ("tangent-lora-mlp", "mlp", "tangent-lora"),
        (r"re:.*\.bias", r"re:.*\.bias", "ordinary"),
        (r"lora-re:.*q_proj.*", r"re:.*q_proj.*", "lora"),
        (r"tangent-lora-re:.*q_proj.*", r"re:.*q_proj.*", "tangent-lora"),
        ("gated", "full", "gated"),
        ("gated-attention", "attention", "gated"),
        (r"gated-re:.*mlp.*", r"re:.*mlp.*", "gated"),
    ],
)
def test_a_name_tells_selection_and_space(name: str, selection: str, space: str) -> None:
    regime = regime_called(name)
    assert (regime.name, regime.selection, regime.space) == (name, selection, space)
    assert Regime(selection, regime.space).name == name
    assert regime.evaluated_in == ("tangent" if space.startswith("tangent") else "ordinary")
    assert regime.lora == (Lora(8, 16.0) if "lora" in space else None)
    assert regime.gating == (Gates() if space == "gated" else None)


@pytest.mark.parametrize("name", ["full", "attention", "mlp", "lora", "lora-mlp", "re:.*bias"])
def test_a_regime_has_its_linear_partner(name: str) -> None:
    regime, partner = regime_called(name), regime_called("tangent" if name == "full" else f"tangent-{name}")
    assert (partner.selection, partner.evaluated_in) == (regime.selection, "tangent")
    assert partner.is_tangent_of(regime) and not regime.is_tangent_of(partner)


@pytest.mark.parametrize(
    "regime",
    [
        *REGIMES.values(),
        regime_called("tangent-re:.*bias"),
        Regime("mlp", "tangent-lora", rank=2, alpha=3.0),
        Regime("re:.*[0-3].*", "tangent", name="upper layers"),
        Regime("attention", "lora", rank=3, name="lora"),
        Regime("mlp", "gated", gates="block", strength=0.0, threshold=-1.0),
        Regime("full", "gated", score_lr=0.1, name="few layers"),
    ],
)
def test_provenance_tells_the_regime(regime: Regime) -> None:
    found = regime_of(regime.name, {"lr": 1e-3, **regime.details()})
    assert found and (found.name, found.selection, found.space) == (
        regime.name,
        regime.selection,
        regime.space,
    )
    assert (found.lora, found.gating) == (regime.lora, regime.gating)


@pytest.mark.parametrize("training", [None, {"select": "re:(", "space": "lora"}, {"select": 3}])
def test_other_provenance_tells_none(training: dict[str, object] | None) -> None:
    assert regime_of("of another tool", training) is None


def test_names_that_runs_on_record_have_keep_their_keys() -> None:
    settings = tv.TrainSettings()
    for name in ("full", "attention", "tangent", "tangent-attention", "mlp", "re:.*", "tangent-re:x"):
        assert recipe(settings, regime_called(name)) == recipe(settings)
    assert recipe(settings, Regime("mlp", "lora", rank=4)) == {
        **recipe(settings),
        **{"select": "mlp", "space": "lora", "rank": 4, "alpha": 16.0},
    }


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"selection": "atention"}, "no selection called 'atention'; did you mean 'attention'"),
        ({"selection": "re:("}, "selection: .* is not a regular expression"),
        ({"space": "tangnt"}, "space: 'tangnt' found, expected one of ordinary, tangent, .* mean 'tangent'"),
        ({"space": "lora", "rank": 0}, "rank: 0, expected 1 or more"),
        ({"space": "lora", "alpha": 0.0}, "alpha: 0, expected a positive number"),
        ({"space": "lora", "alpha": float("nan")}, "alpha: nan, expected a positive number"),
        (
            {"rank": 4},
            "rank: 4 given, but space ordinary trains whole tensors; .* space lora or tangent-lora",
        ),
        ({"space": "tangent", "alpha": 2.0}, "alpha: 2 given, but space tangent trains whole tensors"),
        ({"space": "lora", "rank": "four"}, "Regime: rank is 'four', expected"),
        ({"space": "gated", "rank": 4}, "rank: 4 given, but space gated trains whole tensors"),
        ({"strength": 0.5}, "strength: 0.5 given, but space ordinary has no gates; .* space gated"),
        ({"space": "lora", "gates": "block"}, "gates: 'block' given, but space lora has no gates"),
        ({"space": "gated", "strength": -1.0}, "strength: -1.0, expected 0 or more"),
        ({"space": "gated", "threshold": float("nan")}, "threshold: nan, expected a finite number"),
        ({"space": "gated", "score_lr": 0.0}, "score_lr: 0.0, expected a positive number"),
        ({"space": "gated", "score_warmup": 1.5}, "score_warmup: 1.5, expected a share of the steps"),
        ({"space": "gated", "gates": "layers"}, "gates"),
    ],
)
def test_a_regime_that_cannot_be_is_refused(given: dict[str, object], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as refused:
        Regime(**given)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "given", "made"),
    [
        (None, {}, Regime("full")),
        (None, {"select": "mlp"}, Regime("mlp")),
        (None, {"space": "lora"}, Regime("attention", "lora")),
        (None, {"select": "re:.*", "space": "tangent"}, Regime("re:.*", "tangent")),
        ("mine", {"select": "mlp", "space": "tangent"}, Regime("mlp", "tangent", name="mine")),
        ("mine", {"select": "full", "space": "lora", "rank": 2}, Regime("full", "lora", rank=2, name="mine")),
        ("attention", {"select": "attention"}, Regime("attention")),
        ("tangent", {"select": "all"}, Regime("full", "tangent")),
        ("lora", {"rank": 4, "alpha": 4}, Regime("attention", "lora", rank=4, alpha=4.0)),
        ("tangent-lora-mlp", {"rank": 4}, Regime("mlp", "tangent-lora", rank=4)),
        (None, {"space": "gated", "strength": 2}, Regime("full", "gated", strength=2.0)),
        ("gated-mlp", {"gates": "block"}, Regime("mlp", "gated", gates="block")),
    ],
)
def test_settings_make_a_regime(name: str | None, given: dict[str, object], made: Regime) -> None:
    found = RegimeSettings.parse("", given).regime(name)
    assert (found.name, found.selection, found.space) == (made.name, made.selection, made.space)
    assert (found.lora, found.gating) == (made.lora, made.gating)


MISTAKES = [
    (
        "attention: {select: mlp}",
        "regimes.attention: select: 'mlp' given, but the regime 'attention' is of select",
    ),
    (
        "lora: {space: tangent}",
        "regimes.lora: space: 'tangent' given, but the regime 'lora' is of space 'lora'",
    ),
    ("full: {rank: 8}", "regimes.full: rank: 8 given, but space ordinary trains whole tensors"),
    ("mlp: {threshold: 0.2}", "regimes.mlp: threshold: 0.2 given, but space ordinary has no gates"),
    ("gated: {gates: row}", "regimes.gated: gates: input should be 'layer', 'tensor' or 'block'"),
    ("lora: {rank: 0}", "regimes.lora: rank: input should be greater than 0 (found 0)"),
    ("mine: {space: lora}", "regimes.mine: no regime called 'mine'"),
    ("mine: {select: nonsense}", "regimes.mine: no selection called 'nonsense'"),
    (
        "mine: {select: mlp, space: flat}",
        "regimes.mine: space: input should be 'ordinary', 'tangent', 'lora'",
    ),
    ("mine: {selct: mlp}", "no regime called 'mine'"),
    ("lora: {rnk: 4}", "regimes.lora: unknown key 'rnk'; did you mean 'rank'?"),
    ("lora: {}}, training: {rank: 4", "training: 'rank' is said of a single regime; give it under 'regimes'"),
    ("mine: {select: 're:('}", "regimes.mine: selection: '(' is not a regular expression"),
]


@pytest.mark.parametrize(("entry", "complaint"), MISTAKES)
def test_a_mistake_in_an_experiment_is_one_line(
    entry: str, complaint: str, tiny_model: Path, tiny_suite: Path, tmp_path: Path
) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(f"{{experiment: e, model: {tiny_model}, suite: {tiny_suite}, regimes: {{{entry}}}}}\n")
    with pytest.raises(InputError) as refused:
        load_experiment(path)
    assert complaint in str(refused.value) and "\n" not in str(refused.value)


EXPERIMENT = """
experiment: own regimes
model: {model}
suite: {suite}
training: {{lr: 2e-3, steps: 4, batch_size: 16}}
regimes:
  lora: {{rank: 2, lr: 1e-2}}
  tangent-lora: {{rank: 2}}
  low layers: {{select: 're:.*layer\\.0\\..*', lr: 1e-3}}
  flat: {{select: 're:.*layer\\.0\\..*', space: tangent}}
  gated-mlp: {{strength: 3}}
  post-hoc-lora: {{}}
search: {{step: 0.5, coarse: 1}}
addition: {{subsets: all}}
atm: {{rounds: [2]}}
costs: true
"""


def test_regimes_of_ones_own_go_through_a_whole_run(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = tmp_path / "own.yaml", tmp_path / "run"
    path.write_text(EXPERIMENT.format(model=tiny_model, suite=tiny_suite))
    assert command("run", path, "-o", run, "--quiet") == 0
    found = json.loads((run / "results.json").read_text())["seeds"]["0"]
    assert list(found) == list(read_yaml(path)["regimes"])
    infos = [tv.TaskVector.load(file).info for file in sorted(run.glob("vectors/seed0/*/pets-*.safetensors"))]
    spaces = {info.regime: info.space for info in infos}
    tangents = {"tangent-lora": "tangent", "flat": "tangent"}
    gated = {"gated-mlp": "ordinary"}
    assert spaces == {"lora": "ordinary", "low layers": "ordinary", **tangents, **gated}
    factors = [info for info in infos if "lora" in str(info.regime)]
    assert all(info.compact is not None and info.training and info.training["rank"] == 2 for info in factors)
    assert "atm" in found["lora"] and "atm" not in found["flat"]
    report = (run / "report.md").read_text()
    [advantage] = re.findall(r"Non-linear advantage.*?\n\n(.*?)\n\n", report, re.DOTALL)
    assert re.findall(r"over ([\w-]+)", advantage) == ["tangent-lora", "flat", "post-hoc-lora"]
    before = (run / "records.jsonl").read_text()
    assert command("run", path, "-o", run, "--quiet") == 0
    assert (run / "records.jsonl").read_text() == before
    path.write_text(path.read_text().replace("lora: {rank: 2, lr: 1e-2}", "lora: {rank: 3, lr: 1e-2}"))
    assert command("run", path, "-o", run, "--quiet") == 0
    added = [json.loads(line) for line in (run / "records.jsonl").read_text()[len(before) :].splitlines()]
    ranks = {record["inputs"]["settings"]["rank"] for record in added if record["cell"] == "vector"}
    assert ranks == {3}
    capsys.readouterr()


def test_options_make_a_regime(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["train", "-m", tiny_model, "-s", tiny_suite, "-t", "pets", "--steps", "2", "-q"]
    for options, name, moved in (
        (["--regime", "lora", "--rank", "2", "--alpha", "4"], "lora", 8),
        (["--select", r"re:.*layer\.1\..*weight", "--space", "tangent-lora", "--rank", "3"], None, 6),
        (["--regime", "deep", "--select", r"re:.*layer\.1\..*", "--space", "tangent"], "deep", 16),
        (["--select", "mlp"], "mlp", 8),
    ):
        path = tmp_path / "v.safetensors"
        assert command(*common, *options, "-o", path, "--force") == 0, capsys.readouterr().err
        vector = tv.TaskVector.load(path)
        assert vector.info.regime == (name or r"tangent-lora-re:.*layer\.1\..*weight")
        assert sum(bool(vector.terms_at(n)) for n in vector) == moved
    for options, complaint in (
        (["--rank", "4"], "rank: 4 given, but space ordinary trains whole tensors"),
        (
            ["--regime", "attention", "--select", "mlp"],
            "select: 'mlp' given, but the regime 'attention' is of",
        ),
        (["--regime", "deep", "--space", "tangent"], "no regime called 'deep'"),
        (["--space", "lora", "--rank", "40"], "rank: 40, expected at most"),
        (["--space", "lora", "--rank", "0"], "rank: input should be greater than 0"),
    ):
        capsys.readouterr()
        assert command(*common, *options, "-o", tmp_path / "w.safetensors") == 2
        error = capsys.readouterr().err
        assert complaint in error and error.count("\n") == 1
    assert not list(tmp_path.glob("*w.safetensors*"))
