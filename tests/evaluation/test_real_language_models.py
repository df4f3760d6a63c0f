"""Perplexity of a trained language model against a plain loop, where the data are at hand."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import taskvec as tv
from taskvec.models.loading import load_backbone
from taskvec.tasks.kinds.language import LanguageScore
from taskvec.tasks.task import Task

DATA = Path(os.environ.get("TASKVEC_DATA", "/nowhere"))
MODEL = DATA / "models" / "stories260K"

pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason="TASKVEC_DATA holds no models/stories260K")


@pytest.fixture(scope="module")
def backbone() -> Any:
    return load_backbone(MODEL, outputs="tokens")


def plain(text: str, context: int, stride: int) -> tuple[float, int]:
    """Perplexity and tokens by transformers alone: window by window, tokens scored before left out."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenize: Any = AutoTokenizer
    network: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    ids = torch.tensor(tokenize.from_pretrained(MODEL)(text, verbose=False)["input_ids"])
    total, count, before = 0.0, 0, 0
    for start in range(0, len(ids), stride):
        stop = min(start + context, len(ids))
        first = max(before - start, 1)
        with torch.no_grad():
            logits = network(input_ids=ids[None, start:stop]).logits[0]
        total += float(cross_entropy(logits[first - 1 : -1], ids[start + first : stop], reduction="sum"))
        count, before = count + stop - start - first, stop
        if stop == len(ids):
            break
    return math.exp(total / count), count


@pytest.mark.parametrize(
    ("file", "share", "context", "stride"),
    [
        ("tinystories_sample.txt", 0.3, 256, 256),
        ("tinystories_sample.txt", 0.3, 256, 64),
        ("tinyshakespeare.txt", 0.02, 512, 500),
        ("wikitext2_test.txt", 0.01, 100, 37),
    ],
)
def test_perplexity_is_that_of_a_plain_loop(
    file: str, share: float, context: int, stride: int, backbone: Any
) -> None:
    data = {"source": "text", "path": str(DATA / "lm" / file), "splits": {"test": share}}
    values = {"name": "demo", "kind": "language", "data": data, "context": context, "stride": stride}
    evaluator = tv.Evaluator(backbone, [Task.parse("task", values)], batch_size=5)
    found = evaluator.score(evaluator.pretrained, "demo", "test")
    text = (DATA / "lm" / file).read_text()
    expected, count = plain(text[: round(share * len(text))], context, stride)
    assert isinstance(found, LanguageScore) and found.tokens == count
    assert found.perplexity == pytest.approx(expected, rel=1e-5)
