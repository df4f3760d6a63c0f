"""Does a coefficient of 1 do? The study of penalties."""

import json
from pathlib import Path

import numpy as np
import pytest
from torch import tensor

from taskvec.cli import main
from taskvec.studies.hits import pack_hits
from taskvec.studies.regularised import Hits, gain, named
from taskvec.training.penalties.settings import Decay, OrthoReg, TauJp

EXPERIMENT = """
experiment: tiny
model: {model}
suite: {suite}
training: {{lr: 3e-3, steps: 5, batch_size: 16}}
regimes:
  full: {{}}
  full-decay: {{select: full, penalty: decay}}
  tangent: {{}}
  tangent-tau_jp: {{select: full, space: tangent, penalty: {{kind: tau_jp, strength: 3}}}}
search: {{step: 0.25, coarse: 2, limit: 1.5}}
addition: {{subsets: whole}}
regularised: true
costs: true
"""


def run(path: Path, *options: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(path), *map(str, options), "--quiet"])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_a_run_says_what_the_search_gains_over_one(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path
) -> None:
    path, folder = tmp_path / "tiny.yaml", tmp_path / "run"
    path.write_text(EXPERIMENT.format(model=tiny_model, suite=tiny_suite))
    assert run(path, "-o", folder) == 0
    report = (folder / "report.md").read_text()
    table = report[report.index("Does α = 1 do?") :].split("\n**")[0]
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")}
    assert {line.count("|") for line in [*rows.values(), table.splitlines()[3]]} == {10}
    assert "tau_jp 3" in rows["tangent-tau_jp"] and "decay 1" in rows["full-decay"]
    assert "none" in rows["full"] and rows["full"].rstrip(" |").endswith("1.00")
    assert "unlabelled train inputs" in rows["tangent-tau_jp"] and "nothing" in rows["full-decay"]
    assert (folder / "figures" / "regularised.png").exists()
    cells = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    sums = {c["inputs"]["regime"]: c["result"] for c in cells if c["cell"] == "addition"}
    for cell in (c for c in cells if c["cell"] == "regularised"):
        hits, whole = Hits.model_validate(cell["result"]), sums[cell["inputs"]["regime"]]
        found = gain([hits])
        assert found is not None
        assert found.mean == pytest.approx(whole["absolute"] - whole["fixed"]["1"]["absolute"])
        assert found.interval[0] <= found.mean <= found.interval[1]


def test_the_gain_is_paired_over_examples() -> None:
    def packed(*right: int) -> str:
        logits = tensor([[0.0, 1.0] if hit else [1.0, 0.0] for hit in right])
        return pack_hits({"logits": logits, "labels": tensor([1] * len(right))})

    of = Hits(
        best={"a": packed(1, 1, 1, 0), "b": packed(1, 0)}, one={"a": packed(1, 0, 1, 0), "b": packed(0, 0)}
    )
    found = gain([of])
    assert found is not None and found.mean == pytest.approx(np.mean([0.25, 0.5]))
    assert gain([Hits(best={}, one={})]) is None


def test_it_needs_sums(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.yaml"
    text = EXPERIMENT.format(model=tiny_model, suite=tiny_suite)
    path.write_text(text.replace("addition: {subsets: whole}\n", ""))
    assert run(path, "-o", tmp_path / "run") == 2
    assert "regularised: compares sums, and 'addition' is off" in capsys.readouterr().err


def test_penalties_are_named_by_what_is_not_as_usual() -> None:
    assert named(Decay(strength=2)) == "decay 2"
    assert named(TauJp(strength=0.1, power=1)) == "tau_jp 0.1, power 1"
    assert named(OrthoReg(form="cosine")) == "orthoreg 1, form cosine"
