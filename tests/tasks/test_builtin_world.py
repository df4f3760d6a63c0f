"""The built-in world: the same everywhere, true to its captions, and what the suite says it is."""

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from captioned_pictures import vocabulary
from taskvec.errors import InputError
from taskvec.tasks.builtin import contents as c
from taskvec.tasks.builtin import scenes
from taskvec.tasks.builtin.drawing import generator
from taskvec.tasks.builtin.source import SCENE_NAMES, BuiltinWorld
from taskvec.tasks.suite import load_suite

DIGESTS = {
    "letters": "4b1905bb80e00188",
    "display": "13c55f7f70246394",
    "streetnum": "651be6bf2492643e",
    "greek": "3c405470a3496703",
    "constellation": "e2558676323257c8",
    "gabor": "f94c2a87cf2bd328",
    "pointing": "4bc163e813d5a480",
    "control": "0e9fe15d778f97e3",
    "handwritten": "dc58800df8a5f028",
}


def digest(array: NDArray[np.generic]) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("scene", list(scenes.SCENES))
def test_scenes_are_drawn_alike_on_every_machine(scene: str) -> None:
    draw, count = scenes.SCENES[scene]
    images = draw(generator(0, "pinned", scene), np.arange(40, dtype=np.int64) % count)
    assert images.shape == (40, 32, 32, 3)
    assert digest(images) == DIGESTS[scene]


def test_handwritten_digits_are_the_same_on_every_machine() -> None:
    assert digest(scenes.pictures("handwritten", "test").images) == DIGESTS["handwritten"]


def test_every_character_is_in_its_fonts() -> None:
    latin = {*c.LETTERS, *c.CAPITALS, *c.DIGITS}
    for fonts, chars in (
        ((*c.SEEN_FONTS, *c.UNSEEN_FONTS), latin),
        ((*c.GREEK_FONTS, *c.UNSEEN_GREEK_FONTS), set(c.GREEK.values())),
        (c.ICON_FONTS, set(c.ICONS.values())),
    ):
        for font in fonts:
            assert chars <= c.characters(font), font


def test_a_character_that_a_font_lacks_is_refused() -> None:
    with pytest.raises(InputError, match="font 'cmr10' has no '☂'"):
        c.glyph("☂", "cmr10")


def test_splits_have_their_sizes_and_balanced_labels() -> None:
    for split, size in scenes.SIZES.items():
        drawn = scenes.pictures("gabor", split)
        assert len(drawn.images) == len(drawn.labels) == size
        assert len(set(Counter(drawn.labels.tolist()).values())) == 1


def test_splits_and_seeds_differ() -> None:
    drawn = [scenes.pictures("display", "test", seed).images for seed in (0, 1)]
    drawn.append(scenes.pictures("display", "validation").images)
    assert len({digest(images) for images in drawn}) == 3


def test_handwritten_splits_share_no_scan() -> None:
    seen = [scan.tobytes() for split in scenes.SIZES for scan in scenes.pictures("handwritten", split).images]
    assert len(seen) == 1797
    assert len(set(seen)) == len(seen)


def test_only_some_classes_can_be_drawn() -> None:
    for scene in ("display", "handwritten"):
        drawn = scenes.pictures(scene, "test", 0, (5, 7))
        assert set(drawn.labels.tolist()) == {5, 7}


def test_unknown_scenes_and_splits_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'greek'"):
        scenes.pictures("greeek", "test")
    with pytest.raises(InputError, match="did you mean 'train'"):
        scenes.pictures("greek", "trian")
    with pytest.raises(InputError, match="did you mean 'gabor'"):
        BuiltinWorld.parse("suite.yaml", {"source": "builtin", "scene": "gabbor"})


def test_the_listed_scenes_are_those_that_are_drawn() -> None:
    assert set(SCENE_NAMES) == {*scenes.SCENES, "handwritten"}


def test_the_suite_has_eight_tasks_and_a_control() -> None:
    suite = load_suite("builtin8")
    assert len(suite.tasks) == 9
    assert suite.control == "control"
    for name, task in suite.tasks.items():
        count = 10 if name == "handwritten" else scenes.SCENES[name][1]
        assert len(task.classes) == count
        words = {word for t in task.templates for k in task.classes for word in t.replace("{}", k).split()}
        assert words <= set(vocabulary())


def test_a_task_of_the_suite_gives_pictures_and_labels() -> None:
    task = load_suite("builtin8").task("pointing")
    split = task.split("validation", limit=7)
    assert len(split) == 7
    assert all(image.shape == (32, 32, 3) and image.dtype == torch.uint8 for image in split.inputs)
    assert task.fingerprint == load_suite("builtin8").task("pointing").fingerprint


def test_analogy_tasks_hold_half_of_the_digits_each() -> None:
    suite = load_suite("builtin-analogy")
    for name, task in suite.tasks.items():
        split = task.split("validation", limit=200)
        half = set(range(5)) if name.endswith("low") else set(range(5, 10))
        assert set(split.labels.tolist()) == half
