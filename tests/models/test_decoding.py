"""What a language model writes is what its logits say, and what is drawn is fixed by the seed."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from taskvec.errors import Diverged
from taskvec.models.decoding import Decoding, continuations, inverted
from tiny_networks import build

KINDS = ["gpt2", "llama", "mamba", "t5"]
CONTEXTS = [[3, 4, 5], [7], [9, 8, 7], [6, 6], [3, 4, 5]]
END = [2]


@pytest.fixture(scope="module", params=KINDS)
def network(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    made = build(request.param)
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(4)  # so that tokens differ in probability
    return made.eval()


write = partial(continuations, start=0)


def next_logits(network: Any, context: list[int], written: list[int]) -> Any:
    """Logits of the next token, from the whole text at once and without a cache."""
    with torch.no_grad():
        if network.config.is_encoder_decoder:
            start = [0]
            both = network(
                input_ids=torch.tensor([context]), decoder_input_ids=torch.tensor([start + written])
            )
            return both.logits[0, -1].double()
        return network(input_ids=torch.tensor([context + written])).logits[0, -1].double()


def by_hand(network: Any, context: list[int], decoding: Decoding, draws: Tensor | None) -> list[int]:
    written: list[int] = []
    for step in range(decoding.tokens):
        logits = next_logits(network, context, written)
        if draws is None:
            token = int(logits.argmax())
        else:
            kept = logits / decoding.temperature
            order = kept.argsort(descending=True)
            if decoding.top_k:
                kept[order[decoding.top_k :]] = -torch.inf
            order = kept.argsort(descending=True)
            before = kept.softmax(0)[order].cumsum(0) - kept.softmax(0)[order]
            kept[order[before >= decoding.top_p]] = -torch.inf
            token = int((kept.softmax(0).cumsum(0) <= draws[step]).sum())
        if token in END:
            break
        written.append(token)
    return written


def test_the_likeliest_tokens_are_written(network: Any) -> None:
    decoding = Decoding(6)
    expected = [by_hand(network, context, decoding, None) for context in CONTEXTS]
    assert write(network, CONTEXTS, decoding, end=END) == expected


@pytest.mark.parametrize(
    "decoding",
    [Decoding(6, temperature=1.0), Decoding(6, 0.7, top_k=5), Decoding(6, 1.3, top_k=20, top_p=0.6)],
    ids=["all", "top-k", "top-p"],
)
def test_drawn_tokens_follow_the_distribution_of_the_logits(network: Any, decoding: Decoding) -> None:
    generator = torch.Generator().manual_seed(5)
    draws = torch.rand(len(CONTEXTS), 6, generator=generator, dtype=torch.float64)
    expected = [
        by_hand(network, context, decoding, row) for context, row in zip(CONTEXTS, draws, strict=True)
    ]
    assert write(network, CONTEXTS, decoding, end=END, seed=5) == expected


def test_what_is_written_depends_on_the_seed_alone(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoding = Decoding(8, temperature=1.0)
    first = write(network, CONTEXTS, decoding, end=END)
    torch.rand(7)
    state = torch.get_rng_state()
    monkeypatch.setattr("taskvec.models.decoding.TOGETHER", 1)
    assert write(network, CONTEXTS, decoding, end=END) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert write(network, CONTEXTS, decoding, end=END, seed=1) != first


def test_the_checkpoint_s_own_settings_change_nothing(network: Any) -> None:
    before = write(network, CONTEXTS, Decoding(6), end=END)
    own = network.generation_config
    for name, value in {"num_beams": 3, "max_length": 4, "suppress_tokens": before[0]}.items():
        setattr(own, name, value)
    try:
        assert write(network, CONTEXTS, Decoding(6), end=END) == before
        assert network.generation_config is own
    finally:
        for name in ("num_beams", "max_length", "suppress_tokens"):
            setattr(own, name, None)


def test_repeating_costs_what_the_penalty_says() -> None:
    torch.manual_seed(0)
    network = build("gpt2").eval()
    [plain] = write(network, [[3, 4]], Decoding(10), end=END)
    [other] = write(network, [[3, 4]], Decoding(10, repetition_penalty=50.0), end=END)
    assert len(set(other)) > len(set(plain))


def test_a_model_that_has_diverged_is_said_to_have() -> None:
    network = build("gpt2").eval()
    with torch.no_grad():
        network.transformer.wte.weight.fill_(torch.nan)
    for temperature in (0.0, 1.0):
        with pytest.raises(Diverged, match="not finite"):
            write(network, [[3]], Decoding(2, temperature), end=END)


def test_frequencies_of_drawn_tokens_are_their_probabilities() -> None:
    logits = torch.tensor([1.0, -torch.inf, 0.0, 2.0, -torch.inf])
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = inverted(logits.expand(len(uniform), -1), uniform)
    shares = torch.bincount(chosen, minlength=5) / len(uniform)
    torch.testing.assert_close(shares, logits.softmax(0), atol=0.015, rtol=0)
    edges = inverted(logits.expand(2, -1), torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
    assert edges.tolist() == [0, 3]
