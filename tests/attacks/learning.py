"""Suites, data, experiments and what else training and evaluation read, and how they are spoiled."""

import contextlib
import csv
import gzip
import io
import json
import os
import shutil
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from attacks import mutations
from attacks.editing import called, some
from attacks.mutations import VALUES, rewrite, scrambled, spoil_json, spoil_lines, spoil_yaml
from checkpoints import WORDS, save_bert, save_clip


@cache
def _pretrained(kind: str) -> Path:
    """Models of transformers; made once."""
    save = {"bert": save_bert, "clip": save_clip}[kind]
    place = Path(mkdtemp(prefix="taskvec-attacks-")) / kind
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return save(place)


ROWS = [
    {"split": split, "text": f"{WORDS[at % 2]} film", "other": WORDS[at % 5], "label": at % 2}
    for split, count in (("train", 8), ("validation", 4), ("test", 4))
    for at in range(count)
]


SUITE: dict[str, Any] = {
    "suite": "small", "version": 1, "description": "two tasks", "control": "taste",
    "defaults": {"data": {"source": "jsonl", "path": "{task}.jsonl", "text": "text", "label": "label",
    "split": "split", "skip": 0}, "templates": ["a {}", "{} of a"], "max_length": 16},
    "tasks": {"pets": {"classes": ["cat", "dog"], "wordings": {"cat": ["a cat"]}},
    "taste": {"classes": ["good", "bad"], "metric": "macro_f1", "epochs": 1, "keep": ["good", "bad"]} },
}  # fmt: skip


SUITE_VALUES = (
    "jsonl", "csv", "parquet", "npz", "images", "builtin", "hub", "image", "from-data", "text", "{}",
    "pets.jsonl", "../pets.jsonl",
)  # fmt: skip


def suites(place: Path) -> None:
    """A tiny model of texts and a suite of two tasks."""
    shutil.copytree(_pretrained("bert"), place / "bert")
    (place / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    for task in SUITE["tasks"]:
        (place / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


EVAL_TABLE = "eval bert -s @ -q --limit 2 --json"
RUN = "run tiny.yaml -o run -q"
WIDE_RUN = "run wide.yaml -o run -q"
STATE = ".out.safetensors.training.pt"
EVAL = "eval bert -s suite.yaml -t pets -q --limit 2 --json"


EXPERIMENT: dict[str, Any] = {
    "experiment": "tiny", "description": "d", "model": "bert", "suite": "suite.yaml", "seeds": [0],
    "tasks": ["pets", "taste"], "limits": {"train": 8, "validation": 4, "test": 4},
    "training": {"lr": 0.002, "steps": 1, "batch_size": 4, "weight_decay": 0.01}, "regimes": {"full": {}},
    "search": {"start": 0, "stop": 1, "step": 0.5, "coarse": 2, "limit": 1.5},
    "addition": {"subsets": "all"}, "negation": {"targets": ["pets"], "keep": 0.5},
}  # fmt: skip


WIDE_EXPERIMENT: dict[str, Any] = {
    **EXPERIMENT, "model": "nowhere", "joint": {"combiner": ["mean", {"combiner": "pcgrad"}]},
    "atm": {"rounds": [1, 2], "regimes": ["full"]},
    "costs": True, "analogies": [{"a": "pets", "b": "taste", "c": "pets", "target": "taste"}],
    "disentanglement": {"pairs": [["pets", "taste"]], "grid": {"start": -1, "stop": 1, "points": 5},
    "samples": 10},
}  # fmt: skip
"""Its model is not there: what is valid is refused too, and never computed."""


def experiments(place: Path) -> None:
    suites(place)
    (place / "wide.yaml").write_text(yaml.safe_dump(WIDE_EXPERIMENT))


def spoil_experiment(draw: Random, place: Path) -> None:
    values = (
        "pets",
        "taste",
        "all",
        "pairs",
        "full",
        "tangent",
        "post-hoc",
        ["pets"],
        [["pets", "pets"]],
        {"full": {"lr": 1}},
        10**6,
    )
    spoil_yaml(draw, place / "wide.yaml", WIDE_EXPERIMENT, values)


def finished_run(place: Path) -> None:
    """The folder of a run that is finished."""
    suites(place)
    (place / "tiny.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    with contextlib.chdir(place):
        called(*RUN.split())


def spoil_run(draw: Random, place: Path) -> None:
    if draw.random() < 0.8:
        spoil_lines(draw, place / "run" / "records.jsonl")
    else:
        rewrite(some(draw, place, "run/vectors/**/*.safetensors"), partial(mutations.spoiled_header, draw))


def interrupted_training(place: Path) -> None:
    """A training that was interrupted, its state beside the output."""
    from taskvec.training.checkpoint import Checkpoint

    suites(place)
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(place):
        patch.setattr(Checkpoint, "every", 0.0)
        patch.setattr(Checkpoint, "remove", lambda self: None)
        called(*TRAIN.split())
    (place / "out.safetensors").unlink(missing_ok=True)


TRAIN = "train -m bert -s suite.yaml -t pets --steps 2 --batch-size 4 --lr 1e-3 -o out.safetensors -q"


def spoil_training(draw: Random, place: Path) -> None:
    file = place / STATE
    if draw.random() < 0.5:
        rewrite(file, partial(mutations.spoiled_zip, draw))
        return
    state = torch.load(file, weights_only=True)
    held = draw.choice([state, state["leaves"], state["optimizer"], state["optimizer"]["state"]])
    held[draw.choice(list(held))] = draw.choice((torch.zeros(3), torch.full((2, 2), torch.nan), *VALUES[:30]))
    torch.save(state, file)


def spoil_backbone(draw: Random, place: Path) -> None:
    file = some(draw, place, "bert/*.json", "bert/model.safetensors")
    if file.suffix == ".json":
        spoil_json(
            draw,
            file,
            ("bert", "clip", "llama", "vit", "builtin", "gelu", 10**9, 10**6, "eager", {"auto_map": "x.py"}),
        )
    else:
        rewrite(file, partial(mutations.spoiled_header, draw))


def tables(place: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    suites(place)
    text = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (place / "d.jsonl.gz").write_bytes(gzip.compress(text))
    with (place / "d.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), place / "d.parquet")
    (place / "d.jsonl").write_bytes(text)
    for kind, file_name in (
        ("jsonl", "d.jsonl"),
        ("gz", "d.jsonl.gz"),
        ("csv", "d.csv"),
        ("parquet", "d.parquet"),
    ):
        data = {"source": "jsonl" if kind == "gz" else kind, "path": file_name}
        task = {"classes": ["cat", "dog"], "data": data, "templates": ["a {}"]}
        (place / f"{kind}.yaml").write_text(yaml.safe_dump({"suite": "small", "tasks": {"pets": task}}))


def spoil_table(draw: Random, place: Path) -> str:
    kind = draw.choice(("jsonl", "gz", "csv", "parquet"))
    rows: list[dict[str, Any]] = [dict(row) for row in ROWS]
    for _ in range(draw.choice((1, 1, 3))):
        rows[draw.randrange(len(rows))][draw.choice(("split", "text", "label", "more"))] = draw.choice(VALUES)
    lone = draw.choice(("test", "train", ""))
    rows = [row for row in rows if row["split"] != lone] if draw.random() < 0.2 else rows
    if kind == "csv":
        made = io.StringIO(newline="")
        writer = csv.writer(made, quoting=draw.choice((csv.QUOTE_MINIMAL, csv.QUOTE_NONE)), escapechar="\\")
        writer.writerow(
            draw.choice(
                (
                    ["split", "text", "label"],
                    ["split", "text", "text"],
                    ["a"],
                    [],
                    ["split", "label", "text\0"],
                )
            )
        )
        writer.writerows([row.get(key) for key in ("split", "text", "label")] for row in rows)
        long = "x" * draw.choice((0, 0, 200_000)) + draw.choice(("", '"', "\0", "\r"))
        (place / "d.csv").write_bytes(mutations.encoded(made.getvalue() + long))
    elif kind == "parquet":
        _spoil_parquet(draw, place / "d.parquet", rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        content = mutations.encoded(text.replace("null", draw.choice(("null", *mutations.JSON_TEXTS))))
        if kind == "gz":
            content = gzip.compress(content + draw.choice((b"", bytes(2 * 10**8))) * (draw.random() < 0.2))
            content = (
                scrambled(draw, content)
                if draw.random() < 0.5
                else content + draw.choice((b"", b"\0", content, b"more"))
            )
        (place / ("d.jsonl.gz" if kind == "gz" else "d.jsonl")).write_bytes(content)
    return f"{kind}.yaml"


def _spoil_parquet(draw: Random, path: Path, rows: Sequence[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    column = draw.choice(("text", "label", "split"))
    values: list[Any] = [draw.choice((b"\xff", 1.5, None, [1], {"a": 1}, "x"))] * len(rows)
    arrays: dict[str, Any] = {key: [row[key] for row in ROWS] for key in ("split", "text", "label")}
    with contextlib.suppress(pyarrow.ArrowException):
        parquet.write_table(pyarrow.table({**arrays, column: (values + arrays[column])[: len(ROWS)]}), path)
    rewrite(path, partial(scrambled, draw))


def archives(place: Path) -> None:
    arrays: dict[str, Any] = {"classes": np.array(["cat", "dog"])}
    for split, count in (("train", 6), ("val", 4), ("test", 4)):
        arrays[f"x_{split}"] = np.zeros((count, 16, 16), np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 2
    np.savez(place / "d.npz", **arrays)
    _image_suite(place, {"source": "npz", "path": "d.npz"})


def _image_suite(place: Path, data: dict[str, Any]) -> None:
    shutil.copytree(_pretrained("clip"), place / "clip")
    task = {"modality": "image", "classes": "from-data", "data": data, "templates": ["{}"]}
    (place / "suite.yaml").write_text(yaml.safe_dump({"suite": "small", "tasks": {"pets": task}}))


EVAL_IMAGES = "eval clip -s suite.yaml -q --limit 2 --json"


def spoiled_npy(draw: Random, data: bytes) -> bytes:
    """An array whose header claims what is not there, or that is no array."""
    shape = draw.choice(
        (
            "(3000000000, 3)",
            "(0,)",
            "(4, 16, 16, 4)",
            "()",
            "(-1, 4)",
            "(4, 4)",
            "(2**70,)",
            "[4]",
            "(1e3,)",
            "(" * 200,
        )
    )
    kind = draw.choice(
        ("'|u1'", "'<f8'", "'|O'", "'<U4'", "'V9'", "[('a', '<i8')]", "'<M8[s]'", "'>u2'", "'x'", "0")
    )
    match draw.randrange(4):
        case 0:
            return scrambled(draw, data)
        case 1:
            made = io.BytesIO()
            odd = (
                np.array([{"a": 1}], object),
                np.zeros((4, 16, 16), np.float64),
                np.array(["\x1b[31m", "dog"]),
                np.arange(9) - 4,
            )
            np.save(made, draw.choice(odd), allow_pickle=True)
            return made.getvalue()
        case _:
            order = draw.choice(("False", "True", "1"))
            header = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
            return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data[-64:]


def spoil_archive(draw: Random, place: Path) -> None:
    file = place / "d.npz"
    if draw.random() < 0.1:
        array = np.zeros((4, 16, 16), np.uint8)
        with file.open("wb") as handle:
            np.save(handle, array)
        return
    rewrite(file, lambda data: mutations.spoiled_zip(draw, data, spoiled_npy))


def images(place: Path) -> None:
    for split in ("train", "val", "test"):
        for kind in ("cat", "dog"):
            (place / "pics" / split / kind).mkdir(parents=True)
            for at in range(2):
                Image.new("RGB", (16, 16), (60 * at, 10, 99)).save(
                    place / "pics" / split / kind / f"{at}.png"
                )
    _image_suite(place, {"source": "images", "path": "pics"})


def spoil_image(draw: Random, place: Path) -> None:
    file = some(draw, place, "pics/test/*/*.png")
    match draw.randrange(9):
        case 0:
            file.parent.rename(
                file.parent.with_name(
                    draw.choice(("²", "٣", "1", "\x1b[31m", "a" * 250, "-1", "00", "\udcff", "é"))
                )
            )
        case 1:
            size = draw.choice(((60_000, 60_000), (20_000, 5_000), (1, 10**5), (0, 5)))
            header = f"P6 {size[0]} {size[1]} {draw.choice((255, 0, 65535, -1, 'x'))}\n".encode()
            file.with_suffix(".ppm").write_bytes(header + bytes(100))
        case 2:
            bomb = io.BytesIO()
            Image.new("1", draw.choice(((20_000, 20_000), (30_000, 3_000)))).save(bomb, "png")
            file.write_bytes(bomb.getvalue())
        case 3:
            mode = draw.choice(("L", "P", "RGBA", "CMYK", "I;16", "F", "1", "LA", "I"))
            kind = draw.choice(("png", "tiff", "bmp", "gif", "jpeg", "webp"))
            with contextlib.suppress(Exception):  # not every mode fits every kind
                Image.new(mode, draw.choice(((16, 16), (1, 1), (1, 3000)))).save(file.with_suffix(f".{kind}"))
        case 4:
            shutil.rmtree(draw.choice([file.parent, file.parent.parent]))
        case 5:
            (file.parent / "x.png").symlink_to(
                draw.choice(("/etc/passwd", "/dev/zero", "x.png", "nowhere", "..", "../../../../secret"))
            )
        case 6:
            os.mkfifo(file.parent / "pipe.png")
        case 7:
            (file.parent / "f.png").mkdir()
        case _:
            rewrite(file, partial(scrambled, draw))
