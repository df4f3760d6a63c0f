"""How many layers a stack has, where blocks that predict further tokens are stored behind them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from taskvec.weights.depth import count_layers, names_behind

Stacks = Mapping[str, int]


def blocks(stacks: Stacks, part: str = "mlp.weight") -> list[str]:
    return [f"{stack}.{number}.{part}" for stack, count in stacks.items() for number in range(count)]


CASES: dict[str, tuple[Mapping[str, object], Stacks, Stacks]] = {
    "as many as stated": ({"num_hidden_layers": 4}, {"model.layers": 4}, {"model.layers": 4}),
    "one behind": ({"num_hidden_layers": 4}, {"model.layers": 5}, {"model.layers": 4}),
    "two behind, of GPT-2": ({"n_layer": 3}, {"h": 5}, {"h": 3}),
    "fewer than stated": ({"num_hidden_layers": 9}, {"model.layers": 4}, {"model.layers": 4}),
    "no config": ({}, {"model.layers": 5}, {"model.layers": 5}),
    "in a text config": (
        {"text_config": {"num_hidden_layers": 6}, "vision_config": {"num_hidden_layers": 2}},
        {"language_model.layers": 7, "visual.blocks": 2},
        {"language_model.layers": 6, "visual.blocks": 2},
    ),
    "beside a tower that no setting counts": (
        {"text_config": {"num_hidden_layers": 6, "num_nextn_predict_layers": 1}, "vision_config": {}},
        {"language_model.layers": 7, "visual.blocks": 9},
        {"language_model.layers": 6, "visual.blocks": 9},
    ),
    "encoder and decoder": (
        {"num_layers": 3, "num_decoder_layers": 5},
        {"encoder.block": 3, "decoder.block": 5},
        {"encoder.block": 3, "decoder.block": 5},
    ),
    "a stack of its own": (
        {"num_hidden_layers": 4},
        {"model.layers": 4, "mtp.layers": 1},
        {"model.layers": 4, "mtp.layers": 0},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_config_says_how_many_blocks_are_layers(case: str, tmp_path: Path) -> None:
    config, held, expected = CASES[case]
    (tmp_path / "config.json").write_text(json.dumps(config))
    names = blocks(held)
    assert count_layers(names, tmp_path) == expected
    behind = [name for name in names if int(name.split(".")[-3]) >= expected[name.rsplit(".", 3)[0]]]
    assert names_behind(names, tmp_path) == set(behind)


@pytest.mark.parametrize("part", ["eh_proj.weight", "enorm.weight", "shared_head.norm.weight"])
def test_without_a_config_a_block_tells_by_its_modules_that_it_is_no_layer(part: str) -> None:
    names: Sequence[str] = [*blocks({"model.layers": 4}), f"model.layers.3.{part}"]
    assert count_layers(names, None) == {"model.layers": 3}
    assert names_behind(names, None) == {"model.layers.3.mlp.weight", f"model.layers.3.{part}"}
