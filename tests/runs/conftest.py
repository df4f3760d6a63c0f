"""A whole experiment that runs in seconds."""

from pathlib import Path

import pytest

EXPERIMENT = """
experiment: tiny
description: The whole life of a task vector.
model: {model}
suite: {suite}
training: {{lr: 2e-3, steps: 6, batch_size: 16, weight_decay: 0.01}}
regimes: {{full: {{}}, attention: {{lr: 4e-3}}}}
search: {{step: 0.25, coarse: 2, limit: 1.5}}
addition: {{subsets: all}}
joint: true
atm: {{rounds: [1, 2], regimes: [full]}}
negation: {{targets: [pets], keep: 0.5}}
analogies:
  - {{a: number, b: pets, c: taste, target: pets}}
"""


SPACES = """
experiment: spaces
description: Every regime in its own space.
model: {model}
suite: {suite}
training: {{lr: 2e-3, steps: 6, batch_size: 16, weight_decay: 0.01}}
regimes: {{full: {{}}, attention: {{}}, tangent: {{}}, tangent-attention: {{}},
  post-hoc: {{}}, post-hoc-attention: {{}}}}
search: {{step: 0.25, coarse: 2, limit: 1.5}}
addition: {{subsets: pairs, each: [tangent, post-hoc]}}
joint: true
atm: {{rounds: [1]}}
negation: {{targets: [pets], keep: 0.5, baselines: [random]}}
analogies:
  - {{a: number, b: pets, c: taste, target: pets}}
disentanglement: {{pairs: [[pets, taste]], grid: {{points: 5}}, samples: 10}}
"""


@pytest.fixture(scope="session")
def spaces_experiment(tiny_model: Path, tiny_suite: Path) -> str:
    return SPACES.format(model=tiny_model, suite=tiny_suite)


@pytest.fixture(scope="session")
def tiny_experiment(tiny_model: Path, tiny_suite: Path) -> str:
    return EXPERIMENT.format(model=tiny_model, suite=tiny_suite)


@pytest.fixture
def experiment(tmp_path: Path, tiny_experiment: str) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_experiment)
    return path
