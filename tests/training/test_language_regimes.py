"""Regimes of language models: embeddings, head and body, and LoRA that goes to PEFT."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from torch.testing import assert_close

import taskvec as tv
from language_models import KINDS, TEXT, save_language_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # PEFT asks for it

RECIPE = tv.TrainSettings(lr=1e-2, steps=2, batch_size=4, validations=0)
SUITE = """
suite: s
tasks:
  cats: {kind: language, data: {source: text, path: t.txt, separator: "\\n"}, context: 16}
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> tv.Suite:
    folder = tmp_path_factory.mktemp("cats")
    (folder / "t.txt").write_text("\n".join([TEXT] * 12))
    (folder / "s.yaml").write_text(SUITE)
    return tv.load_suite(folder / "s.yaml")


def opened(kind: str, suite: tv.Suite, folder: Path) -> tv.Evaluator:
    save_language_model(folder, kind)
    return tv.Evaluator(tv.load_backbone(str(folder), outputs="tokens"), [suite.task("cats")])


@pytest.mark.parametrize(
    ("kind", "embeddings", "head"),
    [
        ("gpt2", {"transformer.wte.weight", "transformer.wpe.weight"}, set()),
        ("llama", {"model.embed_tokens.weight"}, {"lm_head.weight"}),
        ("tied", {"model.embed_tokens.weight"}, set()),
        ("opt", {"model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"}, set()),
        ("bloom", {"transformer.word_embeddings.weight"}, set()),
    ],
)
def test_embeddings_and_head_are_trained_alone_or_left_out(
    kind: str, embeddings: set[str], head: set[str], suite: tv.Suite, tmp_path: Path
) -> None:
    evaluator = opened(kind, suite, tmp_path)
    everything = set(evaluator.pretrained)
    body = everything - embeddings - head
    for selection, expected in (
        ("embeddings", embeddings),
        ("head", head),
        ("body", body),
        ("full", everything),
    ):
        if expected:
            vector = tv.finetune(
                evaluator.backbone, evaluator.part("cats"), regime=selection, settings=RECIPE
            )
            assert {name for name in vector if vector.terms_at(name)} == expected
        else:
            with pytest.raises(tv.errors.InputError, match="shares the embeddings"):
                tv.select(evaluator.backbone, selection)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "tied", "gemma2"])
def test_lora_of_a_language_model_is_what_peft_merges(kind: str, suite: tv.Suite, tmp_path: Path) -> None:
    evaluator = opened(kind, suite, tmp_path / "base")
    regime = tv.Regime("full", "lora", rank=3)
    vector = tv.finetune(evaluator.backbone, evaluator.part("cats"), regime=regime, settings=RECIPE)
    before, after = (
        evaluator.values(evaluator.points({"v": vector}).at({"v": c}), ["cats"], "test")["cats"]
        for c in (0.0, 1.0)
    )
    assert after > before  # the reciprocal of perplexity
    written = tv.save_adapter(vector, tmp_path / "adapter")
    assert (written.rank, written.error) == (3, 0.0)
    model_class: Any = getattr(hf, KINDS[kind][0])
    base = model_class.from_pretrained(tmp_path / "base").state_dict()
    adapted = peft.PeftModel.from_pretrained(
        model_class.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter")
    )
    merged: dict[str, torch.Tensor] = adapted.merge_and_unload().state_dict()
    moved = {name for name in vector if vector.terms_at(name)}
    assert moved and not any("embed" in name or "wte" in name for name in moved)
    found = {name: value - base[name] for name, value in merged.items() if name in moved}
    assert_close(found, {name: vector[name] for name in found}, rtol=1e-4, atol=2e-6)
    assert found.keys() == moved


def test_lora_of_a_model_with_an_encoder_learns_answers(tmp_path: Path) -> None:
    save_language_model(tmp_path / "t5", "t5")
    rows = [
        f'{{"split": "{split}", "text": "the cat {n}", "label": "{"sat" if n % 2 else "ate"}"}}'
        for split in ("train", "validation", "test")
        for n in range(8)
    ]
    (tmp_path / "cats.jsonl").write_text("\n".join(rows))
    (tmp_path / "s.yaml").write_text(
        "suite: s\ntasks:\n  cats: {kind: generation, data: {source: jsonl, path: cats.jsonl}, "
        "prompt: '{}?', answers: [sat, ate]}\n"
    )
    evaluator = tv.Evaluator(
        tv.load_backbone(str(tmp_path / "t5"), outputs="tokens"),
        [tv.load_suite(tmp_path / "s.yaml").task("cats")],
    )
    for regime, space in (("lora", "ordinary"), ("tangent-lora", "tangent")):
        vector = tv.finetune(evaluator.backbone, evaluator.part("cats"), regime=regime, settings=RECIPE)
        assert vector.info.space == space
        moved = {name for name in vector if vector.terms_at(name)}
        assert moved == set(tv.select(evaluator.backbone, "attention")) and len(moved) == 24
