"""What names of parameters say, in the layouts of the models that people merge."""

import pytest

from taskvec.names import (
    block_depths,
    block_of,
    comes_before_blocks,
    count_blocks,
    goes_by_token,
    is_embedding,
    is_head,
    layer_label,
    renumber,
)

EMBEDDINGS = (
    "model.embed_tokens.weight",
    "transformer.wte.weight",
    "bert.embeddings.word_embeddings.weight",
    "gpt_neox.embed_in.weight",
    "shared.weight",
    "backbone.embeddings.weight",
)
HEADS = ("lm_head.weight", "embed_out.weight", "cls.predictions.decoder.weight", "output.weight")
NEITHER = ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "classifier.weight", "score.weight")


@pytest.mark.parametrize("name", (*EMBEDDINGS, *HEADS, *NEITHER))
def test_tensors_over_the_tokens_are_known(name: str) -> None:
    assert (is_embedding(name), is_head(name)) == (name in EMBEDDINGS, name in HEADS)
    assert goes_by_token(name) == (name in (*EMBEDDINGS, *HEADS))
    if block_of(name) is None:
        assert comes_before_blocks(name) == (name in EMBEDDINGS)


@pytest.mark.parametrize(
    ("name", "stack", "number", "label"),
    [
        ("model.layers.3.mlp.up_proj.weight", "model.layers", 3, "model.layers.3"),
        ("h.11.attn.c_proj.bias", "h", 11, "h.11"),
        ("encoder.layer.0.output.dense.weight", "encoder.layer", 0, "encoder.layer.0"),
        ("visual.resblocks.7.ln_1.weight", "visual.resblocks", 7, "visual.resblocks.7"),
    ],
)
def test_a_name_tells_the_stack_and_the_number_of_its_block(
    name: str, stack: str, number: int, label: str
) -> None:
    assert block_of(name) == (stack, number)
    assert block_of(renumber(name, 5)) == (stack, 5)
    assert layer_label(name) == label


def test_outside_the_blocks_there_is_no_depth() -> None:
    names = ["embed.weight", "layers.0.w", "layers.1.w", "layers.2.w", "norm.weight"]
    assert count_blocks(names) == {"layers": 3}
    assert block_depths(names) == {"layers.0.w": 0.0, "layers.1.w": 0.5, "layers.2.w": 1.0}
    assert [layer_label(name) for name in names[::4]] == ["embed", "norm"]
