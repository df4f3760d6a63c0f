"""A world small enough for the whole life of a task vector to pass in a second."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from effort import EFFORT

# Libraries that take seconds to import are left to the fixtures: the process that hands tests out needs none.
if TYPE_CHECKING:
    import taskvec as tv

# The gate must not depend on luck: the same examples every time, however slow the machine.
settings.register_profile("gate", derandomize=True, deadline=None, max_examples=25 * EFFORT)
settings.load_profile("gate")

TASKS = {
    # Which of two words a text holds; the words of different tasks are different.
    "pets": ("cat", "dog"),
    "taste": ("good", "bad"),
    "number": ("one", "two"),
}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny tensors: more threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Nothing written here outlives a power cut anyway."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers, randomly initialised, in a folder of its own."""
    from checkpoints import save_bert

    return save_bert(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def tiny_suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite file with three tasks that a tiny BERT learns in a few steps."""
    from checkpoints import WORDS

    folder = tmp_path_factory.mktemp("tiny-suite")
    blocks = []
    for seed, (name, classes) in enumerate(TASKS.items()):
        draw = Random(seed)
        others = [word for word in WORDS if not any(word in pair for pair in TASKS.values())]
        with (folder / f"{name}.jsonl").open("w") as file:
            for split, rows in {"train": 96, "validation": 48, "test": 48}.items():
                for place in range(rows):
                    words = [*draw.choices(others, k=3), classes[place % 2]]
                    draw.shuffle(words)
                    row = {"split": split, "label": place % 2, "text": " ".join(words)}
                    file.write(json.dumps(row) + "\n")
        blocks.append(f"  {name}: {{classes: [{', '.join(classes)}]}}")
    suite = folder / "tiny.yaml"
    suite.write_text(
        "suite: tiny\ndefaults:\n"
        "  data: {source: jsonl, path: '{task}.jsonl'}\n"
        "  templates: ['a {}', '{} of a']\n"
        "tasks:\n" + "\n".join(blocks) + "\n"
    )
    return suite


@pytest.fixture(scope="session")
def evaluator(tiny_model: Path, tiny_suite: Path) -> "tv.Evaluator":
    """Model and tasks, ready to score parameters. Shared: it does not change."""
    import taskvec as tv

    tasks = list(tv.load_suite(tiny_suite).tasks.values())
    return tv.Evaluator(tv.load_backbone(str(tiny_model)), tasks)
