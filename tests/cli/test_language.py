"""``train`` and ``eval`` of a language model, from a suite file to a table."""

import json
from pathlib import Path

import pytest

from cli.test_edit_commands import Run
from language_models import TEXT, save_language_model

SUITE = """
suite: texts
tasks:
  cats:
    kind: language
    data: {source: text, path: a.txt%s}
    context: 32
    stride: 32
    metric: perplexity
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_language_model(tmp_path / "gpt", "gpt2")
    Path("a.txt").write_text(TEXT * 2)
    Path("s.yaml").write_text(SUITE % ", splits: {train: 0.7, validation: 0.1, test: 0.2}")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], words: str) -> Run:
    return Run(capsys, tuple(words.split()))


def test_a_vector_is_trained_and_measured(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = "train -m gpt -s s.yaml -t cats --lr 1e-2 --steps 6 --batch-size 4 -o v.safetensors --log l.jsonl"
    done = run(capsys, train)
    assert done.code == 0 and "pre-trained" in done.out and "note" not in done.err, done.err
    logged = [json.loads(line) for line in Path("l.jsonl").read_text().splitlines()]
    [last] = [row["validation/cats"] for row in logged if "validation/cats" in row][-1:]
    figures = {}
    for name, more in {"before": "", "after": " -v a=v.safetensors"}.items():
        done = run(capsys, f"eval gpt -s s.yaml --json{more}")
        figures[name] = json.loads(done.out)["scores"]["cats"]
    assert 1 < figures["after"]["perplexity"] < 0.8 * figures["before"]["perplexity"]
    assert last == pytest.approx(figures["after"]["perplexity"], rel=0.5)
    assert {"metric", "value", "interval", "bits_per_byte", "loss", "tokens", "bytes", "examples"} < set(
        figures["before"]
    )


def test_training_on_what_is_tested_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.yaml").write_text(SUITE % "")
    done = run(capsys, "train -m gpt -s s.yaml -t cats --steps 1 -o v.safetensors -q")
    assert done.code == 0 and "note: cats: the test split is the whole file" in done.err
    assert "note" not in run(capsys, "eval gpt -s s.yaml -q").err


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_model_with_an_encoder_is_one_line(
    kind: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_language_model(place / kind, kind)
    done = run(capsys, f"eval {kind} -s s.yaml -q")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "cats: kind 'language' is for causal models" in done.err


def test_a_model_that_reads_both_ways_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_language_model(place / "xlnet", "xlnet")
    done = run(capsys, "eval xlnet -s s.yaml -q")
    assert done.code == 2 and "predicts a token from those behind it too" in done.err


def test_measurements_that_take_long_are_watched(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = "train -m gpt -s s.yaml -t cats --steps 1 --batch-size 4 -o v.safetensors --force"
    assert "measuring" not in run(capsys, train).err
    monkeypatch.setattr("taskvec.progress.PATIENCE", 0.0)
    told = run(capsys, train).err
    assert "measuring cats, validation: 1/1" in told and "measuring cats, test: 1/1" in told
    assert "measuring" not in run(capsys, f"{train} -q").err
