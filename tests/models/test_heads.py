"""Frozen heads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torch.testing import assert_close

from taskvec.errors import InputError
from taskvec.models.heads import Head, linear_probe, prompts


def gaussians(classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Well separated directions, forty examples each."""
    draw = torch.Generator().manual_seed(seed)
    centres = 3 * torch.eye(8)[:classes]
    labels = torch.arange(classes).repeat(40)
    return centres[labels] + 0.3 * torch.randn(len(labels), 8, generator=draw), labels


def test_every_template_is_filled_with_every_wording() -> None:
    found = prompts(["cat", "dog"], ["a {}", "{}!"], {"dog": ["dog", "hound"]})
    assert found == [["a cat", "cat!"], ["a dog", "a hound", "dog!", "hound!"]]


def test_a_name_with_braces_is_not_a_template() -> None:
    assert prompts(["{x}"], ["a {}"]) == [["a {x}"]]


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_probe_separates_what_is_separable(classes: int) -> None:
    features, labels = gaussians(classes)
    head = linear_probe(features, labels, [str(c) for c in range(classes)])
    assert head.weight.shape == (classes, 8)
    assert (head(features).argmax(-1) == labels).all()


def test_a_binary_probe_has_the_odds_of_the_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    features, labels = gaussians(2)
    x = normalize(features.double(), dim=-1).numpy()
    fitted = LogisticRegression(C=10.0, max_iter=1000).fit(x, labels.numpy())
    logits = linear_probe(features, labels, ["no", "yes"])(features)
    odds = torch.tensor(fitted.decision_function(x)).float()
    assert_close(logits[:, 1] - logits[:, 0], odds, rtol=1e-4, atol=1e-4)


def test_a_class_without_examples_is_never_predicted_on_the_training_data() -> None:
    features, labels = gaussians(3)
    seen = labels != 1
    head = linear_probe(features[seen], labels[seen], ["a", "b", "c"])
    assert (head(features[seen]).argmax(-1) == labels[seen]).all()


def test_a_probe_needs_two_classes() -> None:
    features, labels = gaussians(2)
    with pytest.raises(InputError, match="two classes"):
        linear_probe(features[labels == 0], labels[labels == 0], ["a", "b"])


@settings(deadline=None)
@given(st.booleans(), st.booleans())
def test_fingerprints_tell_heads_apart(normal: bool, biased: bool) -> None:
    weight = torch.arange(6.0).view(2, 3)
    bias = torch.ones(2) if biased else None
    head = Head(weight, bias, normalize=normal, classes=["a", "b"], kind="zero-shot")
    same = Head(weight.clone(), bias, normalize=normal, classes=["a", "b"], kind="zero-shot")
    others = [
        Head(weight, bias, normalize=not normal, classes=["a", "b"], kind="zero-shot"),
        Head(weight, bias, normalize=normal, classes=["a", "c"], kind="zero-shot"),
        Head(weight + 1, bias, normalize=normal, classes=["a", "b"], kind="zero-shot"),
        Head(
            weight, None if biased else torch.ones(2), normalize=normal, classes=["a", "b"], kind="zero-shot"
        ),
    ]
    assert head.fingerprint() == same.fingerprint()
    assert head.fingerprint() not in {other.fingerprint() for other in others}


def test_a_head_has_nothing_to_train_and_shares_nothing_with_its_maker() -> None:
    weight = torch.ones(2, 3)
    head = Head(weight, None, normalize=False, classes=["a", "b"], kind="zero-shot")
    weight.zero_()
    assert not list(head.parameters())
    assert head(torch.ones(1, 3)).tolist() == [[3.0, 3.0]]


def test_a_head_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match="3 classes"):
        Head(torch.ones(2, 3), None, normalize=False, classes=["a", "b", "c"], kind="zero-shot")
