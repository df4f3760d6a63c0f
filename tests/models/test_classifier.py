"""Classifiers with their own trained head."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from transformers import AutoModelForImageClassification
from transformers.models.auto import modeling_auto

import image_families
from classifiers import build, nudge, save_text, save_tokenizer
from effort import EFFORT
from taskvec.errors import InputError
from taskvec.models.classifier import ImageClassifier, TextClassifier, load
from taskvec.models.functional import encode
from taskvec.training.space import linearized

FAMILIES = {
    "bert": "classifier",
    "roberta": "classifier",
    "distilbert": "pre_classifier classifier",
    "deberta-v2": "pooler.dense classifier",
    "xlnet": "sequence_summary.summary logits_proj",
    "electra": "classifier",
    "modernbert": "head classifier",
    "gpt2": "score",
    "llama": "score",
    "t5": "classification_head",
    "bart": "classification_head",
}
"""Where the parameters of the head lie."""
TEXTS = ["one two three good film", "a dog", "bad"]
CLASSES = ["a", "b", "c"]


def loaded(folder: Path, family: str, **more: Any) -> tuple[Any, TextClassifier]:
    network, backbone = save_text(folder, family, **more), load(str(folder)).eval()
    assert isinstance(backbone, TextClassifier)
    for name in ("pad_token_id", "decoder_start_token_id"):
        if getattr(network.config, name, None) is None:
            setattr(network.config, name, 0)
    return network, backbone


def inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("family", FAMILIES)
def test_features_and_head_give_the_logits_of_transformers(family: str, tmp_path: Path) -> None:
    network, backbone = loaded(tmp_path, family)
    batch = backbone.collate(TEXTS)
    with torch.no_grad():
        assert_close(backbone.trained.head(CLASSES)(backbone(**batch)), network(**inputs(batch)).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_what_transformers_puts_on_top_and_the_rest_is_trained(
    family: str, tmp_path: Path
) -> None:
    network, backbone = loaded(tmp_path, family)
    head, moved = backbone.head_parameters(), backbone.encoder_parameters()
    assert all(name.startswith(tuple(FAMILIES[family].split())) for name in head)
    assert head.keys().isdisjoint(moved)
    for name, value in {**head, **moved}.items():
        assert_close(value.detach(), network.state_dict()[name], rtol=0, atol=0)
    others = network.base_model.named_parameters(prefix=network.base_model_prefix)
    lacking = {name for name, _ in others} - moved.keys()
    assert all(
        "pooler" in name or "mask_emb" in name or "r_s_bias" in name or "seg_embed" in name
        for name in lacking
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_company_change_nothing(family: str, tmp_path: Path) -> None:
    _, backbone = loaded(tmp_path, family)
    with torch.no_grad():
        together = backbone(**backbone.collate(TEXTS))
        alone = torch.cat([backbone(**backbone.collate([text])) for text in TEXTS])
    assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["roberta", "gpt2", "t5"])
def test_the_tangent_space_reaches_through_the_cut(family: str, tmp_path: Path) -> None:
    _, backbone = loaded(tmp_path, family)
    backbone.double()
    start = {name: value.detach() for name, value in backbone.encoder_parameters().items()}
    draw = torch.Generator().manual_seed(1)
    tau = {n: torch.randn(v.shape, generator=draw, dtype=torch.float64) for n, v in start.items()}
    batch = backbone.collate(TEXTS)
    with sdpa_kernel(SDPBackend.MATH):
        value, slope, *_ = torch.func.jvp(lambda params: encode(backbone, params, batch), (start,), (tau,))
    assert_close(linearized(backbone)(tau, batch), value + slope, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "t5"])
def test_a_base_model_has_the_features_of_its_classifier_and_no_head(family: str, tmp_path: Path) -> None:
    network, whole = loaded(tmp_path / "whole", family)
    network.base_model.save_pretrained(tmp_path / "base")
    for file in (tmp_path / "whole").glob("token*"):
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    base = load(str(tmp_path / "base")).eval()
    batch = whole.collate(TEXTS)
    assert_close(base(**batch), whole(**batch))
    with pytest.raises(
        InputError, match=f"/base: has no trained head .the checkpoint lacks '{FAMILIES[family]}"
    ):
        base.trained.head(CLASSES)


def test_a_pooler_that_the_base_lacks_belongs_to_the_head(tmp_path: Path) -> None:
    network, whole = loaded(tmp_path / "whole", "bert")
    (tmp_path / "base").mkdir()
    for file in (tmp_path / "whole").iterdir():
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "whole" / "model.safetensors")
    kept = {name: value for name, value in state.items() if "pooler" not in name and "classifier" not in name}
    save_file(kept, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    base = load(str(tmp_path / "base")).eval()
    lent = load(str(tmp_path / "whole"), base.trained.fresh)
    batch = whole.collate(TEXTS)
    with torch.no_grad():
        assert_close(
            lent.trained.head(CLASSES)(base(**batch)), network(**inputs(batch)).logits, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("labels", "classes", "wordings", "places"),
    [
        (["LABEL_0", "LABEL_1", "LABEL_2"], ["no", "maybe", "yes"], {}, [0, 1, 2]),
        (["0", "1", "2"], ["no", "maybe", "yes"], {}, [0, 1, 2]),
        (["2", "0", "1"], ["0", "1", "2"], {}, [1, 2, 0]),
        (["LABEL_2", "LABEL_0", "LABEL_1"], ["no", "maybe", "yes"], {}, [1, 2, 0]),
        (["class 3", "class 1", "class 2"], ["no", "maybe", "yes"], {}, [1, 2, 0]),
        (
            ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"],
            ["entailment", "neutral", "contradiction"],
            {},
            [2, 1, 0],
        ),
        (["Very_Good", "bad", "so-so"], ["bad", "so so", "very good"], {}, [1, 2, 0]),
        (["NEG", "NEU", "POS"], ["good", "neu", "bad"], {"good": ["pos"], "bad": ["a", "neg"]}, [2, 1, 0]),
    ],
)
def test_the_rows_of_the_head_follow_the_classes_of_the_task(
    labels: list[str],
    classes: list[str],
    wordings: dict[str, list[str]],
    places: list[int],
    tmp_path: Path,
) -> None:
    network, backbone = loaded(tmp_path, "roberta", id2label=dict(enumerate(labels)))
    batch = backbone.collate(TEXTS)
    with torch.no_grad():
        expected = network(**inputs(batch)).logits[:, places]
        head = backbone.trained.head(classes, wordings)
        assert_close(head(backbone(**batch)), expected)
    assert head.kind == "own" and not any(parameter.requires_grad for parameter in head.parameters())


@pytest.mark.parametrize(
    ("more", "classes", "complaint"),
    [
        (
            {},
            ["no", "yes"],
            r"has the classes \['LABEL_0', .*\], and the task the classes \['no', 'yes'\]; list",
        ),
        ({"id2label": {0: "x", 1: "y", 2: "z"}}, CLASSES, "give the head's name of 'a' under 'wordings'"),
        (
            {"id2label": {0: "a", 1: "b", 2: "b"}},
            CLASSES,
            "the head's name of 'b' once; correct .*'id2label'",
        ),
        (
            {"labels": 9, "id2label": {**dict(enumerate("abcdefg")), 7: "LABEL_7", 8: "x"}},
            list("abcdefghi"),
            r"has 9 classes, 'LABEL_7' \(1 more\) among them, expected 9 classes .* name of 'h' under",
        ),
        ({"labels": 1}, CLASSES, "gives one number, expected one of .* kind: regression"),
        ({"problem_type": "multi_label_classification"}, CLASSES, "several labels at once"),
    ],
)
def test_a_head_over_other_classes_is_refused_in_one_line(
    more: dict[str, Any], classes: list[str], complaint: str, tmp_path: Path
) -> None:
    _, backbone = loaded(tmp_path, "bert", **more)
    with pytest.raises(
        InputError, match=f"^{tmp_path}: its head {complaint}" if more.get("labels") else complaint
    ) as caught:
        backbone.trained.head(classes)
    assert "\n" not in str(caught.value)


def test_an_edit_moves_the_head_and_nothing_else_does(tmp_path: Path) -> None:
    network, backbone = loaded(tmp_path, "roberta")
    head = backbone.trained.head(CLASSES)
    moved = {name: value + 1 for name, value in backbone.head_parameters().items()}
    batch = backbone.collate(TEXTS)
    with torch.no_grad():
        before = head(backbone(**batch))
        after = head.at(moved)(backbone(**batch))
        network.load_state_dict({**network.state_dict(), **moved})
        assert_close(after, network(**inputs(batch)).logits)
        assert torch.equal(head(backbone(**batch)), before)
    assert head.at({}) is head and head.at(moved).fingerprint() != head.fingerprint()


def test_a_text_that_holds_the_end_is_refused_where_the_head_looks_for_it(tmp_path: Path) -> None:
    _, backbone = loaded(tmp_path, "t5")
    with pytest.raises(InputError, match="hold the token '</s>'"):
        backbone.prepare(["one two", "a </s> film </s>"])


def test_a_text_is_cut_before_its_end_is_added(tmp_path: Path) -> None:
    _, backbone = loaded(tmp_path, "t5")
    [tokens] = backbone.prepare(["one two three four"], 3)
    assert tokens["input_ids"] == [4, 5, 2]


def test_an_empty_text_is_one_token(tmp_path: Path) -> None:
    _, backbone = loaded(tmp_path, "gpt2")
    assert backbone(**backbone.collate(["", "one two"])).isfinite().all()
    assert backbone(**backbone.collate([""])).shape == (1, 32)


IMAGES = [
    "vit",
    "dinov2",
    "deit",
    "beit",
    "convnext",
    "resnet",
    "regnet",
    "swin",
    "mobilenet_v2",
    "levit",
    "cvt",
]


def save_image(folder: Path, family: str, labels: int = 3) -> Any:
    config = image_families.build(family, num_labels=labels).config
    single = {"deit": "DeiT", "levit": "Levit"}  # not the variant with a teacher, which has two heads
    config.architectures = [f"{single[family]}ForImageClassification"] if family in single else None
    torch.manual_seed(0)
    auto: Any = AutoModelForImageClassification
    network = nudge(auto.from_config(config).eval(), 1)
    network.save_pretrained(folder)
    return network


def pictures(count: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (20, 30, 3), generator=draw, dtype=torch.uint8) for _ in range(count)]


@pytest.mark.parametrize("family", IMAGES)
def test_image_classifiers_give_the_logits_of_transformers(family: str, tmp_path: Path) -> None:
    network, backbone = save_image(tmp_path, family), load(str(tmp_path)).eval()
    assert isinstance(backbone, ImageClassifier)
    batch = backbone.collate(pictures(3))
    with torch.no_grad():
        expected = network(pixel_values=backbone.normalized(batch["pixel_values"])).logits
        assert_close(backbone.trained.head(CLASSES)(backbone(**batch)), expected, rtol=1e-4, atol=1e-5)
    assert not backbone.encoder_parameters().keys() & backbone.head_parameters().keys()
    assert all("classifier" in name for name in backbone.head_parameters())


def test_two_heads_that_are_averaged_are_refused(tmp_path: Path) -> None:
    save_image(tmp_path, "swiftformer")
    with pytest.raises(
        InputError, match="the head of SwiftFormerForImageClassification is no chain of layers"
    ):
        load(str(tmp_path))


EVERY = {
    what: sorted(getattr(modeling_auto, f"MODEL_FOR_{what}_CLASSIFICATION_MAPPING_NAMES"))
    for what in ("SEQUENCE", "IMAGE")
}


@pytest.mark.skipif(EFFORT == 1, reason="every family of transformers, with TASKVEC_EFFORT")
@pytest.mark.parametrize(
    ("what", "family"), [(what, name) for what, names in EVERY.items() for name in names]
)
def test_every_family_that_can_be_built_is_taken_apart(what: str, family: str, tmp_path: Path) -> None:
    try:
        network = build(family, what)
        if sum(weight.numel() for weight in network.parameters()) > 20_000_000:
            pytest.skip("large")
        network.save_pretrained(tmp_path)
    except Exception as error:  # whatever a family raises that wants another configuration
        pytest.skip(f"not built: {type(error).__name__}")
    save_tokenizer(tmp_path)
    try:
        backbone = load(str(tmp_path)).eval()
    except InputError as error:
        known = "smallest input|is no chain of layers|num_channels|preprocess"
        assert re.search(known, str(error)), error
        pytest.skip(str(error))
    batch = backbone.collate(TEXTS if what == "SEQUENCE" else pictures(2))
    if isinstance(backbone, ImageClassifier):
        read = {"pixel_values": backbone.normalized(batch["pixel_values"]).contiguous()}
    else:
        network.config.get_text_config().pad_token_id = backbone.padding
        if family == "t5":
            network.config.decoder_start_token_id = backbone.padding
        read = inputs(batch)
    with torch.no_grad():
        expected = network(**read).logits
        assert_close(backbone.trained.head(CLASSES)(backbone(**batch)), expected, rtol=1e-4, atol=1e-5)


def test_a_classifier_of_nan_is_called_what_it_is(tmp_path: Path) -> None:
    network, _ = loaded(tmp_path, "bert")
    network.classifier.weight.data[0, 0] = torch.nan
    network.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"'classifier\.weight' holds NaN or infinity"):
        load(str(tmp_path))
