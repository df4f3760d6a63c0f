"""``taskvec train`` on several tasks, with a combiner."""

import json
from pathlib import Path

import pytest

import taskvec as tv
from taskvec.cli import main


def train(model: Path, suite: Path, output: Path, *more: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                *("train", "-m", str(model), "-s", str(suite), "-t", "pets", "taste", "-o", str(output)),
                *("--steps", "2", "--batch-size", "8", "--quiet", "--lr", "1e-3", *map(str, more)),
            ]
        )
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.mark.parametrize(
    "combiner",
    [
        ("pcgrad",),
        ("meta", "--combiner-param", "target=pets", "--combiner-param", "rate=0.1"),
        ("own.py:first",),
    ],
)
def test_a_vector_of_several_tasks(
    tiny_model: Path,
    tiny_suite: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    combiner: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("def first(gram):\n    return gram[0] * 0 + 1\n")
    output = tmp_path / "both.safetensors"
    assert train(tiny_model, tiny_suite, output, "--log", "both.jsonl", "--combiner", *combiner) == 0
    training = tv.TaskVector.load(output).info.training
    assert training is not None and training["combiner"] == combiner[0].split(":")[-1]
    lines = [json.loads(line) for line in Path("both.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and {"weight/pets", "conflict_rate", "cosine/pets/taste"} <= lines[0].keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--combiner", "pcgrat"), "no combiner called 'pcgrat'; did you mean 'pcgrad'?"),
        (("--combiner-param", "c=1"), "--combiner-param: given without --combiner"),
        (("--combiner", "mean", "--combiner-param", "c=1"), "combiner 'mean': unknown parameter 'c'"),
        (("--combiner", "meta", "--combiner-param", "target=c"), "target: 'c' is not trained"),
        (("--combiner", "nowhere:f"), "nowhere cannot be imported"),
    ],
)
def test_what_does_not_fit_is_refused(
    tiny_model: Path,
    tiny_suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    assert train(tiny_model, tiny_suite, tmp_path / "both.safetensors", *options) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
