"""``--device``, and ``device:`` in experiment files."""

import json
from pathlib import Path

import pytest

import taskvec as tv
from checkpoints import save_bert
from taskvec.cli import main

ABSENT = "device cuda:3: not there; this machine has cpu"


def code(words: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def vector(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_suite: Path) -> Path:
    path = tmp_path_factory.mktemp("trained") / "pets.safetensors"
    words = [
        "train",
        "-m",
        str(tiny_model),
        "-s",
        str(tiny_suite),
        "-t",
        "pets",
        "--steps",
        "2",
        "--device",
        "cpu",
    ]
    assert code([*words, "-o", str(path), "--quiet"]) == 0
    return path


def test_a_vector_says_what_trained_it(vector: Path) -> None:
    training = tv.TaskVector.load(vector).info.training
    assert training is not None and training["device"] == "cpu"


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_scores_say_what_computed_them(
    tiny_model: Path, tiny_suite: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(tiny_model), "-s", str(tiny_suite), "--device", device, "--json", "--quiet"]
    assert code(words) == 0
    assert json.loads(capsys.readouterr().out)["device"] == "cpu"


@pytest.mark.parametrize(
    "words",
    [
        "train -m MODEL -s SUITE -t pets -o OUT.safetensors",
        "eval MODEL -s SUITE",
        "stats MODEL -s SUITE -t pets -o OUT",
        "analyze ntk MODEL -s SUITE -t pets --control taste -o OUT",
        "analyze linearity VECTOR -m MODEL -s SUITE -o OUT",
        "run EXPERIMENT -o OUT",
        "demo -o OUT",
    ],
)
def test_a_device_that_is_not_there_is_one_line(
    words: str,
    vector: Path,
    tiny_model: Path,
    tiny_suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(
        f"experiment: tiny\nmodel: {tiny_model}\nsuite: {tiny_suite}\ntraining: {{steps: 1}}\n"
        "regimes: {full: {}}\n"
    )
    places = {
        "MODEL": tiny_model,
        "SUITE": tiny_suite,
        "VECTOR": vector,
        "EXPERIMENT": experiment,
        "OUT": tmp_path / "out",
    }
    for word, path in places.items():
        words = words.replace(word, str(path))
    assert code([*words.split(), "--device", "cuda:3"]) == 2
    assert ABSENT in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_records_say_what_computed_them(tiny_suite: Path, tmp_path: Path) -> None:
    model = save_bert(tmp_path / "model")
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(
        f"experiment: tiny\nmodel: {model}\nsuite: {tiny_suite}\ntasks: [pets]\ntraining: {{steps: 1}}\n"
        "regimes: {full: {}}\ndevice: cpu\n"
    )
    assert code(["run", str(experiment), "-o", str(tmp_path / "run"), "--quiet"]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert records and all(record["device"] == "cpu" for record in records)
    keys = {record["key"] for record in records}
    experiment.write_text(experiment.read_text().replace("device: cpu", "device: auto"))
    assert code(["run", str(experiment), "-o", str(tmp_path / "run"), "--quiet"]) == 0
    again = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert {record["key"] for record in again} == keys and len(again) == len(records)


@pytest.mark.parametrize("device", ["gpu", "'cuda:x'", "[cpu]"])
def test_a_file_that_names_no_device(
    device: str, tiny_model: Path, tiny_suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(
        f"experiment: tiny\nmodel: {tiny_model}\nsuite: {tiny_suite}\nregimes: {{full: {{}}}}\n"
        f"device: {device}\n"
    )
    assert code(["run", str(experiment), "-o", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "experiment.yaml: device: " in said and len(said.strip().splitlines()) == 1
