"""Single examples: which are kept, how they look, and what of a run folder's file is believed."""

import io
import json
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash

from taskvec.errors import CorruptFile
from taskvec.studies.inspected import Inspection, _shown_input, read_examples
from taskvec.studies.numerics.choosing import choose_classified, choose_regressed, sorts_of, spread
from taskvec.studies.numerics.thumbnails import encode_png, thumbnail


def tally(predicted: list[int], labels: list[int], classes: int) -> dict[str, torch.Tensor]:
    logits = torch.zeros(len(labels), classes)
    logits[range(len(labels)), predicted] = 2.0
    return {"logits": logits, "labels": torch.tensor(labels)}


def test_examples_are_sorted_by_who_is_wrong() -> None:
    labels = [0, 1, 2, 0, 1, 2]
    merge, single = tally([0, 0, 0, 0, 2, 2], labels, 3), tally([0, 1, 0, 1, 1, 2], labels, 3)
    sorts = {how: rows.tolist() for how, rows in sorts_of(merge, single).items()}
    assert sorts == {"lost": [1, 4], "gained": [3], "both": [2]}
    said = choose_classified(merge, single, ["a", "b", "c"], 4)
    assert [(each.row, each.how, each.label) for each in said] == [
        (1, "lost", "b"),
        (4, "lost", "b"),
        (3, "gained", "a"),
        (2, "both", "c"),
    ]
    share = round(float(np.exp(2) / (np.exp(2) + 2)), 3)
    assert said[0].merge == ("a", share) and said[0].single == ("b", share)


@pytest.mark.parametrize(("count", "most"), [(0, 4), (1, 1), (3, 4), (100, 4), (7, 7), (1000, 12), (5, 0)])
def test_a_sorted_split_is_shown_from_end_to_end(count: int, most: int) -> None:
    rows = torch.arange(count) * 3
    chosen = spread(rows, most)
    assert len(chosen) == len(set(chosen)) == min(count, most) and set(chosen) <= set(rows.tolist())
    if 1 < most <= count:
        assert (chosen[0], chosen[-1]) == (0, 3 * (count - 1))


def test_a_regression_shows_where_the_merge_errs_most_beyond_the_single_model() -> None:
    labels = torch.tensor([1.0, 2.0, 3.0, 4.0])
    merge = {"predicted": torch.tensor([1.5, 5.0, 3.0, 3.0]), "labels": labels}
    single = {"predicted": torch.tensor([1.0, 2.5, 0.0, 3.0]), "labels": labels}
    said = choose_regressed(merge, single, 3)
    assert [(each.row, each.label, each.merge[0], each.single[0]) for each in said] == [
        (1, "2", "5", "2.5"),
        (0, "1", "1.5", "1"),
    ]


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (300, 5), (64, 64), (65, 64), (28, 28), (1000, 700)])
@pytest.mark.parametrize("grey", [True, False])
def test_a_thumbnail_is_the_image_made_small(size: tuple[int, int], grey: bool) -> None:
    Image = pytest.importorskip("PIL.Image")
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (3, 2, 1 if grey else 3))
    rows = np.linspace(0, 2.99, size[0]).astype(int)
    columns = np.linspace(0, 1.99, size[1]).astype(int)
    image = np.broadcast_to(coarse[rows][:, columns], (*size, 3)).astype(np.uint8)
    shown = np.asarray(Image.open(io.BytesIO(thumbnail(image))).convert("RGB"))
    scale = min(1.0, 64 / max(size))
    assert shown.shape[:2] == tuple(max(1, round(side * scale)) for side in size)
    exact = np.asarray(Image.fromarray(image).resize(shown.shape[1::-1], Image.Resampling.BOX))
    assert np.abs(shown.astype(int) - exact.astype(int)).mean() < 12  # of sixteen shades, a step is 17


def test_noise_is_written_as_it_is() -> None:
    Image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(1).integers(0, 256, (17, 9, 3)).astype(np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(encode_png(pixels)))) == pixels).all()


def test_texts_are_cut_and_pairs_are_told_apart() -> None:
    assert _shown_input("short") == {"text": "short"}
    assert len(_shown_input("word " * 1000)["text"]) <= 300
    assert _shown_input(("one", "two")) == {"text": "one ‖ two"}
    assert len(_shown_input(("a" * 900, "b" * 900))["text"]) <= 300


def example(**changes: object) -> dict[str, object]:
    said = {"says": "b", "share": 0.7}
    return {"place": 3, "how": "lost", "label": "a", "merge": said, "single": said, "text": "it", **changes}


def kept(folder: Path, content: object) -> Inspection:
    text = json.dumps(content)
    digest = xxhash.xxh3_128_hexdigest(text.encode())
    (folder / "inspected").mkdir(exist_ok=True)
    (folder / "inspected" / f"{digest}.json").write_text(text)
    return Inspection(coefficient=1, file="", digest=digest, sorts={}, examples={"a": 9}, left_out={})


def test_what_a_run_kept_is_read_back(tmp_path: Path) -> None:
    picture = b64encode(thumbnail(np.zeros((8, 8, 3), np.uint8))).decode()
    content = {"format": 1, "tasks": {"a": [example(), example(text=None, image=picture)]}}
    found = read_examples(tmp_path, kept(tmp_path, content))
    assert found is not None and [each.text for each in found["a"]] == ["it", None]


@pytest.mark.parametrize(
    "changes",
    [
        {"text": None, "image": b64encode(b"<svg onload='alert(1)'/>").decode()},
        {"text": None, "image": "not base64!"},
        {"text": None, "image": b64encode(b"\x89PNG\r\n\x1a\n" + bytes(1 << 16)).decode()},
        {"text": "x" * 301},
        {"text": None},
        {"text": "both", "image": b64encode(thumbnail(np.zeros((8, 8, 3), np.uint8))).decode()},
        {"how": "won"},
        {"label": 3},
    ],
)
def test_what_no_run_kept_is_refused(changes: dict[str, object], tmp_path: Path) -> None:
    inspection = kept(tmp_path, {"format": 1, "tasks": {"a": [example(**changes)]}})
    with pytest.raises(CorruptFile, match="something else than examples; remove the file"):
        read_examples(tmp_path, inspection)


def test_a_changed_file_is_refused_and_a_removed_one_is_nothing(tmp_path: Path) -> None:
    inspection = kept(tmp_path, {"format": 1, "tasks": {}})
    path = tmp_path / "inspected" / f"{inspection.digest}.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(CorruptFile, match="was changed after a run wrote it"):
        read_examples(tmp_path, inspection)
    path.unlink()
    assert read_examples(tmp_path, inspection) is None


@pytest.mark.parametrize("digest", ["../../etc/passwd", "/etc/passwd", "a/b", "", "x" * 300])
def test_a_record_leads_nowhere_else(digest: str, tmp_path: Path) -> None:
    inspection = kept(tmp_path, {"format": 1, "tasks": {}}).model_copy(update={"digest": digest})
    with pytest.raises(CorruptFile, match="names no file"):
        read_examples(tmp_path, inspection)
