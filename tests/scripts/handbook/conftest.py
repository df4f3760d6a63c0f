"""Vectors of a tiny model."""

import pytest

import taskvec as tv

Vectors = dict[str, tv.TaskVector]


@pytest.fixture(scope="session")
def vectors(evaluator: tv.Evaluator) -> Vectors:
    """Of a few steps on each task."""
    settings = tv.TrainSettings(lr=1e-3, steps=6, batch_size=16)
    return {
        task: tv.finetune(evaluator.backbone, [evaluator.part(task)], settings=settings)
        for task in evaluator.tasks
    }
