"""What the built-in model is pre-trained on: the same everywhere, true to its captions, and not the tasks."""

import hashlib

import captioned_pictures as pictures
from taskvec.tasks.builtin import contents as c
from taskvec.tasks.builtin.drawing import COLOURS


def test_pretraining_is_the_same_on_every_machine() -> None:
    drawn = pictures.captioned(0, 3)
    assert hashlib.sha256(drawn.images.tobytes()).hexdigest()[:16] == "8bd27d7b0c6d8fef"
    assert hashlib.sha256("\n".join(drawn.captions).encode()).hexdigest()[:16] == "2813b7a1b21ddcda"


def test_tasks_and_pretraining_share_no_font() -> None:
    assert not set(c.SEEN_FONTS) & set(c.UNSEEN_FONTS)
    assert not set(pictures.ARROWS) & set(c.POINTERS)


def test_a_caption_is_true_of_its_own_picture() -> None:
    drawn = pictures.captioned(1, 0)
    true = pictures.true_of(drawn.claims, drawn.facts)
    assert true.diagonal().all()
    assert 0.001 < true.mean() < 0.1


def test_a_caption_says_what_its_claims_say() -> None:
    drawn = pictures.captioned(1, 1)
    for caption, (_, content, ink, ground, style) in zip(drawn.captions, drawn.claims, strict=True):
        if content >= 0:
            domain, name = pictures.CONTENTS[content]
            assert pictures.DOMAINS[domain].phrase.format(name) in caption
        for claim, names in ((ink, list(COLOURS)), (ground, list(COLOURS)), (style, pictures.STYLES)):
            assert claim < 0 or names[claim] in caption


def test_every_caption_fits_the_vocabulary() -> None:
    words = set(pictures.vocabulary())
    captions = (*pictures.captioned(2, 0).captions, *pictures.every_content()[0])
    assert all(set(caption.split()) <= words and len(caption.split()) <= 16 for caption in captions)


def test_each_content_is_described_once() -> None:
    captions, claims = pictures.every_content()
    assert len(set(captions)) == len(captions) == len(pictures.CONTENTS)
    assert pictures.true_of(claims, claims).sum() == len(captions)
