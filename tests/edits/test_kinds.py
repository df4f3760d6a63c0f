"""Settings that say of what kind each layer is, for a model of other layers: known without transformers."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from taskvec.edits.kinds import describe

Settings = Mapping[str, Any]

# Settings, the layers taken, the settings that change beside num_hidden_layers.
FOLLOWED: dict[str, tuple[Settings, Sequence[int], Settings]] = {
    "a list by layer": ({"layer_types": list("abcd")}, [3, 0, 0], {"layer_types": list("daa")}),
    "a list of sizes": ({"num_key_value_heads": [1, 2, 4, 8]}, [1, 2], {"num_key_value_heads": [2, 4]}),
    "a list for blocks behind too": (
        {"layer_types": list("abcdm"), "num_nextn_predict_layers": 1},
        [0, 3],
        {"layer_types": list("adm")},
    ),
    "numbers": ({"cross_attention_layers": [1, 3]}, [1, 2, 3, 3], {"cross_attention_layers": [0, 2, 3]}),
    "numbers of all layers": ({"moe_layers": [0, 1, 2, 3]}, [0, 1, 0, 1, 2], {"moe_layers": [0, 1, 2, 3, 4]}),
    "numbers of none": ({"mlp_only_layers": []}, [0, 1, 0], {}),
    "numbers by another name": ({"full_attn_idxs": [0]}, [1, 0], {"full_attn_idxs": [1]}),
    "switches that look like numbers": (
        {"no_rope_layers": [0, 1, 1, 0]},
        [0, 1, 3],
        {"no_rope_layers": [0, 1, 0]},
    ),
    "two switches": (
        {"num_hidden_layers": 2, "no_rope_layers": [0, 1]},
        [0, 0, 1],
        {"no_rope_layers": [0, 0, 1]},
    ),
    "letters": ({"hybrid_override_pattern": "M-M*"}, [3, 0, 1], {"hybrid_override_pattern": "*M-"}),
    "repeated kinds": ({"block_types": ["r", "a"]}, [1, 2, 3], {"block_types": ["a", "r", "a"]}),
    "kinds and how often": (
        {"attention_types": [[["global", "local"], 2]]},
        [1, 1, 2],
        {"attention_types": [[["local", "local", "global"], 1]]},
    ),
    "a count": ({"first_k_dense_replace": 2}, [1, 2, 3], {"first_k_dense_replace": 1}),
    "a count of none": ({"first_k_dense_replace": 2}, [2, 3, 3], {"first_k_dense_replace": 0}),
    "a count of all": ({"num_dense_layers": 2}, [0, 1, 0], {"num_dense_layers": 3}),
    "a count from the end": ({"num_kv_shared_layers": 2}, [0, 3, 3, 3], {"num_kv_shared_layers": 3}),
    "a count beside a step that transformers ignores": (
        {"first_k_dense_replace": 1, "moe_layer_freq": 1},
        [0, 0, 1],
        {"first_k_dense_replace": 2},
    ),
    "windows": ({"attention_window": [8, 8, 16, 16]}, [1, 2, 2], {"attention_window": [8, 16, 16]}),
    "two numbers of no layers": (
        {"num_hidden_layers": 2, "mlp_multipliers": [1, 2]},
        [0, 0, 1],
        {},
    ),
    "a period": (
        {"attn_layer_period": 2, "attn_layer_offset": 1},
        [1, 2, 3],
        {"attn_layer_period": 2, "attn_layer_offset": 0},
    ),
    "a period by its default": (
        {"expert_layer_period": 2},
        [0, 3, 2],
        {},
    ),
    "no layer of the kind": (
        {"attn_layer_period": 4, "attn_layer_offset": 3},
        [0, 1, 2, 0],
        {"attn_layer_period": 5, "attn_layer_offset": 4},
    ),
    "a step instead of which a list serves": (
        {"decoder_sparse_step": 2, "mlp_only_layers": [3]},
        [1, 2, 3, 1],
        {"decoder_sparse_step": 1, "mlp_only_layers": [1, 2]},
    ),
    "a step that a list makes idle": (
        {"full_attention_interval": 4, "layer_types": list("lllf")},
        [3, 0],
        {"layer_types": list("fl")},
    ),
    "windows that are off": ({"max_window_layers": 2, "use_sliding_window": False}, [3, 0], {}),
    "stages that follow from the number of layers": (
        {"patch_size": [8, 8, 8, 8], "out_indices": [2, 4]},
        [0, 1],
        {},
    ),
    "what has nothing to do with layers": (
        {"eos_token_id": [0, 1, 2, 3], "architectures": ["A"], "mtp_layers_block_type": list("abcd")},
        [0, 1],
        {},
    ),
    "by its old name": (
        {"num_hidden_layers": None, "n_layer": 4},
        [0, 1],
        {"num_hidden_layers": None, "n_layer": 2},
    ),
}


@pytest.mark.parametrize("case", FOLLOWED)
def test_settings_follow_the_layers(case: str) -> None:
    settings, numbers, changed = FOLLOWED[case]
    settings = {"num_hidden_layers": 4, **settings}
    made, unsettled = describe(settings, [(settings, number) for number in numbers])
    assert not unsettled
    assert made == {**settings, "num_hidden_layers": len(numbers), **changed}


UNSETTLED: dict[str, tuple[Settings, Sequence[int], str, int]] = {
    "dense layers twice": ({"first_k_dense_replace": 1}, [0, 1, 2, 0, 1], "first_k_dense_replace", 3),
    "attention out of step": (
        {"attn_layer_period": 2, "attn_layer_offset": 0},
        [0, 1, 2, 2, 3],
        "attn_layer_period and attn_layer_offset",
        3,
    ),
    "windows out of step": ({"sliding_window_pattern": 2}, [0, 1, 0, 0, 1], "sliding_window_pattern", 3),
    "shared layers before others": ({"num_kv_shared_layers": 1}, [3, 0], "num_kv_shared_layers", 1),
}


@pytest.mark.parametrize("case", UNSETTLED)
def test_where_no_value_is_right_the_setting_and_the_layer_are_named(case: str) -> None:
    settings, numbers, keys, layer = UNSETTLED[case]
    settings = {"num_hidden_layers": 4, **settings}
    made, [unsettled] = describe(settings, [(settings, number) for number in numbers])
    assert unsettled == (keys, layer)
    assert made == {**settings, "num_hidden_layers": len(numbers)}


def test_each_layer_is_described_by_its_own_model() -> None:
    one = {"num_hidden_layers": 3, "mlp_only_layers": [0], "layer_types": list("abc")}
    other = {"num_hidden_layers": 4, "mlp_only_layers": [2, 3], "layer_types": list("wxyz")}
    made, unsettled = describe(one, [(one, 0), (one, 1), (other, 1), (other, 2)])
    assert not unsettled
    assert made == {"num_hidden_layers": 4, "mlp_only_layers": [0, 3], "layer_types": list("abxy")}


HOSTILE: dict[str, Settings] = {
    "huge repetition": {"attention_types": [[["a"], 10**12]]},
    "repetition of nothing": {"attention_types": [[["a"], 0]]},
    "not a repetition": {"attention_types": [1, [2]]},
    "numbers beyond all bounds": {"moe_layers": [10**30], "first_k_dense_replace": 10**30},
    "steps of nothing": {"decoder_sparse_step": 0, "attn_layer_period": 0, "interleave_moe_layer_step": -1},
    "words for numbers": {
        "first_k_dense_replace": "2",
        "mlp_only_layers": "0",
        "num_nextn_predict_layers": [],
    },
    "lists of anything": {"layer_types": [None, {}, [], 1.5], "mlp_only_layers": [{}, [], None, True]},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_settings_that_mean_nothing_do_no_harm(case: str) -> None:
    settings = {"num_hidden_layers": 4, **HOSTILE[case]}
    made, _ = describe(settings, [(settings, 3), (settings, 0)])
    assert made["num_hidden_layers"] == 2


def test_the_stages_of_a_backbone_are_left_to_follow_from_the_number_of_layers() -> None:
    stages = {"stage_names": list("sabc"), "out_features": ["c"], "out_indices": [3]}
    settings = {"num_hidden_layers": 3, **stages}
    assert describe(settings, [(settings, 0), (settings, 2)])[0] == {"num_hidden_layers": 2}
